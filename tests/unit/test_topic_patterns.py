"""Patterns of topics: FOLIO's, ours, and what librdkafka makes of them."""

from __future__ import annotations

import ctypes
import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folio_events.exceptions import ConfigurationError
from folio_events.topics import (
    java_matches,
    librdkafka_pattern,
    spring_pattern,
    subscription_pattern,
    tenant_argument_pattern,
    topic_name,
    wrapper_pattern,
)
from tests.unit.vectors import cases

#: glibc's regcomp and regexec with REG_EXTENDED, which librdkafka calls in its Linux wheels.
_LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def posix_search(pattern: str, text: str) -> bool | None:
    """Whether glibc finds a pattern in a text; None: it refuses the pattern."""
    assert _LIBC is not None
    compiled = ctypes.create_string_buffer(256)
    if _LIBC.regcomp(compiled, pattern.encode(), 1) != 0:
        return None
    try:
        return bool(_LIBC.regexec(compiled, text.encode(), 0, None, 0) == 0)
    finally:
        _LIBC.regfree(compiled)


needs_glibc = pytest.mark.skipif(_LIBC is None, reason="librdkafka uses glibc's regcomp on Linux")


@pytest.mark.parametrize("case", cases("subscription_pattern"))
def test_folios_own_patterns_are_formed_to_the_letter(case: dict[str, Any]) -> None:
    """The wrapper's, that of modules that pass a pattern as the tenant, and Spring's."""
    parts, expected = case["input"], case["expected"]["pattern"]
    if "topic_pattern" in parts:
        assert spring_pattern(**parts) == expected
    elif "tenant_pattern" in parts:
        assert tenant_argument_pattern(**parts) == expected
    else:
        assert wrapper_pattern(**parts) == expected


def test_the_wrappers_pattern_without_a_namespace() -> None:
    """As mod-inventory forms it."""
    pattern = wrapper_pattern("folio", "inventory.instance_ingress")

    assert pattern == r"folio\.\w{1,}\.inventory.instance_ingress"


@pytest.mark.parametrize("case", cases("pattern_match"))
def test_a_pattern_takes_what_java_takes_by_it(case: dict[str, Any]) -> None:
    """The whole name, and ``\\w`` is ASCII."""
    pattern, topic = case["input"]["pattern"], case["input"]["topic"]

    assert java_matches(pattern, topic) is case["expected"]["match"]


@needs_glibc
@pytest.mark.parametrize("case", cases("pattern_match"))
def test_librdkafka_takes_by_the_translated_pattern_what_java_takes(case: dict[str, Any]) -> None:
    """By glibc's own search, which librdkafka calls; Kafka's topics are ASCII."""
    pattern, topic = case["input"]["pattern"], case["input"]["topic"]

    taken = posix_search(librdkafka_pattern(pattern), topic) and topic.isascii()

    assert taken is case["expected"]["match"]


@pytest.mark.parametrize("case", cases("librdkafka_pattern"))
def test_a_java_pattern_gets_its_anchors(case: dict[str, Any]) -> None:
    """Without ``^`` it is a name to librdkafka, without ``$`` it takes longer names."""
    assert librdkafka_pattern(**case["input"]) == case["expected"]["librdkafka_pattern"]


@pytest.mark.parametrize(
    ("java", "expected"),
    [
        (r"folio.\w+.circulation.loan", r"^folio.\w+.circulation.loan$"),
        (r"^folio\.\w+\.a$", r"^folio\.\w+\.a$"),
        (r"\Afolio\.a\z", r"^folio\.a$"),
        (r"folio\.(?:a|b)", r"^folio\.(a|b)$"),
        (r"folio\.(?<event>a|b)", r"^folio\.(a|b)$"),
        (r"folio\.a|folio\.b", r"^(folio\.a|folio\.b)$"),
        (r"folio\.\d+", r"^folio\.[0-9]+$"),
        (r"folio\.\D", r"^folio\.[^0-9]$"),
        (r"folio\.[\w.\-]+", r"^folio\.[A-Za-z0-9_.-]+$"),
        (r"folio\.[^\d]*", r"^folio\.[^0-9]*$"),
        (r"folio\.[[:alnum:]_-]+", r"^folio\.[A-Za-z0-9_-]+$"),
        (r"folio\.[A-Za-z0-9-]+", r"^folio\.[A-Za-z0-9-]+$"),
        (r"folio\..*?\.a{2,3}?", r"^folio\..*\.a{2,3}$"),
        (r"\Qfolio.a\E\.b", r"^folio\.a\.b$"),
        (r"folio\-a\:b", r"^folio-a:b$"),
        (r"folio\.a\$", r"^folio\.a\$$"),
    ],
)
def test_what_posix_expressions_write_otherwise_is_translated(java: str, expected: str) -> None:
    """Once translated, a pattern stays as it is."""
    assert librdkafka_pattern(java) == expected
    assert librdkafka_pattern(expected) == expected


@pytest.mark.parametrize(
    ("java", "named"),
    [
        ("", "null nor empty"),
        (" ", "null nor empty"),
        (r"(?=folio)\w+", "'(?='"),
        (r"folio\.(?!diku)\w+", "'(?!'"),
        (r"(?<=x)y", "'(?<'"),
        (r"(?i)folio", "'(?i'"),
        (r"(?>a)b", "'(?>'"),
        (r"a*+", "'*+'"),
        (r"\bfolio", r"\b"),
        (r"\p{Alnum}+", r"\p"),
        (r"(a)\1", r"\1"),
        ("folio\\", "\\"),
        (r"[a-z&&[^b]]", "operations on sets"),
        (r"[a[b]]", "sets within sets"),
        (r"[\p{L}]", r"\\p"),
        (r"[\S]", r"\\S"),
        (r"[[:word:]]", "[:word:]"),
        (r"[abc", "not closed"),
        (r"(a", "unterminated"),
        (r"a)", "closes nothing"),
        (r"a)(b|c", "closes nothing"),
        (r"a{,3}", "quantifier"),
        (r"a{x}", "quantifier"),
        (r"*a", "nothing to repeat"),
        (r"a**", "'**'"),
        (r"a*?+", "'*+'"),
        (r"[z-a]", "range"),
    ],
)
def test_what_posix_expressions_cannot_say_is_refused_by_name(java: str, named: str) -> None:
    """librdkafka would refuse the subscription, or read it as something else."""
    with pytest.raises(ConfigurationError, match=re.escape(named)):
        librdkafka_pattern(java)


PIECES = [
    *("folio", "a", "B", "7", r"\.", ".", "-", "_", r"\-", r"\w", r"\d", r"\D", r"\W", r"\S"),
    *("[a-z]", "[^.]", r"[\w-]", r"[^\d.]", "[A-Za-z0-9_-]", "[[:upper:]]", r"\Qa.B\E"),
    *("(", "(?:", ")", "|", "*", "+", "?", "*?", "+?", "{1,2}", "{2}", "^", "$", r"\A", r"\z"),
]


@needs_glibc
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=7).map("".join), st.data())
def test_a_translated_pattern_means_the_same_to_java_python_and_librdkafka(
    java: str, data: st.DataObject
) -> None:
    """Python's own full match stands for Java's, where it knows the pattern as it is written."""
    try:
        translated = librdkafka_pattern(java)
    except ConfigurationError:
        return
    topic = data.draw(st.text("aB7._-folio", max_size=8))

    taken = posix_search(translated, topic)

    assert taken is not None, f"glibc refuses {translated!r}"
    assert taken == (re.fullmatch(translated, topic, re.ASCII) is not None)
    as_python = java.replace("[[:upper:]]", "[A-Z]").replace(r"\Qa.B\E", r"(?:a\.B)")
    as_python = as_python.replace(r"\z", r"\Z")
    if r"\Qa.B\E" not in java:
        assert taken == (re.fullmatch(as_python, topic, re.ASCII) is not None)


def test_our_pattern_is_anchored_and_escaped() -> None:
    """A hyphen in the environment stands for itself, without a backslash."""
    assert subscription_pattern("folio", "DI_COMPLETED", "Default") == (
        r"^folio\.Default\.[^.]+\.DI_COMPLETED$"
    )
    assert subscription_pattern("ibf-3", "inventory.item") == r"^ibf-3\.[^.]+\.inventory\.item$"


NAMES = st.text("abzAZ09_-", min_size=1, max_size=6)


@needs_glibc
@given(env=NAMES, tenant=NAMES, event_type=NAMES, namespace=st.none() | NAMES)
def test_our_pattern_takes_every_tenants_topic(
    env: str, tenant: str, event_type: str, namespace: str | None
) -> None:
    """Hyphens and collections included, of this environment alone."""
    pattern = subscription_pattern(env, event_type, namespace)
    name = topic_name(env, tenant, event_type, namespace)

    assert posix_search(pattern, name)
    assert posix_search(pattern, topic_name(env, tenant, event_type, namespace, "ALL"))
    assert not posix_search(pattern, f"x{name}")
    assert not posix_search(pattern, f"{name}x")
