"""The JSON Schema of a model's events, derived from its declaration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings as django_settings
from django.db.models import CheckConstraint, Field, GeneratedField, Model, Q

from folio_events.declarations import MASK, ModelEvents, is_converted, value_field

#: A JSON Schema, or a part of one.
Document = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"
#: Which of old and new are rows, by event type; the other is null or not there.
_ROWS = {
    "CREATE": ("new",),
    "REINDEX": ("new",),
    "UPDATE": ("old", "new"),
    "DELETE": ("old",),
}
_TEXT, _WHOLE = {"type": "string"}, {"type": "integer"}
_DIGITS = "[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{6})?"
#: Kinds of fields that are written with a length.
_BOUNDED = ("CharField", "SlugField", "FileField", "FilePathField")
#: The forms of docs/reference/wire-format.md, by Django's kinds of fields. A time of day and a
#: duration of ours are no "time" and no "duration" of RFC 3339: no zone, and fractions.
_FORMS: dict[str, Document] = {
    "SmallIntegerField": _WHOLE,
    "IntegerField": _WHOLE,
    "BigIntegerField": _WHOLE,
    "PositiveSmallIntegerField": _WHOLE,
    "PositiveIntegerField": _WHOLE,
    "PositiveBigIntegerField": _WHOLE,
    "SmallAutoField": _WHOLE,
    "AutoField": _WHOLE,
    "BigAutoField": _WHOLE,
    "CharField": _TEXT,
    "SlugField": _TEXT,
    "TextField": _TEXT,
    "FileField": _TEXT,
    "FilePathField": _TEXT,
    "BooleanField": {"type": "boolean"},
    "FloatField": {"type": "number"},
    "DecimalField": {"type": "string", "pattern": "^-?[0-9]+([.][0-9]+)?$"},
    "UUIDField": {"type": "string", "format": "uuid"},
    "DateField": {"type": "string", "format": "date"},
    "TimeField": {"type": "string", "pattern": f"^{_DIGITS}$"},
    "DurationField": {
        "type": "string",
        "pattern": "^-?P[0-9]+DT[0-9]{2}H[0-9]{2}M[0-9]{2}([.][0-9]{6})?S$",
    },
    "BinaryField": {"type": "string", "contentEncoding": "base64"},
    "GenericIPAddressField": {
        "type": "string",
        "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}],
    },
}


def derive(declaration: ModelEvents, event_type: str) -> Document | None:
    """The schema of the payloads of a declaration's events of a type, as receivers get them.

    It holds for every dialect and both forms of capture. Lengths are those that the model
    declares; choices are told only where a constraint of the table enforces them.

    Returns:
        None where nobody can say: the type is none of a change of a model, or Python makes the
        rows (``serializer``, or a serializer class with a ``to_representation()`` of its own).
    """
    rows, row = _ROWS.get(event_type), _row(declaration)
    if rows is None or row is None:
        return None
    return {
        "$schema": DRAFT,
        "title": f"{event_type} of {declaration.model._meta.label}",
        "type": "object",
        "properties": {
            name: {"$ref": "#/$defs/row"} if name in rows else {"type": "null"}
            for name in ("old", "new")
        },
        "required": list(rows),
        "additionalProperties": False,
        "$defs": {"row": row},
    }


def _row(declaration: ModelEvents) -> Document | None:
    if declaration.serializer_class is not None:
        return _serialized(declaration.serializer_class())
    if declaration.serialize is not None:
        return None
    hidden = {declaration.captured_fields[at] for at in declaration.private_positions}
    return _object(
        {
            name: {"const": MASK} if field in hidden else _field(declaration.model, field)
            for name, field in declaration.shown_fields.items()
        }
    )


def _object(properties: Document, optional: frozenset[str] = frozenset()) -> Document:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _field(model: type[Model], field: Field[Any, Any]) -> Document:
    form = _form(field)
    choices = _enforced_choices(model, field)
    if choices is not None and form:
        form = {**form, "enum": choices}
    # An expression may give null whatever the field says.
    return _or_null(form) if field.null or isinstance(field, GeneratedField) else form


def _form(field: Field[Any, Any]) -> Document:
    """The form of a field's values; empty, which is any, where Python of others makes them."""
    field = value_field(field)
    kind = field.get_internal_type()
    if is_converted(field):
        return {}
    if kind == "ArrayField":
        # The database asks for nothing of the elements but their type.
        element = _or_null(_form(field.base_field))  # type: ignore[attr-defined]  # of arrays
        return {"type": "array", "items": element}
    if kind == "DateTimeField":
        day = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
        # What has no zone is no "date-time" of RFC 3339.
        naive = {"type": "string", "pattern": f"^{day}T{_DIGITS}$"}
        return {"type": "string", "format": "date-time"} if django_settings.USE_TZ else naive
    form = _FORMS.get(kind, {})
    if field.max_length and kind in _BOUNDED:
        return {**form, "maxLength": field.max_length}
    return form


def _or_null(form: Document) -> Document:
    if "type" not in form:
        return form
    nullable = {**form, "type": [form["type"], "null"]}
    for keyword, null in (("enum", [None]), ("anyOf", [{"type": "null"}])):
        if keyword in form:
            nullable[keyword] = [*form[keyword], *null]
    return nullable


def _enforced_choices(model: type[Model], field: Field[Any, Any]) -> list[Any] | None:
    for constraint in model._meta.constraints:
        if not isinstance(constraint, CheckConstraint) or not isinstance(constraint.condition, Q):
            continue
        match constraint.condition.children:
            case [(str(lookup), values)] if lookup == f"{field.name}__in":
                if not constraint.condition.negated:
                    return [getattr(value, "value", value) for value in values]
    return None


# Serializers of Django REST framework are told by the names of its classes: this package works
# without it. They may give null for anything, since they leave None as it is.


def _serialized(serializer: Any) -> Document | None:
    if _own_form(serializer):
        return None
    shown: dict[str, Any] = {
        name: field for name, field in serializer.fields.items() if not field.write_only
    }
    # What is read through a relation is left out where that is null.
    optional = frozenset(name for name, field in shown.items() if "." in (field.source or ""))
    return _object({name: _shown(field) for name, field in shown.items()}, optional)


def _own_form(field: Any) -> bool:
    return not type(field).to_representation.__module__.startswith("rest_framework.")


def _shown(field: Any) -> Document:
    if _own_form(field):
        return {}
    for parent in type(field).__mro__:
        if parent.__module__.startswith("rest_framework.") and parent.__name__ in _SHOWN:
            return _or_null(_SHOWN[parent.__name__](field))
    return {}


def _list(field: Any) -> Document:
    child = getattr(field, "child", None) or field.child_relation
    return {"type": "array", "items": _shown(child)}


_SHOWN: dict[str, Callable[[Any], Document]] = {
    **dict.fromkeys(
        (
            *("CharField", "DecimalField", "DateTimeField", "DateField", "TimeField"),
            *("DurationField", "FileField", "StringRelatedField", "HyperlinkedRelatedField"),
        ),
        lambda _field: _TEXT,
    ),
    "BooleanField": lambda _field: {"type": "boolean"},
    "IntegerField": lambda _field: {"type": "integer"},
    "FloatField": lambda _field: {"type": "number"},
    "UUIDField": lambda field: {"type": "integer"} if field.uuid_format == "int" else _TEXT,
    "DictField": lambda _field: {"type": "object"},
    "ListField": _list,
    "ListSerializer": _list,
    "ManyRelatedField": _list,
    "Serializer": lambda field: _serialized(field) or {},
}
