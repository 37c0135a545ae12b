"""Reconcile: compare rows with what was made of their events elsewhere, and mend what differs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from django.db import connections
from django.db.models import CharField, F, QuerySet, TextField
from django.db.models.functions import Collate
from django.utils import timezone

from folio_events import topics
from folio_events.declarations import ModelEvents, events
from folio_events.exceptions import ConfigurationError
from folio_events.models import Delivery, OutboxMessage
from folio_events.operations import backfill
from folio_events.operations.retention import unpublished

#: Keys that are looked at once more, and repaired, at a time.
_BATCH = 500
#: Rows that are fetched at a time.
_PAGE = 2000

Kind = Literal["missing", "stale", "extra"]
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A row of a projection that is not what its source says."""

    #: "missing": the projection has no row; "stale": values differ; "extra": there is no source.
    kind: Kind
    key: Any
    #: Primary key of the projection's row; None where it is missing.
    row: Any
    #: By column of the projection: what is expected, what is there. Of "stale" only.
    fields: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    #: Whether an event of it is on its way, so that it may settle by itself.
    in_flight: bool = False


class Reconciliation:
    """What a projection should hold; subclass it and register the subclass.

    ``source()`` and ``projection()`` return querysets that are neither sliced nor combined. Both
    have to bring a key of the same type. Of one key there is at most one source row, and any
    number of the projection's.
    """

    #: Stable name, such as "orders.titles".
    name: ClassVar[str]
    #: Field of the source that the projection refers to, and the projection's field for it.
    source_key: ClassVar[str] = "pk"
    projection_key: ClassVar[str] = "pk"
    #: Column of the projection to the source's column that it repeats.
    fields: ClassVar[Mapping[str, str]]
    #: Further columns of the source that ``expected()`` needs.
    reads: ClassVar[Sequence[str]] = ()
    #: Whether every source row has to have a row of the projection.
    complete: ClassVar[bool] = True
    #: Event type by which ``repair()`` says a row again.
    event_type: ClassVar[str] = "UPDATE"

    def source(self) -> QuerySet[Any]:
        """The rows that events tell of; may be grouped by ``values()`` and ``annotate()``."""
        raise NotImplementedError

    def projection(self) -> QuerySet[Any]:
        """The rows that receivers made of them."""
        raise NotImplementedError

    def expected(self, source: Values) -> Values:
        """What the projection should hold of a source row, by its columns.

        Args:
            source: By name, the columns of ``fields`` and ``reads``.
        """
        return {column: source[name] for column, name in self.fields.items()}

    def repair(self, differences: Sequence[Difference]) -> int:
        """Mend differences; this one records the source rows' events once more.

        Returns:
            How many differences should now settle. Those without a source row are none of them.

        Raises:
            ConfigurationError: The source is no registered model, or goes by another field than
                its primary key.
        """
        rows = self.source()
        declaration = events.find(rows.model)
        if declaration is None or self.source_key not in ("pk", rows.model._meta.pk.name):
            raise ConfigurationError(
                f"{type(self).__qualname__} cannot publish the rows of {rows.model._meta.label} "
                "again: they are not registered, or not found by primary key. Give it a repair()."
            )
        mendable = [found for found in differences if found.kind != "extra"]
        keys = {found.key for found in mendable}
        backfill.republish(declaration, keys, kind=self.event_type, using=rows.db)
        return len(mendable)

    @classmethod
    def label(cls) -> str:
        return getattr(cls, "name", f"{cls.__module__}.{cls.__qualname__}")


R = TypeVar("R", bound=type[Reconciliation])


class ReconciliationRegistry:
    """All reconciliations of the project by name."""

    def __init__(self) -> None:
        self._by_name: dict[str, Reconciliation] = {}

    def register(self, declared: R) -> R:
        """Declare a reconciliation; a class decorator.

        Raises:
            ConfigurationError: The name is taken, or it names no fields.
        """
        name = declared.label()
        if name in self._by_name:
            raise ConfigurationError(f"Two reconciliations have the name {name!r}. Rename one.")
        if not getattr(declared, "fields", None):
            raise ConfigurationError(f"{name} names no fields: what is to be compared?")
        self._by_name[name] = declared()
        return declared

    def unregister(self, name: str) -> None:
        """Forget one; for tests."""
        self._by_name.pop(name, None)

    def get(self, name: str) -> Reconciliation:
        """Find one by name.

        Raises:
            ConfigurationError: There is none.
        """
        if name not in self._by_name:
            known = ", ".join(sorted(self._by_name)) or "none"
            raise ConfigurationError(f"There is no reconciliation {name!r}. Known: {known}.")
        return self._by_name[name]

    def __iter__(self) -> Iterator[Reconciliation]:
        return iter([self._by_name[name] for name in sorted(self._by_name)])


reconciliations = ReconciliationRegistry()


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a reconciliation came to."""

    compared: int = 0
    missing: int = 0
    stale: int = 0
    extra: int = 0
    in_flight: int = 0
    #: Differences that should settle once their events are consumed.
    repaired: int = 0

    @property
    def left(self) -> int:
        """Differences that nobody mends."""
        return self.missing + self.stale + self.extra - self.repaired


def reconcile(
    declared: Reconciliation,
    *,
    repair: bool = False,
    grace: float = 60.0,
    found: Callable[[Difference], None] = lambda _difference: None,
    told: Callable[[int], None] = lambda _keys: None,
) -> Outcome:
    """Compare a projection with its source, in one pass over both in the order of keys.

    What differs is looked at once more before it counts, since rows change meanwhile. Memory
    holds a batch of differences, however many rows there are.

    Args:
        declared: What is compared.
        repair: Whether to have it mend what it finds.
        grace: Seconds for which a recorded event counts as on its way.
        found: Told of each difference, those in flight included.
        told: Told how many keys were compared since it was last told.

    Raises:
        ConfigurationError: The keys of the two sides do not go together.
    """
    outcome = Outcome()
    for batch in _batches(_candidates(declared, outcome, told)):
        since = timezone.now() - timedelta(seconds=grace)
        real: list[Difference] = []
        for difference in _look_again(declared, batch, since):
            found(difference)
            if difference.in_flight:
                outcome.in_flight += 1
            else:
                real.append(difference)
                setattr(outcome, difference.kind, getattr(outcome, difference.kind) + 1)
        if repair and real:
            outcome.repaired += declared.repair(real)
    return outcome


class _Row(NamedTuple):
    key: Any
    row: Any
    values: Values


def _candidates(
    declared: Reconciliation, outcome: Outcome, told: Callable[[int], None]
) -> Iterator[Any]:
    """Keys of which something differs at first sight."""
    sources = _groups(_ascending(declared, _source_rows(declared), "source"))
    rows = _groups(_ascending(declared, _projection_rows(declared), "projection"))
    unheard = 0
    for key, source, projected in _merge(declared, sources, rows):
        outcome.compared += 1
        unheard += 1
        if unheard == _BATCH:
            told(unheard)
            unheard = 0
        if any(True for _ in _compare(declared, key, source, projected)):
            yield key
    told(unheard)


def _source_rows(declared: Reconciliation, keys: Collection[Any] | None = None) -> Iterator[_Row]:
    columns = [*dict.fromkeys([*declared.fields.values(), *declared.reads])]
    return _rows(declared.source(), declared.source_key, None, columns, keys)


def _projection_rows(
    declared: Reconciliation, keys: Collection[Any] | None = None
) -> Iterator[_Row]:
    columns = list(declared.fields)
    return _rows(declared.projection(), declared.projection_key, "pk", columns, keys)


def _rows(
    rows: QuerySet[Any],
    key: str,
    row: str | None,
    columns: Sequence[str],
    keys: Collection[Any] | None,
) -> Iterator[_Row]:
    rows = rows.filter(**{f"{key}__isnull": False})
    if keys is not None:
        rows = rows.filter(**{f"{key}__in": keys})
    # A grouped queryset has no rows to name.
    named = [key, *([row] if row and not rows.query.group_by else []), *columns]
    ordered = rows.order_by(_order(rows, key)).values_list(*named)
    for values in ordered.iterator(chunk_size=_PAGE):
        own = values[1] if len(named) > len(columns) + 1 else None
        yield _Row(
            values[0], own, dict(zip(columns, values[len(values) - len(columns) :], strict=True))
        )


def _order(rows: QuerySet[Any], key: str) -> Any:
    """Text in the order that Python has too, whatever the database's collation."""
    kind = rows.query.resolve_ref("pk" if key == "pk" else key).output_field
    if not isinstance(kind, (CharField, TextField)):
        return key
    binary = "C" if connections[rows.db].vendor == "postgresql" else "BINARY"
    return Collate(F(key), binary)


def _ascending(declared: Reconciliation, rows: Iterable[_Row], side: str) -> Iterator[_Row]:
    before: Any = None
    for row in rows:
        if before is not None and row.key < before:
            raise ConfigurationError(
                f"The keys of the {side} of {declared.label()} do not come in order: {row.key!r} "
                f"after {before!r}. Compare by a field that the database sorts as Python does."
            )
        before = row.key
        yield row


def _groups(rows: Iterable[_Row]) -> Iterator[tuple[Any, list[_Row]]]:
    for key, group in itertools.groupby(rows, key=lambda row: row.key):
        yield key, list(group)


def _merge(
    declared: Reconciliation,
    sources: Iterator[tuple[Any, list[_Row]]],
    projections: Iterator[tuple[Any, list[_Row]]],
) -> Iterator[tuple[Any, _Row | None, list[_Row]]]:
    source, projected = next(sources, None), next(projections, None)
    while source or projected:
        if source and projected and type(source[0]) is not type(projected[0]):
            raise ConfigurationError(
                f"{declared.label()}: keys of the source are {type(source[0]).__name__}, those of "
                f"the projection {type(projected[0]).__name__}. Cast one of them."
            )
        if source and (not projected or source[0] <= projected[0]):
            key, rows = source
            if len(rows) > 1:
                raise ConfigurationError(
                    f"{declared.label()}: the source has several rows of key {key!r}. Group them."
                )
            of_key: list[_Row] = []
            if projected and projected[0] == key:
                of_key, projected = projected[1], next(projections, None)
            source = next(sources, None)
            yield key, rows[0], of_key
        elif projected:
            key, rows = projected
            projected = next(projections, None)
            yield key, None, rows


def _compare(
    declared: Reconciliation, key: Any, source: _Row | None, projected: Sequence[_Row]
) -> Iterator[Difference]:
    if source is None:
        yield from (Difference(kind="extra", key=key, row=row.row) for row in projected)
        return
    if not projected and declared.complete:
        yield Difference(kind="missing", key=key, row=None)
    expected = declared.expected(source.values) if projected else {}
    for row in projected:
        differing = {
            column: (value, row.values[column])
            for column, value in expected.items()
            if value != row.values[column]
        }
        if differing:
            yield Difference(kind="stale", key=key, row=row.row, fields=differing)


def _look_again(
    declared: Reconciliation, keys: Sequence[Any], since: datetime
) -> Iterator[Difference]:
    rows: dict[Any, list[_Row]] = {key: [] for key in keys}
    for row in _projection_rows(declared, keys):
        rows[row.key].append(row)
    sources = {row.key: row for row in _source_rows(declared, keys)}
    found = [
        difference
        for key in keys
        for difference in _compare(declared, key, sources.get(key), rows[key])
    ]
    # Events last: whatever changed a row after it was read here is young.
    differing = [difference.key for difference in found]
    moving = _in_flight(events.find(declared.source().model), declared.source(), differing, since)
    of_rows = [difference.row for difference in found if difference.row is not None]
    answering = _in_flight(
        events.find(declared.projection().model), declared.projection(), of_rows, since
    )
    for difference in found:
        in_flight = str(difference.key) in moving or str(difference.row) in answering
        yield Difference(
            kind=difference.kind,
            key=difference.key,
            row=difference.row,
            fields=difference.fields,
            in_flight=in_flight,
        )


def _in_flight(
    declaration: ModelEvents | None, rows: QuerySet[Any], keys: Sequence[Any], since: datetime
) -> set[str]:
    """Those keys of which an event was recorded of late, is unpublished, or failed in a receiver."""
    if declaration is None or not keys:
        return set()
    named = [str(key) for key in keys]
    messages = OutboxMessage.objects.using(rows.db).filter(key__in=named, topic=declaration.topic)
    young = messages.filter(occurred_at__gte=since).values_list("key", flat=True)
    waiting = unpublished(messages).values_list("key", flat=True)
    failed = Delivery.objects.using(rows.db).filter(key__in=named, state__in=Delivery.OPEN)
    return {
        *(key for key in [*young, *waiting] if key is not None),
        *(
            key
            for key, topic in failed.values_list("key", "topic")
            if key is not None and topics.parse_wire_topic(topic).topic == declaration.topic
        ),
    }


def _batches(keys: Iterable[Any]) -> Iterator[list[Any]]:
    remaining = iter(keys)
    while batch := list(itertools.islice(remaining, _BATCH)):
        yield batch
