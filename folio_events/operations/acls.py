"""The rights on Kafka that relay, consumers and commands need, in either topology."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from folio_events import topics
from folio_events.conf import get_settings
from folio_events.provisioning import named_topics, own_topics, wanted_topics
from folio_events.receivers import registry

Role = Literal["producer", "consumer", "operator"]

#: What each role does to topics. Source: Kafka's manual, "Authorization and ACLs".
_OPERATIONS = {
    # DescribeConfigs: the relay keeps to each topic's limit.
    "producer": ("Write", "Describe", "DescribeConfigs"),
    "consumer": ("Read", "Describe"),
    "operator": (
        "Create",
        "Alter",
        "AlterConfigs",
        "Delete",
        "Describe",
        "DescribeConfigs",
        "Read",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Acl:
    """A right of a principal to some topics, or groups, of one kind."""

    role: Role
    resource: Literal["topic", "group"]
    #: "prefixed": every name that begins so.
    pattern: Literal["literal", "prefixed"]
    names: tuple[str, ...]
    operations: tuple[str, ...]

    def command(self, principal: str, bootstrap: str) -> str:
        """The call of Kafka's own tool that gives the right."""
        words = [
            "kafka-acls.sh", "--bootstrap-server", bootstrap, "--add",
            "--allow-principal", principal,
            *(word for operation in self.operations for word in ("--operation", operation)),
            *(word for name in self.names for word in (f"--{self.resource}", name)),
            "--resource-pattern-type", self.pattern,
        ]  # fmt: skip
        return shlex.join(words)


def acls(roles: Iterable[Role], *, tenants: Collection[str] = ()) -> list[Acl]:
    """The rights of this project.

    With a tenant collection all tenants share a topic: there is no right to one tenant's events,
    and ``tenants`` says nothing. Where tenants have topics of their own and none is named, the
    rights are to every topic of the environment: those of tenants to come have no names yet.

    Args:
        roles: "producer" is the relay, "consumer" ``consume_events``, "operator" what creates,
            changes and deletes topics. A relay that creates topics itself (CREATE_TOPICS) needs
            "operator" too.
        tenants: Whose topics.

    Raises:
        InvalidTenantError: A tenant cannot be a segment of a topic.
    """
    found: list[Acl] = []
    for role in roles:
        found += _topic_acls(role, tenants)
        groups = tuple(registry.groups())
        if role == "consumer" and groups:
            found.append(
                Acl(
                    role=role,
                    resource="group",
                    pattern="literal",
                    names=groups,
                    operations=("Read", "Describe"),
                )
            )
    return found


def _topic_acls(role: Role, tenants: Collection[str]) -> Iterator[Acl]:
    settings = get_settings()
    each_tenants = settings.TENANCY is not None and not settings.TENANT_COLLECTION
    if each_tenants and not tenants:
        yield _acl(role, "prefixed", [f"{settings.ENV}."])
        return
    listened = {receiver.topic for receiver in registry}
    patterns = sorted(one for one in listened if "*" in one) if role == "consumer" else []
    names = {
        "producer": own_topics(),
        "consumer": {one for one in listened if "*" not in one},
        "operator": named_topics(),
    }[role]
    literal = wanted_topics(tenants, only=names).specs if names else {}
    if literal:
        yield _acl(role, "literal", literal)
    prefixes = {
        topics.wire_topic(pattern.partition("*")[0], tenant)
        for pattern in patterns
        for tenant in (sorted(tenants) if each_tenants else [None])
    }
    if prefixes:
        yield _acl(role, "prefixed", prefixes)


def _acl(role: Role, pattern: Literal["literal", "prefixed"], names: Iterable[str]) -> Acl:
    return Acl(
        role=role,
        resource="topic",
        pattern=pattern,
        names=tuple(sorted(names)),
        operations=_OPERATIONS[role],
    )
