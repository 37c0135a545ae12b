"""Where content does not fit a JSON Schema: the place and what is wrong there, never the value."""

from __future__ import annotations

import ipaddress
import json
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from types import NoneType
from typing import Any

from folio_events.dialects.contents import from_iso
from folio_events.exceptions import ConfigurationError
from folio_events.masking import without_tokens

#: Most differences that are told, and characters of a name in a path.
MAX_DIFFERENCES, MAX_NAME = 100, 100
#: Content with more values, or deeper, is not compared.
MAX_VALUES, MAX_DEPTH = 50_000, 100
_MAX_TOLD = 200
_MISSING, _UNEXPECTED = "missing", "not expected"
_PRIVATE = "does not fit; what it holds is private"
_INSTALL = 'pip install "folio-events[schemas]"'
_TYPES = {
    NoneType: "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
}
_Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """A place where content does not fit a schema.

    Attributes:
        path: JSON pointer (RFC 6901) into the content, such as ``/new/title``; "" is all of it.
            Long names are cut.
        reason: What is wrong, in one line.
    """

    path: str
    reason: str


def differences(
    content: object,
    schema: Mapping[str, Any],
    *,
    hidden: Collection[str] = (),
    limit: int = MAX_DIFFERENCES,
) -> list[Difference]:
    """Find where content does not fit a schema.

    Args:
        content: As ``json.loads()`` gives it.
        schema: One in which ``faults()`` finds nothing. Formats are held against too: date,
            date-time, uuid, ipv4, ipv6.
        hidden: Names of members of which nothing is told but that they are there, or do not fit.
        limit: Most differences.

    Raises:
        ConfigurationError: The extra ``schemas`` is not installed.
        ValueError: The content is too large, or nested too deeply, to be compared.
    """
    validator = _validator(schema)
    _measure(content)
    told: dict[Difference, None] = {}
    try:
        for error in validator.iter_errors(content):
            for path, reason in _told(error):
                told[_difference(path, reason, hidden)] = None
                if len(told) >= limit:
                    return list(told)
    except RecursionError as error:
        raise ValueError("the schema refers to itself without end") from error
    except ArithmeticError as error:
        raise ValueError("it holds a number too large to be compared") from error
    return list(told)


def faults(schema: object) -> list[str]:
    """Say why something is no schema that can be used; empty where it is one.

    Args:
        schema: As ``json.loads()`` gives it; of the draft that its ``$schema`` names, without one
            of 2020-12. What it refers to has to stand in it: nothing is fetched.

    Raises:
        ConfigurationError: The extra ``schemas`` is not installed.
    """
    if not isinstance(schema, Mapping):
        return [f"it is a JSON {_type_of(schema)}, not an object"]
    validator = _validator(schema)
    from jsonschema.exceptions import SchemaError

    try:
        validator.check_schema(schema)
    except SchemaError as error:
        return [f"{_pointer(tuple(error.absolute_path)) or 'it'}: {error.message[:_MAX_TOLD]}"]
    except RecursionError:
        return ["it is nested too deeply"]
    return [
        f"it refers to {reference!r}, which is not in it; what it refers to has to stand in the "
        "same document, as under $defs"
        for reference in _unresolved(schema)
    ]


def _unresolved(schema: Mapping[str, Any]) -> Iterator[str]:
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012, specification_with

    specification: Any = specification_with(str(schema.get("$schema", "")), default=DRAFT202012)
    registry: Any = Registry()
    resource = specification.create_resource(schema)
    waiting: list[tuple[Any, Any]] = [(schema, registry.resolver_with_root(resource))]
    while waiting:
        value, resolver = waiting.pop()
        if isinstance(value, list):
            waiting += [(item, resolver) for item in value]
        elif isinstance(value, Mapping):
            # A member of that name may be a property's.
            if value is not schema and isinstance(value.get("$id"), str):
                resolver = resolver.in_subresource(specification.create_resource(value))
            reference = value.get("$ref")
            if isinstance(reference, str):
                try:
                    resolver.lookup(reference)
                except Unresolvable:
                    yield reference
            waiting += [(item, resolver) for item in value.values()]


def _validator(schema: object) -> Any:
    try:
        from jsonschema import Draft202012Validator, FormatChecker, validators
        from referencing import Registry
    except ImportError as error:
        raise ConfigurationError(
            f"To compare with a schema takes jsonschema: {_INSTALL}"
        ) from error
    found = validators.validator_for(schema, default=Draft202012Validator)
    bounded = validators.extend(found, {"uniqueItems": _unique_items})
    checker = FormatChecker(formats=())
    for name, check in _FORMATS.items():
        checker.checks(name, raises=ValueError)(check)
    # An empty registry retrieves nothing: the one that it has otherwise would ask the network.
    return bounded(schema, registry=Registry(), format_checker=checker)


def _unique_items(
    validator: Any, wanted: object, items: Any, _schema: object
) -> Iterator[Exception]:
    # The library's own compares each with each where they are objects. Here 1 and 1.0 are two.
    from jsonschema.exceptions import ValidationError

    if wanted and validator.is_type(items, "array"):
        texts = {json.dumps(item, sort_keys=True) for item in items}
        if len(texts) < len(items):
            yield ValidationError("equal items")


def _fits(check: Callable[[str], object]) -> Callable[[object], bool]:
    """A check of a format, which is one of text only; it raises ValueError or returns False."""
    return lambda value: not isinstance(value, str) or check(value) is not False


_FORMATS: dict[str, Callable[[object], bool]] = {
    # Python takes more forms than the one with hyphens.
    "date": _fits(lambda text: date.fromisoformat(text).isoformat() == text),
    "date-time": _fits(lambda text: from_iso(text) is not None),
    "uuid": _fits(lambda text: str(uuid.UUID(text)) == text.lower()),
    "ipv4": _fits(ipaddress.IPv4Address),
    "ipv6": _fits(ipaddress.IPv6Address),
}


def _measure(content: object) -> None:
    count, level = 0, [content]
    for _depth in range(MAX_DEPTH + 1):
        count += len(level)
        if count > MAX_VALUES:
            raise ValueError(f"it holds more than {MAX_VALUES:,} values")
        below: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                below += value.values()
            elif isinstance(value, list):
                below += value
        if not below:
            return
        level = below
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _told(error: Any) -> Iterator[tuple[_Path, str]]:
    from jsonschema.exceptions import best_match

    # Of alternatives, what is wrong in the one that fits best, where there is such a one.
    error = best_match([error])
    path, keyword, wanted = tuple(error.absolute_path), error.validator, error.validator_value
    match keyword:
        case None:  # of a schema that is false the library does not say where
            yield path, "holds what may not be there"
        case "required" if isinstance(wanted, list):
            missing = [name for name in wanted if name not in error.instance]
            yield from (((*path, name), _MISSING) for name in missing)
        case "additionalProperties":
            yield from (((*path, name), _UNEXPECTED) for name in _additional(error))
        case "type":
            expected = wanted if isinstance(wanted, str) else " or ".join(map(str, wanted))
            yield path, f"wrong type: expected {expected}, found {_type_of(error.instance)}"
        case "enum" | "const":
            values = wanted if keyword == "enum" else [wanted]
            yield path, f"wrong value: expected {_json(values)}"
        case "format":
            yield path, f"wrong form: no {wanted}"
        case "anyOf" | "oneOf":
            fit = "more than one" if error.context == [] else "none"
            yield path, f"wrong form: fits {fit} of its {len(wanted)} alternatives"
        case _:
            yield path, f"wrong form: does not keep {keyword} {_json(wanted)}"


def _additional(error: Any) -> Iterator[str]:
    known = error.schema.get("properties", {})
    patterns = error.schema.get("patternProperties", {})
    for name in error.instance:
        if name not in known and not any(re.search(pattern, name) for pattern in patterns):
            yield name


def _difference(path: _Path, reason: str, hidden: Collection[str]) -> Difference:
    at = next((at for at, name in enumerate(path) if name in hidden), None)
    if at is not None and not (at == len(path) - 1 and reason in (_MISSING, _UNEXPECTED)):
        path, reason = path[: at + 1], _PRIVATE
    return Difference(_pointer(path), reason)


def _pointer(path: _Path) -> str:
    return without_tokens("".join(f"/{_segment(name)}" for name in path))


def _segment(name: str | int) -> str:
    text = str(name)
    if len(text) > MAX_NAME:
        text = f"{text[:MAX_NAME]}…"
    # A name may hold what breaks the line or steers a terminal.
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text.replace("~", "~0").replace("/", "~1")


def _type_of(value: object) -> str:
    return _TYPES.get(type(value), "object")


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_TOLD else f"{text[:_MAX_TOLD]}…"
