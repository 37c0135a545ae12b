"""Patterns of topics: ours, those of FOLIO's Java modules, and how one becomes the other; pure."""

from __future__ import annotations

import re

from folio_events.exceptions import ConfigurationError

#: A tenant or a collection. FOLIO's own ``\w+`` misses tenants with a hyphen.
TENANT = "[^.]+"
_DOT = r"\."
_QUANTIFIER = re.compile(r"[*+?]|\{\d+(,\d*)?\}")
_GROUP = re.compile(r"\((\?:|\?<[A-Za-z][A-Za-z0-9]*>|(?!\?))")
_BRACKET = re.compile(r"\[\^?(?:\[:[a-z]+:\]|\\.|[^\]\\])+\]")
_BRACKET_PART = re.compile(
    r"\[:(?P<posix>[a-z]+):\]"
    r"|\\(?P<escaped>.)"
    r"|(?P<range>[A-Za-z0-9]-[A-Za-z0-9])"
    r"|(?P<plain>[^\[\]\\])"
)
_POSIX_CLASSES = {
    "alnum": "A-Za-z0-9",
    "alpha": "A-Za-z",
    "digit": "0-9",
    "lower": "a-z",
    "punct": "._-",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
_BRACKET_ESCAPES = {"w": "A-Za-z0-9_", "d": "0-9"}
_ESCAPES = {"d": "[0-9]", "D": "[^0-9]", "A": "^", "z": "$", "Z": "$"} | {
    char: f"\\{char}" for char in "wWsS.[]{}()*+?^$|\\"
}


def escape(text: str) -> str:
    """Write a text as a pattern that matches it alone; hyphens stay, for librdkafka."""
    return re.escape(text).replace(r"\-", "-")


def subscription_pattern(env: str, event_type: str, namespace: str | None = None) -> str:
    r"""Say how librdkafka finds the topics of all tenants and collections.

    Args:
        env: Environment, such as ``folio``.
        event_type: What follows the tenant, such as ``DI_COMPLETED`` or ``inventory.item``.
        namespace: ``Default``, or None.

    Returns:
        Such as ``^folio\.Default\.[^.]+\.DI_COMPLETED$``. Without ``^`` librdkafka takes it
        for a name, without ``$`` it takes longer names too.
    """
    parts = [escape(env), *([escape(namespace)] if namespace else []), TENANT, escape(event_type)]
    return f"^{_DOT.join(parts)}$"


def wrapper_pattern(env: str, event_type: str, namespace: str | None = None) -> str:
    """The Java pattern of folio-kafka-wrapper, which escapes neither environment nor event type."""
    return _DOT.join([env, *([namespace] if namespace else []), r"\w{1,}", event_type])


def tenant_argument_pattern(env: str, topic: str, tenant_pattern: str = r"\w+") -> str:
    """The Java pattern of modules that pass one as the tenant's name: its dots match anything."""
    return f"{env}.{tenant_pattern}.{topic}"


def spring_pattern(env: str, topic_pattern: str) -> str:
    """The Java pattern of mod-search, mod-audit and mod-inn-reach."""
    return rf"({env}\.)(.*\.){topic_pattern}"


def java_matches(pattern: str, topic: str) -> bool:
    """Whether a Java consumer that is subscribed to a pattern reads a topic.

    Raises:
        ConfigurationError: As ``librdkafka_pattern``.
    """
    return re.fullmatch(librdkafka_pattern(pattern), topic, re.ASCII) is not None


def librdkafka_pattern(java_pattern: str) -> str:
    r"""Write a pattern for librdkafka that takes the topics that Java takes by it.

    Java matches whole names, librdkafka searches in them with POSIX extended expressions, which know
    neither ``(?:...)`` nor ``\d``, and no escapes in brackets.

    Args:
        java_pattern: Of java.util.regex, or a POSIX extended expression.

    Returns:
        A pattern with ``^`` and ``$`` that means the same to librdkafka and to ``re``.

    Raises:
        ConfigurationError: It has no meaning, or one that POSIX expressions cannot have.
    """
    if not java_pattern or not java_pattern.strip():
        raise ConfigurationError("subscriptionPattern can't be null nor empty.")
    tokens, alternatives = _translate(java_pattern)
    if alternatives:
        tokens = ["(", *tokens, ")"]
    body = "".join(tokens[tokens[:1] == ["^"] : len(tokens) - (tokens[-1:] == ["$"])])
    pattern = f"^{body}$"
    try:
        re.compile(pattern, re.ASCII)
    except re.error as error:
        raise _refusal(java_pattern, str(error)) from error
    return pattern


def _translate(pattern: str) -> tuple[list[str], bool]:
    """Translate token by token, and say whether there are alternatives outside of groups."""
    tokens: list[str] = []
    at = depth = 0
    alternatives = False
    while at < len(pattern):
        rest = pattern[at:]
        if rest.startswith(r"\Q"):
            quoted = rest[2:].partition(r"\E")[0]
            tokens += [escape(char) for char in quoted]
            at += len(quoted) + (4 if r"\E" in rest else 2)
        elif rest[0] == "\\":
            tokens.append(_escaped(pattern, rest[1:2]))
            at += 2
        elif rest[0] == "[":
            token, length = _bracket(pattern, rest)
            tokens.append(token)
            at += length
        elif rest[0] == "(":
            opening = _GROUP.match(rest)
            if opening is None:
                raise _refusal(pattern, f"there is no {rest[:3]!r} in POSIX expressions")
            tokens.append("(")
            depth += 1
            at += opening.end()
        elif quantifier := _QUANTIFIER.match(rest):
            tokens.append(quantifier[0])
            at += quantifier.end()
            # Whether it takes as little or as much as it can, whole names are the same.
            at += pattern[at : at + 1] == "?"
            if second := _QUANTIFIER.match(pattern, at):
                raise _refusal(
                    pattern, f"there is no {quantifier[0] + second[0]!r} in POSIX expressions"
                )
        elif rest[0] == "{":
            raise _refusal(pattern, "'{' begins no quantifier")
        else:
            depth -= rest[0] == ")"
            if depth < 0:
                raise _refusal(pattern, "a ')' closes nothing")
            alternatives = alternatives or (rest[0] == "|" and depth == 0)
            tokens.append(rest[0])
            at += 1
    return tokens, alternatives


def _escaped(pattern: str, char: str) -> str:
    if char in _ESCAPES and char:
        return _ESCAPES[char]
    if not char or char.isalnum():
        raise _refusal(pattern, f"there is no '\\{char}' in POSIX expressions")
    return char


def _bracket(pattern: str, rest: str) -> tuple[str, int]:
    found = _BRACKET.match(rest)
    if found is None:
        raise _refusal(pattern, "a '[' is not closed")
    text = found[0]
    if any(sign in text for sign in ("&&", "||", "--", "~~")):
        raise _refusal(pattern, f"there are no operations on sets in POSIX expressions: {text}")
    if "\\" not in text and "[" not in text[1:]:
        return text, len(text)
    negation = "^" if text[1] == "^" else ""
    members, hyphen = "", ""
    inner = text[1 + len(negation) : -1]
    for part in _BRACKET_PART.finditer(inner):
        kind, value = part.lastgroup, part[part.lastgroup or 0]
        if kind == "posix" and value in _POSIX_CLASSES:
            value = _POSIX_CLASSES[value]
        elif kind == "escaped" and value in _BRACKET_ESCAPES:
            value = _BRACKET_ESCAPES[value]
        elif kind == "posix" or (kind == "escaped" and (value.isalnum() or value in r"[]^\ ")):
            raise _refusal(pattern, f"{part[0]!r} cannot stand in brackets")
        if value.endswith("-"):
            value, hyphen = value[:-1], "-"
        members += value
    if len("".join(m[0] for m in _BRACKET_PART.finditer(inner))) != len(inner):
        raise _refusal(pattern, f"there are no sets within sets in POSIX expressions: {text}")
    return f"[{negation}{members}{hyphen}]", len(text)


def _refusal(pattern: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"The pattern {pattern!r} cannot be given to librdkafka: {reason}. Write it with "
        "characters, '.', '[...]', '(...)', '|', '*', '+', '?', '{n,m}', '\\.' and '\\w'."
    )
