"""Variables that are set and probably meant otherwise."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

import environ

from folio_events.environment.values import Values
from folio_events.environment.variables import IGNORED, TOPIC_VARIABLES, VARIABLES

#: Names of that many letters and more are nobody's by chance; KAFKA_HOSTS may be anything.
_LONG = 20
_ALIKE = 0.94


def doubts(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Name what an environment seems to say and does not, each with how to mend it.

    Args:
        environment: Name to value; ``os.environ``.
    """
    read = [variable.name for variable in VARIABLES] + [one.name for one in TOPIC_VARIABLES]
    known = {*read, *(ignored.name for ignored in IGNORED)}
    wanted = [name for name in read if len(name) >= _LONG and not environment.get(name)]
    for name, value in sorted(environment.items()):
        if value and name not in known and name.isupper():
            for near in difflib.get_close_matches(name, wanted, n=1, cutoff=_ALIKE):
                yield (
                    f"The environment variable {name} is set, and nothing reads it.",
                    f"Was {near} meant?",
                )
    values = Values(_env(environment))
    if values.text("KAFKA_SECURITY_PROTOCOL").upper() in ("SSL", "SASL_SSL"):
        return
    for kind in ("KEYSTORE", "TRUSTSTORE"):
        name, path = values.found(f"KAFKA_SSL_{kind}_LOCATION")
        if path and values.text("KAFKA_HOST"):
            yield (
                f"{name} is set, but KAFKA_SECURITY_PROTOCOL does not ask for TLS: events travel "
                "in the clear.",
                "Set KAFKA_SECURITY_PROTOCOL to SSL or SASL_SSL, or remove the store.",
            )


def _env(environment: Mapping[str, str]) -> environ.Env:
    env = environ.Env()
    env.ENVIRON = environment
    return env
