"""Why Kafka cannot be reached, in words that say what to mend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError

_HINTS = {
    KafkaError._AUTHENTICATION: (  # noqa: SLF001 - confluent-kafka's spelling of local errors
        "Mend 'sasl.mechanism', 'sasl.username' or 'sasl.password'."
    ),
    KafkaError._SSL: (  # noqa: SLF001
        "Mend 'ssl.ca.location', or the client's own certificate."
    ),
    KafkaError._RESOLVE: "Mend 'bootstrap.servers'.",  # noqa: SLF001
}
_OTHER_HINT = "Is it up, and is 'security.protocol', {protocol} here, that of its listener?"


class Trouble:
    """What clients last said of their connections; their ``error_cb``.

    librdkafka connects in the background, again and again. A call that needs the connection
    only says that it has waited in vain.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._protocol = options.get("security.protocol", "plaintext")
        self._servers = options.get("bootstrap.servers") or options.get("metadata.broker.list")
        self._given = options.get("error_cb")
        self._last: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        # That all brokers are down follows what each of them had to say.
        if self._last is None or error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self._last = error
        if self._given is not None:
            self._given(error)

    @property
    def needs_a_person(self) -> bool:
        """Whether waiting will hardly help: credentials or certificates are wrong."""
        return self._last is not None and _code(self._last) in (
            KafkaError._AUTHENTICATION,  # noqa: SLF001
            KafkaError._SSL,  # noqa: SLF001
        )

    def over(self) -> None:
        """Forget it: the brokers have answered."""
        self._last = None

    def explain(self, text: str) -> str:
        """Add to what a call has said why that is, and what to mend."""
        if self._last is None:
            return f"{text}; bootstrap.servers is {self._servers}."
        hint = _HINTS.get(_code(self._last), _OTHER_HINT).format(protocol=self._protocol)
        return f"{text}: {self._last.str()}. {hint}"


def _code(error: KafkaError) -> int:
    # What OpenSSL says goes now and then under the code of a broken connection.
    return KafkaError._SSL if "SSL routines" in error.str() else error.code()  # noqa: SLF001
