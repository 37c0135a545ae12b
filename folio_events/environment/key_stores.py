"""Java's key and trust stores as librdkafka's options."""

from __future__ import annotations

from pathlib import Path

from folio_events.environment.values import Values
from folio_events.exceptions import ConfigurationError

_JKS = (b"\xfe\xed\xfe\xed", b"\xce\xce\xce\xce")
_DER_SEQUENCE = b"\x30"
#: How the version of PKCS#12 is coded; a bare certificate has something else in its place.
_PKCS12_VERSION = b"\x02\x01\x03"
_SUFFIXES = {".jks": "JKS", ".jceks": "JKS", ".p12": "PKCS12", ".pfx": "PKCS12", ".pem": "PEM"}

#: By what a store is: commands that make of it what is taken; each asks for its passwords.
_AUTHORITIES_FROM = {
    "JKS": "keytool -list -rfc -keystore {path} > {stem}.pem",
    "PKCS12": "openssl pkcs12 -in {path} -nokeys -out {stem}.pem",
    "DER": "openssl x509 -inform DER -in {path} -out {stem}.pem",
}
_KEY_FROM = {
    "JKS": "keytool -importkeystore -srckeystore {path} -destkeystore {stem}.p12 "
    "-deststoretype PKCS12",
    "DER": "openssl pkcs12 -export -in {path} -inkey KEY -out {stem}.p12",
}


def trust_store_options(values: Values) -> dict[str, str]:
    """The options by which librdkafka knows the brokers.

    Raises:
        ConfigurationError: The store is no PEM file. librdkafka takes PKCS#12 for keys alone.
    """
    name, path = values.found("KAFKA_SSL_TRUSTSTORE_LOCATION")
    if not path:
        return {}
    kind = _kind(name, path, values.text("KAFKA_SSL_TRUSTSTORE_TYPE"), _AUTHORITIES_FROM)
    if kind in _AUTHORITIES_FROM:
        raise _refusal(name, path, kind, "pem", _AUTHORITIES_FROM)
    return {"ssl.ca.location": path}


def key_store_options(values: Values) -> dict[str, str]:
    """The options by which librdkafka shows the client's certificate.

    Raises:
        ConfigurationError: The store is neither PKCS#12 with a password nor PEM.
    """
    name, path = values.found("KAFKA_SSL_KEYSTORE_LOCATION")
    if not path:
        return {}
    kind = _kind(name, path, values.text("KAFKA_SSL_KEYSTORE_TYPE"), _KEY_FROM)
    if kind in _KEY_FROM:
        raise _refusal(name, path, kind, "p12", _KEY_FROM)
    password = values.verbatim("KAFKA_SSL_KEYSTORE_PASSWORD")
    if kind == "PKCS12":
        if not password:
            raise ConfigurationError(
                f"{name} is the PKCS#12 file {path!r}, but KAFKA_SSL_KEYSTORE_PASSWORD is not "
                "set. Set it: librdkafka opens no key store without a password."
            )
        return {"ssl.keystore.location": path, "ssl.keystore.password": password}
    options = {"ssl.certificate.location": path, "ssl.key.location": path}
    password = values.verbatim("ssl.key.password") or password
    return options | ({"ssl.key.password": password} if password else {})


def _kind(name: str, path: str, declared: str, convertible: dict[str, str]) -> str:
    """What a store is by its first bytes: Java, too, believes the file before the declared type."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(16)
    except OSError as error:
        kind = declared.upper() or _SUFFIXES.get(Path(path).suffix.lower(), "")
        if kind in convertible:
            return kind
        raise ConfigurationError(
            f"{name} is {path!r}, which cannot be read: {error.strerror}. Name a file that this "
            "process may read."
        ) from error
    if head.startswith(_JKS):
        return "JKS"
    if head.startswith(_DER_SEQUENCE):
        return "PKCS12" if _PKCS12_VERSION in head[2:9] else "DER"
    return "PEM"


def _refusal(
    name: str, path: str, kind: str, suffix: str, commands: dict[str, str]
) -> ConfigurationError:
    stem = str(Path(path).with_suffix(""))
    command = commands[kind].format(path=path, stem=stem)
    said = {"JKS": "a Java key store (JKS)", "PKCS12": "a PKCS#12 file", "DER": "a DER file"}[kind]
    return ConfigurationError(
        f"{name} is {path!r}, {said}, which librdkafka cannot read here. Convert it with "
        f"'{command}' and set {name} to {stem}.{suffix}."
    )
