"""``manage.py check`` of topics: what is declared of them, their names, what consumers read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.core.checks import CheckMessage, Error, register

from folio_events import topics
from folio_events.conf import Settings, get_settings
from folio_events.exceptions import ConfigurationError
from folio_events.provisioning import named_topics, own_topics
from folio_events.receivers import broadcasts, registry
from folio_events.topics.declared import declared_topics
from folio_events.topics.naming import naming_fault, naming_rule


@register("folio_events")
def check_topics(app_configs: Sequence[AppConfig] | None, **_kwargs: Any) -> list[CheckMessage]:
    """TOPICS, CONSUMER_PATTERN, TOPIC_NAMING, and the names of all topics."""
    try:
        settings = get_settings()
    except ConfigurationError:
        return []  # folio_events.E001 says so
    try:
        declared_topics.merged(settings)
    except ConfigurationError as error:
        return [
            Error(str(error), hint="See docs/reference/topics.md.", id="folio_events.E050"),
        ]
    return [
        *_check_tenants_options(settings),
        *_check_pattern(settings),
        *_check_lengths(settings),
        *_check_default_tenant(settings),
        *_check_collisions(settings),
        *_check_naming(settings),
    ]


def _check_tenants_options(settings: Settings) -> Iterable[CheckMessage]:
    if settings.TENANCY is not None and not settings.TENANT_COLLECTION:
        return
    why = "a tenant collection is on" if settings.TENANT_COLLECTION else "TENANCY is None"
    for topic, tenant in declared_topics.of_tenants(settings):
        yield Error(
            f"FOLIO_EVENTS['TOPICS'][{topic!r}] has options for tenant {tenant!r}, but {why}: "
            "its topic is everybody's.",
            hint="Say them of the topic itself, or remove them.",
            id="folio_events.E056",
        )


def _check_pattern(settings: Settings) -> Iterable[CheckMessage]:
    try:
        topics.consumer_pattern(settings)
    except ConfigurationError as error:
        yield Error(
            str(error),
            hint="CONSUMER_PATTERN is KAFKA_EVENTS_CONSUMER_PATTERN. See docs/reference/topics.md.",
            id="folio_events.E051",
        )


def _check_lengths(settings: Settings) -> Iterable[CheckMessage]:
    # With tenants, the shortest name that can be: others are refused when they are met.
    tenant = settings.DEFAULT_TENANT or "x"
    for topic in sorted(named_topics()):
        name = topics.wire_topic(topic, tenant, settings)
        if len(name) > topics.MAX_TOPIC_LENGTH:
            yield Error(
                f"Topic {topic!r} is {name!r} on the broker, {len(name)} characters; "
                f"Kafka takes {topics.MAX_TOPIC_LENGTH}.",
                hint="Give it a shorter name.",
                id="folio_events.E053",
            )


def _check_default_tenant(settings: Settings) -> Iterable[CheckMessage]:
    if settings.DEFAULT_TENANT and (other := topics.stands_for(settings.DEFAULT_TENANT, settings)):
        yield Error(
            f"FOLIO_EVENTS['DEFAULT_TENANT'] {settings.DEFAULT_TENANT!r} is {other} too.",
            hint="Topics of such a tenant would be taken for others. Rename one of them.",
            id="folio_events.E054",
        )


def _check_collisions(settings: Settings) -> Iterable[CheckMessage]:
    without_tenants = replace(settings, TENANCY=None)
    names = {topics.wire_topic(topic, None, without_tenants): topic for topic in named_topics()}
    for one, other in topics.colliding(names):
        yield checks.Warning(
            f"Topics {names[one]!r} and {names[other]!r} differ in '.' and '_' only: "
            "Kafka creates one of them alone.",
            hint="Rename one of them.",
            id="folio_events.W050",
        )


def _check_naming(settings: Settings) -> Iterable[CheckMessage]:
    try:
        rule = naming_rule(settings)
    except ConfigurationError as error:
        yield Error(
            str(error),
            hint="A function takes a topic and returns what is wrong with it, or None.",
            id="folio_events.E052",
        )
        return
    if rule is None:
        return
    own = own_topics()
    for topic in sorted(own):
        if fault := naming_fault(topic, rule):
            yield Error(
                f"Topic {topic!r} breaks the rule {settings.TOPIC_NAMING!r}: {fault}.",
                hint="Rename it, or change FOLIO_EVENTS['TOPIC_NAMING'].",
                id="folio_events.E055",
            )
    for receiver in (*registry, *broadcasts):
        if receiver.topic not in own and (fault := naming_fault(receiver.topic, rule)):
            yield checks.Warning(
                f"Receiver {receiver.name!r} listens to {receiver.topic!r}, which breaks the rule "
                f"{settings.TOPIC_NAMING!r}: {fault}.",
                hint="Mend its topic if it is a slip; else silence this check.",
                id="folio_events.W051",
            )
