"""Listeners with TLS, with passwords or client certificates; their keys live for one run."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from tests.services.packages import ServiceUnavailable
from tests.services.process import Process, failure

PROTOCOLS = ("SASL_SSL", "SSL")
_JAAS = "org.apache.kafka.common.security"


@dataclass
class Security:
    """What clients need for the listeners with TLS."""

    folder: Path
    #: By protocol of the listener, one of PROTOCOLS.
    addresses: dict[str, str] = field(default_factory=dict)
    username: str = "mysite"
    password: str = field(default_factory=lambda: secrets.token_hex(12), repr=False)

    @property
    def authority(self) -> Path:
        """The certificate, in PEM, by which clients know the brokers."""
        return self.folder / "broker.pem"

    @property
    def other_authority(self) -> Path:
        """One that has nothing to do with the brokers."""
        return self.folder / "client.pem"

    def with_password(self, mechanism: str) -> dict[str, str]:
        """librdkafka's options for PLAIN or SCRAM-SHA-512."""
        return {
            "bootstrap.servers": self.addresses["SASL_SSL"],
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": str(self.authority),
            "sasl.mechanism": mechanism,
            "sasl.username": self.username,
            "sasl.password": self.password,
        }

    def with_certificate(self) -> dict[str, str]:
        """librdkafka's options for a client that shows a certificate."""
        return {
            "bootstrap.servers": self.addresses["SSL"],
            "security.protocol": "SSL",
            "ssl.ca.location": str(self.authority),
            "ssl.keystore.location": str(self.folder / "client.p12"),
            "ssl.keystore.password": self.password,
        }

    def make_keys(self) -> None:
        """One pair for the brokers, one for clients, each its own authority."""
        for name in ("broker", "client"):
            self._keytool(
                *("-genkeypair", "-alias", name, "-keyalg", "EC", "-groupname", "secp256r1"),
                *("-dname", f"CN={name}", "-ext", "san=ip:127.0.0.1", "-validity", "2"),
                *("-keystore", f"{name}.p12"),
            )
            self._keytool(
                *("-exportcert", "-rfc", "-alias", name, "-keystore", f"{name}.p12"),
                *("-file", f"{name}.pem"),
            )
        self._keytool("-importcert", "-noprompt", "-file", "client.pem", "-keystore", "trusted.p12")

    def _keytool(self, *arguments: str) -> None:
        keytool = shutil.which("keytool")
        if keytool is None:
            raise ServiceUnavailable("keytool, a part of Java, cannot be found.")
        log = self.folder / "keytool.log"
        store = ("-storetype", "PKCS12", "-storepass", self.password)
        if Process(
            [keytool, *arguments, *store], folder=self.folder, cwd=self.folder, log=log
        ).run():
            raise failure("keytool could not make the keys", log)

    def settings(self) -> dict[str, object]:
        """The brokers' settings, beside the listeners themselves."""
        plain = f'{_JAAS}.plain.PlainLoginModule required user_{self.username}="{self.password}";'
        scram = f"{_JAAS}.scram.ScramLoginModule required;"
        bearer = f"{_JAAS}.oauthbearer.OAuthBearerLoginModule required;"
        return {
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512,OAUTHBEARER",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": plain,
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": scram,
            # Unsigned tokens are taken, for want of an issuer.
            "listener.name.sasl_ssl.oauthbearer.sasl.jaas.config": bearer,
            "listener.name.ssl.ssl.client.auth": "required",
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": self.folder / "broker.p12",
            "ssl.keystore.password": self.password,
            "ssl.truststore.type": "PKCS12",
            "ssl.truststore.location": self.folder / "trusted.p12",
            "ssl.truststore.password": self.password,
        }

    def add_user(self, bootstrap: str) -> None:
        """Make the user known to SCRAM; PLAIN has it in the settings."""
        client = AdminClient({"bootstrap.servers": bootstrap})
        user = UserScramCredentialUpsertion(
            self.username,
            ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096),
            self.password.encode(),
        )
        client.alter_user_scram_credentials([user])[self.username].result(20)
