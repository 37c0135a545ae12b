"""Row triggers of PostgreSQL that write a model's events into the outbox, whoever writes the rows."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterator
from typing import Any

from django.conf import settings as django_settings
from django.db.models import Field, GeneratedField

from folio_events.conf import get_settings
from folio_events.declarations import MASK, ModelEvents, events, is_converted, value_field
from folio_events.dialects import PAST_WORDS, TOMBSTONE
from folio_events.message import MAX_KEY_BYTES
from folio_events.models import OutboxMessage
from folio_events.ownership import TENANT_HEADER
from folio_events.topics.declared import is_compacted

#: Of the trigger; pgtrigger adds a prefix and a digest of the model's label.
NAME = "folio_events"
#: What the errors of a trigger are told by: data exceptions, but no one else's.
NO_TENANT, NO_JSON = "22FE1", "22FE2"
#: Most arguments of a PostgreSQL function are 100, and each field takes two.
_FIELDS_OF_ONE_CALL = 45
#: Key locks of one transaction from which on it asks for its topics as a whole, and from
#: which on it waits for them: the server has room for some thousand locks.
_MANY_LOCKS, _MOST_LOCKS = 100, 1000

_TENANT_LETTERS = string.ascii_letters + string.digits + "_-"

#: What of a row an SQL expression gives, by the name of the row: NEW or OLD.
_Sql = Callable[[str], str]
_UTC = "to_char(%s AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US') || '+00:00'"
_LOCAL = "to_char(%s AT TIME ZONE {zone}, 'YYYY-MM-DD\"T\"HH24:MI:SS.US')"
#: A year counts 365 days and a month 30, as they do to psycopg.
_SECONDS = (
    "(extract(year FROM {0}) * 365 + extract(month FROM {0}) * 30 + extract(day FROM {0})) * 86400"
    " + extract(hour FROM {0}) * 3600 + extract(minute FROM {0}) * 60 + extract(second FROM {0})"
)
_DURATION = (
    "(SELECT concat(CASE WHEN s < 0 THEN '-' END, 'P', div(abs(s), 86400),"  # noqa: S608 - fixed names
    " 'DT', to_char(div(mod(abs(s), 86400), 3600), 'FM00'),"
    " 'H', to_char(div(mod(abs(s), 3600), 60), 'FM00'),"
    " 'M', to_char(div(mod(abs(s), 60), 1), 'FM00'),"
    " CASE WHEN mod(s, 1) <> 0"
    " THEN '.' || lpad((mod(abs(s), 1) * 1000000)::int::text, 6, '0') END, 'S')"
    f" FROM (SELECT {_SECONDS.format('%s')} AS s) AS d WHERE s IS NOT NULL)"
)
#: Fields whose values are JSON numbers or words as PostgreSQL writes them.
_PLAIN = {
    *("SmallIntegerField", "IntegerField", "BigIntegerField"),
    *("PositiveSmallIntegerField", "PositiveIntegerField", "PositiveBigIntegerField"),
    *("SmallAutoField", "AutoField", "BigAutoField", "FloatField", "BooleanField", "JSONField"),
}
#: Fields whose values ``to_json`` writes as Python does.
_QUOTED = {
    *("CharField", "TextField", "SlugField", "FileField", "FilePathField", "UUIDField"),
    *("DateField", "GenericIPAddressField"),
}
#: Fields whose text as a key is the same in SQL as in Python.
_KEYS = {
    *("SmallIntegerField", "IntegerField", "BigIntegerField"),
    *("PositiveSmallIntegerField", "PositiveIntegerField", "PositiveBigIntegerField"),
    *("SmallAutoField", "AutoField", "BigAutoField"),
    *("CharField", "TextField", "SlugField", "UUIDField", "FileField", "FilePathField"),
}

_TENANT_MEMBER = "CASE _tenant WHEN '' THEN '' ELSE ',\"tenant\":\"' || _tenant || '\"' END"
_MILLISECONDS = "floor(extract(epoch FROM _at) * 1000)"
_PAST_WORD = " ".join(
    f"WHEN '{kind}' THEN '{PAST_WORDS[kind]}'" for kind in ("CREATE", "UPDATE", "DELETE")
)
#: The expression of an event's body, by dialect; the forms are those of ``folio_events.dialects``.
_BODIES = {
    "inventory": (
        f'concat(\'{{"eventId":"\', _id, \'","eventTs":\', {_MILLISECONDS},'
        f" ',\"type\":\"', _kind, '\"', {_TENANT_MEMBER},"
        " ',\"old\":' || _old, ',\"new\":' || _new, '}')"
    ),
    "circulation": (
        f'concat(\'{{"id":"\', _id, \'","type":"\', CASE _kind {_PAST_WORD} END, \'"\', {_TENANT_MEMBER},'
        f" ',\"timestamp\":', {_MILLISECONDS}, ',\"data\":{{\"old\":', coalesce(_old, 'null'),"
        " ',\"new\":', coalesce(_new, 'null'), '}}')"
    ),
}


def install() -> None:
    """Give the models declared with ``capture = "trigger"`` to pgtrigger; may be called again."""
    wanted = [declaration for declaration in declared() if not faults(declaration)]
    if not wanted:
        return
    try:
        import pgtrigger
    except ImportError:  # a check says so
        return
    known: set[Any] = {model for model, trigger in pgtrigger.registered() if trigger.name == NAME}
    for declaration in wanted:
        if declaration.model not in known:
            trigger_of(declaration).register(declaration.model)


def declared() -> list[ModelEvents]:
    """The declarations that ask for a trigger."""
    return [declaration for declaration in events if declaration.capture == "trigger"]


def trigger_of(declaration: ModelEvents) -> Any:
    """The ``pgtrigger.Trigger`` of a declaration."""
    import pgtrigger

    class Capture(pgtrigger.Trigger):
        # When it is asked for: what is declared of other models and the settings count too.
        def get_func(self, model: Any) -> str:
            return function(declaration)

    return Capture(
        name=NAME,
        when=pgtrigger.After,
        operation=pgtrigger.Insert | pgtrigger.Update | pgtrigger.Delete,
        declare=[
            ("_kind", "text"),
            ("_key", "text"),
            ("_tenant", "text"),
            ("_old", "text"),
            ("_new", "text"),
            ("_field", "text"),
            ("_id", "uuid"),
            ("_at", "timestamptz"),
            ("_locks", "int"),
            ("_topic_lock", "bigint"),
            ("_key_lock", "bigint"),
        ],
    )


def faults(declaration: ModelEvents) -> list[str]:
    """Say why a trigger cannot write the events of a declaration; empty where it can."""
    if declaration.serialize is not None:
        return ["a serializer is Python, which a trigger does not run"]
    found = []
    if declaration.dialect not in _BODIES:
        found.append(f"a trigger does not write dialect {declaration.dialect!r}")
    for name, field in declaration.shown_fields.items():
        reason = _misfit(declaration, field)
        if not reason and field not in _hidden(declaration) and _forms(field) is None:
            reason = "a trigger has no form for it"
        if reason:
            found.append(f"field {name!r} ({type(field).__name__}): {reason}")
    key = declaration.key_field
    reason = _misfit(declaration, key)
    if not reason and value_field(key).get_internal_type() not in _KEYS:
        reason = "a key has to be a number, text or a UUID"
    if reason:
        found.append(f"key {key.name!r}: {reason}")
    if declaration.tenant_field is not None and _misfit(declaration, declaration.tenant_field):
        found.append(f"tenant: {_misfit(declaration, declaration.tenant_field)}")
    if isinstance(declaration.tenant, str) and not set(declaration.tenant) <= set(_TENANT_LETTERS):
        found.append(f"tenant: {declaration.tenant!r} cannot be a segment of a topic")
    return found


def _misfit(declaration: ModelEvents, field: Field[Any, Any]) -> str:
    if field not in declaration.model._meta.local_concrete_fields:
        return "it is a column of a parent's table, which has triggers of its own"
    if isinstance(field, GeneratedField) and not getattr(field, "db_persist", True):
        return "it is computed when it is read"
    if is_converted(field):
        return "its from_db_value() is Python, which a trigger does not run"
    if getattr(value_field(field), "decoder", None) is not None:
        return "its decoder is Python, which a trigger does not run"
    return ""


def _forms(field: Field[Any, Any]) -> tuple[str, str] | None:
    """The form of a field's values as JSON, and the test for those that have none.

    Both with ``%s`` for the value; the first gives null for null.
    """
    field = value_field(field)
    kind = field.get_internal_type()
    if kind == "ArrayField":
        return _array_forms(field)
    if kind in _PLAIN:
        odd = "%s IN ('NaN', 'Infinity', '-Infinity')" if kind == "FloatField" else ""
        return "(%s)::text", odd
    if kind in _QUOTED:
        return "to_json(%s)::text", "NOT isfinite(%s)" if kind == "DateField" else ""
    text = _text_form(kind)
    if text is None:
        return None
    endless = "NOT isfinite(%s)" if kind in ("DateTimeField", "DurationField") else ""
    return f"'\"' || {text} || '\"'", endless


def _text_form(kind: str) -> str | None:
    """The form of a value whose JSON is text that needs no escape."""
    if kind == "DateTimeField":
        zone = _literal(django_settings.TIME_ZONE or "UTC")
        form = _UTC if django_settings.USE_TZ else _LOCAL.replace("{zone}", zone)
        return f"replace({form}, '.000000', '')"
    return {
        "DecimalField": "(%s)::text",
        "TimeField": "replace(to_char(%s, 'HH24:MI:SS.US'), '.000000', '')",
        "DurationField": _DURATION,
        # PostgreSQL breaks base64 into lines.
        "BinaryField": "translate(encode(%s, 'base64'), E'\\n', '')",
    }.get(kind)


def _array_forms(field: Field[Any, Any]) -> tuple[str, str] | None:
    base, depth = field, 0
    while base.get_internal_type() == "ArrayField":
        base, depth = base.base_field, depth + 1  # type: ignore[attr-defined]  # of arrays
    kind = base.get_internal_type()
    # Arrays of arrays cannot be taken apart into their elements and put together again.
    if kind in (_PLAIN | _QUOTED) - {"JSONField"}:
        odd = "%s && '{NaN,Infinity,-Infinity}'::float8[]" if kind == "FloatField" else ""
        return "to_json(%s)::text", odd
    element = _text_form(kind)
    if element is None or depth > 1:
        return None
    form = element.replace("%s", "e")
    listed = f"ARRAY(SELECT {form} FROM unnest(%s) WITH ORDINALITY AS t(e, n) ORDER BY n)"  # noqa: S608 - fixed names
    return f"CASE WHEN %s IS NOT NULL THEN to_json({listed})::text END", ""


def function(declaration: ModelEvents) -> str:
    """The body of a declaration's trigger function."""
    parts = [
        "IF current_setting('folio_events.suppressed', true) = 'on' THEN RETURN NULL; END IF;",
        *_refusals(declaration),
        *_images(declaration),
        *_skip(declaration),
        *_tenant(declaration),
        *_key_checks(declaration),
        *_locks(declaration),
        "_kind := CASE TG_OP WHEN 'INSERT' THEN 'CREATE' ELSE TG_OP END;",
        "_id := gen_random_uuid();",
        "_at := clock_timestamp();",
        _insert(declaration.topic, f"convert_to({_BODIES[declaration.dialect]}, 'UTF8')"),
        *_tombstone(declaration),
        "RETURN NULL;",
    ]
    return "\n".join(parts)


def _insert(topic: str, payload: str) -> str:
    return (
        f"INSERT INTO {OutboxMessage._meta.db_table}"  # noqa: S608 - fixed names
        " (event_id, topic, event_type, tenant, key, payload, repeating_headers, own_headers,"
        " occurred_at)"
        f" VALUES (_id, {_literal(topic)}, _kind, _tenant, _key, {payload},"
        f" convert_to({_repeating(topic)}, 'UTF8'),"
        " convert_to(coalesce(current_setting('folio_events.headers', true), ''), 'UTF8'), _at);"
    )


def _tombstone(declaration: ModelEvents) -> Iterator[str]:
    """Have a compacted topic forget the key that a write leaves without a row."""
    if not is_compacted(declaration.topic):
        return
    old, new = map(_column(declaration.key_field), ("OLD", "NEW"))
    # By bytes: to a collation two different keys may be equal.
    moved = f'{old}::text COLLATE "C" IS DISTINCT FROM {new}::text COLLATE "C"'
    yield f"IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND {moved}) THEN"
    yield f"_key := {old}; _kind := {_literal(TOMBSTONE)}; _id := gen_random_uuid();"
    tombstone = _insert(declaration.topic, "NULL")
    if declaration.key_is_primary_key:
        yield tombstone
    else:
        yield from _locks(declaration)
        table = f'"{declaration.model._meta.db_table}"'
        others = (
            f"SELECT FROM {table} AS other WHERE {_column(declaration.key_field)('other')} = {old}"
        )
        yield f"IF _key IS NOT NULL AND NOT EXISTS ({others}) THEN {tombstone} END IF;"
    yield "END IF;"


def _literal(text: str) -> str:
    quoted = text.replace("'", "''")
    return f"E'{quoted}'".replace("\\", "\\\\") if "\\" in text else f"'{quoted}'"


def _column(field: Field[Any, Any]) -> _Sql:
    return lambda row: f'{row}."{field.column}"'


def _image(declaration: ModelEvents, row: str) -> str:
    """A row as JSON text, as its declaration shows it."""
    hidden = _hidden(declaration)
    items: list[str] = []
    for name, field in declaration.shown_fields.items():
        label = f'{"," if items else ""}"{name}":'
        if field in hidden:
            items.append(_literal(f"{label}{json.dumps(MASK)}"))
            continue
        forms = _forms(field)
        assert forms is not None  # noqa: S101 - faults() tells of it
        value = forms[0].replace("%s", _column(field)(row))
        items.append(f"{_literal(label)}, coalesce({value}, 'null')")
    calls = [
        f"concat({', '.join(items[start : start + _FIELDS_OF_ONE_CALL])})"
        for start in range(0, len(items), _FIELDS_OF_ONE_CALL)
    ]
    return " || ".join(["'{'", *calls, "'}'"])


def _hidden(declaration: ModelEvents) -> set[Field[Any, Any]]:
    return {declaration.captured_fields[at] for at in declaration.private_positions}


def _images(declaration: ModelEvents) -> Iterator[str]:
    key = _column(declaration.key_field)
    yield f"IF TG_OP <> 'INSERT' THEN _old := {_image(declaration, 'OLD')}; END IF;"
    yield f"IF TG_OP <> 'DELETE' THEN _new := {_image(declaration, 'NEW')}; _key := {key('NEW')};"
    yield f"ELSE _key := {key('OLD')}; END IF;"


def _skip(declaration: ModelEvents) -> Iterator[str]:
    if declaration.skip_unchanged:
        unshown = {declaration.model._meta.pk, declaration.key_field, *_hidden(declaration)}
        same = " AND ".join(
            f"{_column(field)('OLD')} IS NOT DISTINCT FROM {_column(field)('NEW')}"
            for field in declaration.captured_fields
            if field in unshown
        )
        # By bytes: to a collation two different texts may be equal.
        yield f"IF TG_OP = 'UPDATE' AND _old = _new COLLATE \"C\" AND {same} THEN RETURN NULL; END IF;"


def _refusals(declaration: ModelEvents) -> Iterator[str]:
    tests = []
    for name, field in declaration.shown_fields.items():
        forms = _forms(field)
        if forms is not None and forms[1] and field not in _hidden(declaration):
            value = _column(field)
            tests += [
                f"WHEN {forms[1].replace('%s', value(row))} THEN {_literal(name)}"
                for row in ("NEW", "OLD")
            ]
    if tests:
        label = declaration.model._meta.label
        yield f"_field := CASE {' '.join(tests)} END;"
        refusal = _raise(
            NO_JSON,
            f"The write of {label} is refused: field % has no JSON form: NaN and infinity have none."
            f" Leave the field out of {declaration}.",
            "quote_literal(_field)",
        )
        yield f"IF _field IS NOT NULL THEN {refusal} END IF;"


def _raise(state: str, text: str, value: str = "") -> str:
    """The statement that refuses the write; ``%`` in the text stands for the value."""
    given = f", {value}" if value else ""
    return f"RAISE EXCEPTION {_literal(text)}{given} USING ERRCODE = '{state}';"


def _tenant(declaration: ModelEvents) -> Iterator[str]:
    label = declaration.model._meta.label
    yield "_tenant := coalesce(current_setting('folio_events.tenant', true), '');"
    if get_settings().TENANCY is not None:
        if isinstance(declaration.tenant, str):
            yield f"IF _tenant = '' THEN _tenant := {_literal(declaration.tenant)}; END IF;"
        elif declaration.tenant_field is not None:
            column = _column(declaration.tenant_field)
            yield (
                "IF _tenant = '' THEN _tenant := coalesce(CASE TG_OP WHEN 'DELETE'"
                f" THEN {column('OLD')}::text ELSE {column('NEW')}::text END, ''); END IF;"
            )
        refusal = _raise(
            NO_TENANT,
            f"No tenant for this event of {label}. Write within tenant_context('...'), or"
            " SET LOCAL folio_events.tenant in the transaction of the write, or name the tenant"
            f" of such writes in {declaration}.",
        )
        yield f"IF _tenant = '' THEN {refusal} END IF;"
    refusal = _raise(
        NO_TENANT, f"% is no tenant for an event of {label}.", "quote_literal(_tenant)"
    )
    # A regular expression would be compiled in each transaction, for the price of an insert.
    odd = f"translate(_tenant, '{_TENANT_LETTERS}', '') <> '' OR length(_tenant) > 200"
    yield f"IF {odd} THEN {refusal} END IF;"


def _key_checks(declaration: ModelEvents) -> Iterator[str]:
    label = declaration.model._meta.label
    if is_compacted(declaration.topic) and declaration.key_field.null:
        refusal = _raise(
            NO_JSON,
            f"The write of {label} is refused: topic {declaration.topic!r} is compacted, which takes"
            " no event without a key.",
        )
        yield f"IF _key IS NULL THEN {refusal} END IF;"
    field = value_field(declaration.key_field)
    longest = getattr(field, "max_length", None)
    kind = field.get_internal_type()
    if kind == "TextField" or (longest is not None and longest * 4 > MAX_KEY_BYTES):
        refusal = _raise(
            NO_JSON,
            f"The write of {label} is refused: the key is longer than {MAX_KEY_BYTES} bytes.",
        )
        yield f"IF octet_length(convert_to(_key, 'UTF8')) > {MAX_KEY_BYTES} THEN {refusal} END IF;"


def _locks(declaration: ModelEvents) -> Iterator[str]:
    """Take the locks that ``outbox.lock_keys`` takes, row by row."""
    if not (declaration.ordered and events.shares_keys(declaration)):
        return
    table = f"'{OutboxMessage._meta.db_table}'::regclass::oid::bigint"
    topic = f"{_literal(declaration.topic)} || E'\\n' || _tenant"
    yield "IF _key IS NOT NULL THEN"
    yield f"_topic_lock := hashtextextended({topic}, 0) # {table};"
    yield f"_key_lock := hashtextextended({topic} || E'\\n' || _key, 0) # {table};"
    yield "_locks := coalesce(nullif(current_setting('folio_events.locks', true), ''), '0')::int;"
    yield f"IF _locks >= {_MOST_LOCKS} THEN PERFORM pg_advisory_xact_lock(_topic_lock);"
    yield f"ELSIF _locks < {_MANY_LOCKS} OR NOT pg_try_advisory_xact_lock(_topic_lock) THEN"
    yield "PERFORM pg_advisory_xact_lock_shared(_topic_lock);"
    yield "PERFORM pg_advisory_xact_lock(_key_lock);"
    yield "PERFORM set_config('folio_events.locks', (_locks + 1)::text, true);"
    yield "END IF; END IF;"


def _repeating(topic: str) -> str:
    """The repeating headers without ``ce_source``, which is a setting: the relay adds it."""
    start = '[["ce_specversion","1.0"],["ce_type","' + topic + "."
    owner = f"',[\"{TENANT_HEADER}\",\"' || _tenant || '\"]'"
    return (
        f'concat({_literal(start)}, _kind, \'"],["content-type","application/json"]\','
        f" CASE WHEN _tenant <> '' THEN {owner} END, ']')"
    )
