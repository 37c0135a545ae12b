"""ModelEvents, what a project declares about a model's events, and the registry of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from django.core.exceptions import FieldDoesNotExist
from django.db.models import CompositePrimaryKey, Field, Model

from folio_events import dialects, topics
from folio_events.exceptions import ConfigurationError


class ModelEvents:
    """The events of one model; subclass it and register the subclass.

    The shape of an event's ``old`` and ``new`` is a dict of field name to JSON value.
    """

    #: Logical topic; on the wire with environment and tenant.
    topic: ClassVar[str]
    #: Names of the fields that events show; None shows all but ``exclude``.
    fields: ClassVar[Sequence[str] | None] = None
    exclude: ClassVar[Sequence[str]] = ()
    #: A DRF serializer that makes ``old`` and ``new``, in place of ``fields``.
    serializer_class: ClassVar[type[Any] | None] = None
    #: Name of the field whose value is the event's key.
    key: ClassVar[str] = "pk"
    #: The team to ask about these events.
    owner: ClassVar[str] = ""
    #: Wire form of the body: "inventory" or "circulation".
    dialect: ClassVar[str] = "inventory"
    #: Whether events that share a key through different rows are kept in commit order.
    ordered: ClassVar[bool] = True
    #: Whether a save that leaves old and new equal makes no event.
    skip_unchanged: ClassVar[bool] = False

    def __init__(self, model: type[Model]) -> None:
        self.model = model
        if self.serializer_class is None:
            self.shown_fields = self._resolve_fields()
        elif self.fields is not None or self.exclude:
            raise ConfigurationError(f"{self}: give fields, exclude or serializer_class, not two.")
        else:
            self.shown_fields = {}
        self.key_field = self._resolve(self.key, "key")

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

    def _resolve_fields(self) -> dict[str, Field[Any, Any]]:
        concrete = self.model._meta.concrete_fields
        hidden = {self._resolve(name, "exclude").name for name in self.exclude}
        if self.fields is None:
            return {f.name: f for f in concrete if f.name not in hidden}
        if hidden:
            raise ConfigurationError(f"{self}: give fields or exclude, not both.")
        return {name: self._resolve(name, "fields") for name in self.fields}

    @property
    def key_is_primary_key(self) -> bool:
        return bool(self.key_field.primary_key)


E = TypeVar("E", bound=type[ModelEvents])


class EventsRegistry:
    """Which models give events, and the topics that ``publish()`` is declared for."""

    def __init__(self) -> None:
        self._by_model: dict[type[Model], ModelEvents] = {}

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
            self._by_model[model] = declaration(model)
            return declaration

        return decorate

    def unregister(self, model: type[Model]) -> None:
        """Forget a model; for tests."""
        self._by_model.pop(model, None)

    def find(self, model: type[Model]) -> ModelEvents | None:
        """The declaration of a model, or of the nearest model it inherits from or stands for."""
        found = self.find_all(model)
        return found[-1] if found else None

    def find_all(self, model: type[Model]) -> list[ModelEvents]:
        """The declarations of all tables that a row of a model stands in, parents' first."""
        by_model = self._by_model
        return [by_model[m] for m in reversed(model.__mro__) if m in by_model]

    def topics(self) -> list[str]:
        """Logical topics of all declarations, sorted."""
        return sorted({declaration.topic for declaration in self})

    def shares_topic(self, declaration: ModelEvents) -> bool:
        """Whether another model's events go to the same topic."""
        return any(d.topic == declaration.topic and d is not declaration for d in self)

    def __iter__(self) -> Iterator[ModelEvents]:
        return iter(list(self._by_model.values()))

    def __len__(self) -> int:
        return len(self._by_model)


events = EventsRegistry()
