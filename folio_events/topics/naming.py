"""Rules for the names of logical topics, one of which the setting TOPIC_NAMING chooses."""

from __future__ import annotations

import re
from collections.abc import Callable

from django.utils.module_loading import import_string

from folio_events.conf import Settings, get_settings
from folio_events.exceptions import ConfigurationError

#: Takes a logical topic and says what is wrong with its name; None or "": nothing.
NamingRule = Callable[[str], str | None]

_EVENT = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
_WORDS = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
#: Words in the singular that end like a plural.
_SINGULAR = re.compile(r"(ss|us|is)$|^(series|species|news)$")
_OPENEDX = re.compile(r"org\.openedx\.[a-z0-9_]+(\.[a-z0-9_]+){2,}\.v[1-9][0-9]*")


def folio_rule(topic: str) -> str | None:
    """``module.entity`` in lower case with hyphens, the entity in the singular; or an event type.

    An event type, ``ITEM_CHECKED_OUT``, follows its module, or stands alone in a namespace.
    FOLIO itself has older topics that break the rule, such as ``users.users``.

    Source:
        FOLIO wiki, "Apache Kafka Messaging System".
    """
    *modules, entity = topic.split(".")
    if not modules and not _EVENT.fullmatch(entity):
        return "it names no module: write 'module.entity', or an event type such as DI_COMPLETED"
    for module in modules:
        if not _WORDS.fullmatch(module):
            return f"{module!r} is not in lower case with hyphens"
    if modules and modules[0].endswith("-storage"):
        return f"the module is {modules[0].removesuffix('-storage')!r}, whoever stores its records"
    if _EVENT.fullmatch(entity):
        return None
    if not _WORDS.fullmatch(entity):
        return (
            f"{entity!r} is neither lower case with hyphens nor an event type in UPPER_SNAKE_CASE"
        )
    word = entity.rpartition("-")[2]
    if word.endswith("s") and not _SINGULAR.search(word):
        return f"{entity!r} is not in the singular"
    return None


def openedx_rule(topic: str) -> str | None:
    """``org.openedx.{subdomain}.{subject}.{action}.v1``, the subject of one or more segments.

    Source:
        Open edX, OEP-41.
    """
    if _OPENEDX.fullmatch(topic):
        return None
    return "it is not of the form 'org.openedx.{subdomain}.{subject}.{action}.v1'"


_RULES: dict[str, NamingRule] = {"folio": folio_rule, "openedx": openedx_rule}


def naming_rule(settings: Settings | None = None) -> NamingRule | None:
    """The rule that TOPIC_NAMING chooses; None: there is none.

    Raises:
        ConfigurationError: It is neither a known rule nor the path of a function.
    """
    chosen = (settings or get_settings()).TOPIC_NAMING
    if chosen is None:
        return None
    if chosen in _RULES:
        return _RULES[chosen]
    try:
        rule: NamingRule = import_string(chosen)
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"FOLIO_EVENTS['TOPIC_NAMING'] {chosen!r} is neither {' nor '.join(map(repr, _RULES))}, "
            f"and cannot be imported: {error}."
        ) from error
    if not callable(rule):
        raise ConfigurationError(f"FOLIO_EVENTS['TOPIC_NAMING'] {chosen!r} is no function.")
    return rule


def naming_fault(pattern: str, rule: NamingRule) -> str | None:
    """What is wrong with a topic, or with what a receiver listens to; None: nothing.

    Args:
        pattern: Logical topic; with ``*`` it is right if some topic that it takes is.
        rule: As ``naming_rule`` returns it.
    """
    faults = [rule(pattern.replace("*", filled)) for filled in ("x", "X", "1")]
    return None if not all(faults) else faults[0]
