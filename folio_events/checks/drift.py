"""``manage.py check --deploy``: topics on the broker that are not as declared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Warning, register  # noqa: A004
from django.db import connections

from folio_events.brokers import get_broker
from folio_events.exceptions import BrokerError, ConfigurationError, MissingTenantError
from folio_events.provisioning import Drift, compare, known_tenants, wanted_topics

#: Most differences that a warning names.
_NAMED = 5


# With --deploy alone: no start should wait for the broker.
@register("folio_events_topics", deploy=True)
def check_drift(app_configs: Sequence[AppConfig] | None, **_kwargs: Any) -> list[CheckMessage]:
    """Topics that are not as declared; asks the broker. Missing ones are no fault."""
    try:
        drift = _drift()
    except ConfigurationError:
        return []  # other checks say so
    except BrokerError as error:
        return [
            Warning(
                f"Topics could not be compared with their declarations: {error}",
                hint="Check again where the broker answers, with 'manage.py create_topics --check'.",
                id="folio_events.W061",
            )
        ]
    if not drift:
        return []
    more = [f"and {len(drift) - _NAMED} more"] if len(drift) > _NAMED else []
    return [
        Warning(
            f"{len({one.topic for one in drift})} topics are not as declared: "
            f"{'; '.join([*map(str, drift[:_NAMED]), *more])}.",
            hint="Change the declaration, or the topic: 'manage.py create_topics --alter' sets "
            "settings, '--grow' adds partitions. See docs/howto/operate-topics.md.",
            id="folio_events.W060",
        )
    ]


def _drift() -> list[Drift]:
    broker = get_broker()
    if any(map(broker.lives_in, connections)):
        return []  # without --database, a check reads none
    try:
        return compare(wanted_topics(known_tenants(broker)), broker).drift
    except MissingTenantError:
        return []  # no tenant has topics yet
