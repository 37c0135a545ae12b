"""ModelEvents, what a project declares about a model's events, and the registry of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from django.core.exceptions import FieldDoesNotExist
from django.db.models import CompositePrimaryKey, F, Field, ForeignKey, GeneratedField, Model

from folio_events import dialects, topics
from folio_events.exceptions import ConfigurationError

#: What stands in an event for the value of a private field.
MASK = "***"


class ModelEvents:
    """The events of one model; subclass it and register the subclass.

    The shape of an event's ``old`` and ``new`` is a dict of field name to JSON value.
    """

    #: Logical topic; on the wire with environment and tenant.
    topic: ClassVar[str]
    #: Names of the fields that events show; None shows all but ``exclude``.
    fields: ClassVar[Sequence[str] | None] = None
    exclude: ClassVar[Sequence[str]] = ()
    #: Names of shown fields whose values are hidden: events have MASK in their place.
    private: ClassVar[Sequence[str]] = ()
    #: A DRF serializer that makes ``old`` and ``new``, in place of ``fields``.
    serializer_class: ClassVar[type[Any] | None] = None
    #: A function that makes them: from an instance to a dict of field name to value.
    serializer: ClassVar[Callable[[Any], Mapping[str, Any]] | None] = None
    #: Name of the field whose value is the event's key.
    key: ClassVar[str] = "pk"
    #: The team to ask about these events.
    owner: ClassVar[str] = ""
    #: Wire form of the body: "inventory", "circulation" or "pubsub".
    dialect: ClassVar[str] = "inventory"
    #: Whether events that share a key through different rows are kept in commit order.
    ordered: ClassVar[bool] = True
    #: Whether a save that leaves old and new equal makes no event.
    skip_unchanged: ClassVar[bool] = False
    #: Whether rows that ``loaddata`` saves give events.
    fixtures: ClassVar[bool] = False
    #: Who records a change: "signals" (this process) or "trigger" (PostgreSQL itself).
    capture: ClassVar[str] = "signals"
    #: Whose a row is: a tenant, or a column as ``F("...")``. A back-fill asks it, and a trigger
    #: where a write names no tenant; None refuses that write.
    tenant: ClassVar[str | F | None] = None

    def __init__(self, model: type[Model]) -> None:
        self.model = model
        #: Makes ``old`` and ``new`` of an instance; None where fields are shown as they are.
        self.serialize = self._resolve_serializer()
        self.shown_fields = {} if self.serialize else self._resolve_fields()
        self.key_field = self._resolve(self.key, "key")
        hidden = [self._resolve_private(name) for name in self.private]
        self.tenant_field = (
            self._resolve(self.tenant.name, "tenant")  # type: ignore[attr-defined]  # F's own
            if isinstance(self.tenant, F)
            else None
        )
        #: The fields that are read before and after a change, without repeats: what a row of
        #: this declaration holds, in this order.
        self.captured_fields = self._captured_fields()
        attnames = [field.attname for field in self.captured_fields]
        self.key_position = attnames.index(self.key_field.attname)
        self.shown_positions = [
            (name, attnames.index(field.attname)) for name, field in self.shown_fields.items()
        ]
        self.private_positions = [attnames.index(field.attname) for field in hidden]

    def __str__(self) -> str:
        return f"{type(self).__module__}.{type(self).__qualname__}"

    def _resolve(self, name: str, attribute: str) -> Field[Any, Any]:
        meta = self.model._meta
        if name == "pk":
            return meta.pk
        for field in meta.concrete_fields:
            if name in (field.name, field.attname):
                return field
        try:
            meta.get_field(name)
        except FieldDoesNotExist:
            reason = "it has no such field"
        else:
            reason = "that field has no column of its own"
        raise ConfigurationError(
            f"{self}: {attribute} names {name!r} of {meta.label}, but {reason}."
        )

    def _resolve_serializer(self) -> Callable[[Model], Mapping[str, Any]] | None:
        # As it stands in the class: a function that is asked of an instance becomes a method.
        function = inspect.getattr_static(type(self), "serializer")
        serializer: Callable[[Model], Mapping[str, Any]] | None = getattr(
            function, "__func__", function
        )
        ways = [serializer, self.serializer_class, self.fields or self.exclude or self.private]
        if sum(bool(way) for way in ways) > 1:
            raise ConfigurationError(
                f"{self}: give fields (with exclude and private), serializer_class or serializer, not two."
            )
        if (serializer_class := self.serializer_class) is not None:
            return lambda instance: serializer_class(instance).data
        return serializer

    def _resolve_private(self, name: str) -> Field[Any, Any]:
        field = self._resolve(name, "private")
        if field not in self.shown_fields.values():
            raise ConfigurationError(f"{self}: private names {name!r}, which events do not show.")
        if field == self.key_field:
            raise ConfigurationError(
                f"{self}: private names {name!r}, which is the key: everybody sees it."
            )
        return field

    def _resolve_fields(self) -> dict[str, Field[Any, Any]]:
        concrete = self.model._meta.concrete_fields
        hidden = {self._resolve(name, "exclude").name for name in self.exclude}
        if self.fields is None:
            return {f.name: f for f in concrete if f.name not in hidden}
        if hidden:
            raise ConfigurationError(f"{self}: give fields or exclude, not both.")
        return {name: self._resolve(name, "fields") for name in self.fields}

    def _captured_fields(self) -> tuple[Field[Any, Any], ...]:
        meta = self.model._meta
        if self.serialize is not None:
            return tuple(meta.concrete_fields)
        wanted = [meta.pk, self.key_field, *self.shown_fields.values()]
        return tuple({field.attname: field for field in wanted}.values())

    @property
    def key_is_primary_key(self) -> bool:
        return bool(self.key_field.primary_key)


def value_field(field: Field[Any, Any]) -> Field[Any, Any]:
    """The field whose kind of values a field holds: of a foreign key, that of the key."""
    if isinstance(field, ForeignKey):
        return value_field(field.target_field)
    if isinstance(field, GeneratedField):
        return value_field(field.output_field)  # type: ignore[arg-type]  # always given
    return field


def is_converted(field: Field[Any, Any]) -> bool:
    """Whether Python of others makes the values of a field when they are read."""
    convert = getattr(type(value_field(field)), "from_db_value", None)
    return convert is not None and not convert.__module__.startswith("django.")


E = TypeVar("E", bound=type[ModelEvents])


class EventsRegistry:
    """Which models give events, and the topics that ``publish()`` is declared for."""

    def __init__(self) -> None:
        self._by_model: dict[type[Model], ModelEvents] = {}
        #: What each write asks for, found out once for each registration.
        self._found: dict[type[Model], tuple[ModelEvents, ...]] = {}
        self._shares_keys: dict[ModelEvents, bool] = {}

    def register(self, model: type[Model]) -> Callable[[E], E]:
        """Declare the events of a model; a class decorator.

        Raises:
            ConfigurationError: The model is abstract, has a composite primary key or is
                registered already, or the declaration names a topic, field or dialect that cannot be.
        """

        def decorate(declaration: E) -> E:
            if model._meta.abstract or model._meta.proxy:
                raise ConfigurationError(
                    f"{model._meta.label} is abstract or a proxy; register the model that has the table."
                )
            if isinstance(model._meta.pk, CompositePrimaryKey):
                raise ConfigurationError(
                    f"{model._meta.label} has a composite primary key, which events cannot go by yet: "
                    "publish() its events instead."
                )
            if model in self._by_model:
                raise ConfigurationError(
                    f"{model._meta.label} is registered twice: by {self._by_model[model]} and "
                    f"{declaration.__module__}.{declaration.__qualname__}. Keep one."
                )
            if not issubclass(declaration, ModelEvents):
                raise ConfigurationError(
                    f"{declaration.__qualname__} must be a subclass of ModelEvents."
                )
            if not hasattr(declaration, "topic"):
                raise ConfigurationError(
                    f"{declaration.__module__}.{declaration.__qualname__} names no topic."
                )
            topics.validate_topic(declaration.topic)
            dialects.validate_dialect(declaration.dialect)
            if declaration.capture not in ("signals", "trigger"):
                raise ConfigurationError(
                    f"{declaration.__module__}.{declaration.__qualname__}: capture must be "
                    f"'signals' or 'trigger', not {declaration.capture!r}."
                )
            self._by_model[model] = declaration(model)
            self._forget_found()
            return declaration

        return decorate

    def unregister(self, model: type[Model]) -> None:
        """Forget a model; for tests."""
        self._by_model.pop(model, None)
        self._forget_found()

    def _forget_found(self) -> None:
        self._found.clear()
        self._shares_keys.clear()

    def find(self, model: type[Model]) -> ModelEvents | None:
        """The declaration of a model, or of the nearest model it inherits from or stands for."""
        return next((self._by_model[m] for m in model.__mro__ if m in self._by_model), None)

    def find_all(self, model: type[Model]) -> tuple[ModelEvents, ...]:
        """The declarations of all tables that a row of a model stands in, parents' first.

        Without those of tables that have triggers: nobody else has to record their changes.
        """
        found = self._found.get(model)
        if found is None:
            by_model = self._by_model
            declared = (by_model[m] for m in reversed(model.__mro__) if m in by_model)
            found = tuple(d for d in declared if d.capture == "signals")
            self._found[model] = found
        return found

    def topics(self) -> list[str]:
        """Logical topics of all declarations, sorted."""
        return sorted({declaration.topic for declaration in self})

    def shares_topic(self, declaration: ModelEvents) -> bool:
        """Whether another model's events go to the same topic."""
        return any(d.topic == declaration.topic and d is not declaration for d in self)

    def shares_keys(self, declaration: ModelEvents) -> bool:
        """Whether different rows may give events of one key, which a lock then orders."""
        shares = self._shares_keys.get(declaration)
        if shares is None:
            shares = not declaration.key_is_primary_key or self.shares_topic(declaration)
            self._shares_keys[declaration] = shares
        return shares

    def __iter__(self) -> Iterator[ModelEvents]:
        return iter(list(self._by_model.values()))

    def __len__(self) -> int:
        return len(self._by_model)


events = EventsRegistry()
