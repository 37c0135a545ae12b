"""FOLIO's environment variables as FOLIO_EVENTS."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import confluent_kafka.cimpl
import environ
import pytest

from folio_events import RetryPolicy, checks, receiver, settings_from_env
from folio_events.brokers.kafka import KafkaBroker
from folio_events.brokers.kafka.options import Options
from folio_events.conf import DATABASE_BROKER, KAFKA_BROKER, Settings, get_settings
from folio_events.environment import doubts
from folio_events.environment.variables import (
    CLIENT_PROPERTIES,
    IGNORED,
    TOPIC_VARIABLES,
    VARIABLES,
    ClientProperty,
)
from folio_events.event import Event
from folio_events.exceptions import ConfigurationError
from folio_events.receivers import registry
from folio_events.topics.declared import topic_options
from tests.pages import page
from tests.unit.vectors import cases

PASSWORD = "$ecret-and-never-shown"
#: A variable that is read, and a value of it that changes the settings.
SAID: dict[str, str] = {
    "KAFKA_HOST": "kafka",
    "KAFKA_PORT": "29092",
    "ENV": "orchid",
    "REPLICATION_FACTOR": "3",
    "NUMBER_OF_PARTITIONS": "10",
    "MAX_REQUEST_SIZE": "4000000",
    "KAFKA_PRODUCER_TENANT_COLLECTION": "ALL",
    "KAFKA_EVENTS_CONSUMER_PATTERN": r"folio\.ALL\..*",
    "KAFKA_SECURITY_PROTOCOL": "SSL",
    "KAFKA_SSL_TRUSTSTORE_LOCATION": "{pem}",
    "KAFKA_SSL_KEYSTORE_LOCATION": "{pem}",
    "KAFKA_SSL_KEYSTORE_PASSWORD": PASSWORD,
    "ssl.key.password": PASSWORD,
    "ssl.endpoint.identification.algorithm": "none",
    "KAFKA_CONSUMER_MAX_POLL_RECORDS": "50",
    "KAFKA_RETRY_INTERVAL_MS": "2000",
    "KAFKA_RETRY_DELIVERY_ATTEMPTS": "6",
}


def env_of(variables: Mapping[str, str]) -> environ.Env:
    env = environ.Env()
    env.ENVIRON = dict(variables)
    return env


def read(**variables: str) -> dict[str, Any]:
    """FOLIO_EVENTS as an environment of these variables alone makes it."""
    return settings_from_env(env_of(variables))


def options(**variables: str) -> dict[str, Any]:
    found: dict[str, Any] = read(**{"KAFKA_HOST": "kafka", **variables})["BROKER"]["OPTIONS"]
    return found


def given(case: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in case["input"].items() if value is not None}


def test_an_empty_environment_has_the_embedded_default() -> None:
    """Without KAFKA_HOST the database broker serves, under FOLIO's own ENV."""
    assert read() == {"ENV": "folio", "BROKER": {"BACKEND": DATABASE_BROKER}}


@pytest.mark.parametrize("blank", ["", "  "], ids=repr)
def test_blank_variables_are_as_if_unset(blank: str) -> None:
    """Module descriptors and compose files set many to nothing."""
    names = [variable.name for variable in VARIABLES] + [one.name for one in TOPIC_VARIABLES]
    names += [name for given in CLIENT_PROPERTIES for name in given.names]
    # A blank collection is a mistake to upstream, too; an empty one is none.
    names = [name for name in names if not blank or "COLLECTION" not in name]

    assert read(**dict.fromkeys(names, blank)) == read()
    names.remove("KAFKA_HOST")
    assert options(**dict.fromkeys(names, blank)) == options()


# The tables


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_each_variable_of_the_table_is_read_by_each_of_its_names(
    variable: Any, tmp_path: Path
) -> None:
    """The settings differ from those without it, and are the same by all its names."""
    if variable.name.endswith("_TYPE") or variable.name == "DOMAIN_EVENTS_ENABLED":
        return  # these can only be refused, which is shown below
    pem = tmp_path / "key.pem"
    pem.write_text("-----BEGIN CERTIFICATE-----\n")
    said = {name: value.format(pem=pem) for name, value in SAID.items()}
    base = {"KAFKA_HOST": "other", "KAFKA_SSL_KEYSTORE_LOCATION": str(pem)}
    base.pop(variable.name, None)

    found = [read(**base, **{n: said[variable.name]}) for n in (variable.name, *variable.others)]

    assert found[0] != read(**base)
    assert all(one == found[0] for one in found)


def test_what_comes_out_is_taken_as_settings(settings: Any, tmp_path: Path) -> None:
    """All keys that any environment gives are known ones, with values that pass the checks."""
    store = tmp_path / "store.pem"
    store.write_text("-----BEGIN CERTIFICATE-----\n")
    topics = dict.fromkeys([one.name for one in TOPIC_VARIABLES], "2000")
    said = {name: value.format(pem=store) for name, value in SAID.items() if "STORE" not in name}
    settings.FOLIO_EVENTS = read(**said, **topics, DI_COMPLETED_PARTITIONS="3") | {"GROUP": "g"}

    found = get_settings()

    assert checks.check_settings(None) == []
    assert (found.ENV, found.TENANCY, found.TENANT_COLLECTION) == ("orchid", "folio", "ALL")
    assert found.CONSUMER_PATTERN == r"folio\.ALL\..*"
    assert (found.TOPIC_PARTITIONS, found.TOPIC_REPLICATION) == (10, 3)
    assert found.CONSUMER_BATCH_SIZE == 50
    assert (found.RETRY_ATTEMPTS, found.RETRY_BACKOFF) == (6, 2.0)
    assert found.BROKER["BACKEND"] == KAFKA_BROKER
    assert found.BROKER["OPTIONS"]["producer"] == {"message.max.bytes": 4_000_000}


@pytest.mark.parametrize("ignored", IGNORED, ids=lambda ignored: ignored.name)
def test_a_variable_that_means_nothing_here_changes_nothing(ignored: Any) -> None:
    """It is neither believed nor refused."""
    assert options(**{ignored.name: "anything"}) == options()


def test_no_variable_is_in_two_tables() -> None:
    """Each has one meaning."""
    names = [name for variable in VARIABLES for name in (variable.name, *variable.others)]
    names += [one.name for one in TOPIC_VARIABLES] + [one.name for one in IGNORED]

    assert len(names) == len(set(names))


def test_the_defaults_that_the_table_names_are_those_of_the_settings() -> None:
    """What is said to hold without a variable holds."""
    said = {variable.becomes.strip("`"): variable.unset for variable in VARIABLES}
    defaults = Settings()

    for key in ("TOPIC_PARTITIONS", "CONSUMER_BATCH_SIZE", "RETRY_ATTEMPTS"):
        assert said[key] == f"`{getattr(defaults, key)}`"
    assert said["RETRY_BACKOFF"] == f"`{defaults.RETRY_BACKOFF:.0f}` second"
    assert defaults.TOPIC_REPLICATION == -1


def test_what_the_operators_page_shows_is_taken() -> None:
    """Each of its environments is read without a refusal, and changes something."""
    blocks = page("docs/howto/operate-in-folio.md").blocks("sh")
    assert len(blocks) > 4
    for block in blocks:
        said = dict(line.split("=", 1) for line in block.text.splitlines() if line)
        if "KAFKA_SSL_KEYSTORE_LOCATION" in said:
            with pytest.raises(ConfigurationError, match=r"trust\.pem', which cannot be read"):
                read(**said)
            said = {name: value for name, value in said.items() if "STORE" not in name}
        assert read(**said) != read()


# Where Kafka is


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("kafka", "", "kafka:9092"),
        ("kafka", "29092", "kafka:29092"),
        ("kafka:1234", "29092", "kafka:1234"),
        ("a, b:2 ,c", "3", "a:3,b:2,c:3"),
        ("a,,b", "", "a:9092,b:9092"),
        ("[::1]", "3", "[::1]:3"),
        ("[::1]:2", "3", "[::1]:2"),
    ],
)
def test_host_and_port_become_bootstrap_servers(host: str, port: str, expected: str) -> None:
    """KAFKA_HOST may list several, each with or without a port of its own."""
    assert options(KAFKA_HOST=host, KAFKA_PORT=port)["bootstrap.servers"] == expected


def test_a_list_of_no_hosts_is_refused() -> None:
    """It was meant to say something."""
    with pytest.raises(ConfigurationError, match="KAFKA_HOST is ',', which names no host"):
        read(KAFKA_HOST=" , ")


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    """Before a client tries to connect to it."""
    with pytest.raises(ConfigurationError, match=f"KAFKA_PORT .* from 1 to 65535, not '{port}'"):
        options(KAFKA_PORT=port)


def test_what_kubernetes_takes_for_a_port_is_refused_by_name() -> None:
    """A service with the name kafka sets KAFKA_PORT to an address in each pod."""
    with pytest.raises(ConfigurationError, match=r"KAFKA_PORT .*Kubernetes.*enableServiceLinks"):
        options(KAFKA_PORT="tcp://10.0.0.7:9092")


@pytest.mark.parametrize("case", cases("environment"))
def test_kafka_is_configured_where_folio_has_a_host(case: dict[str, Any]) -> None:
    """FOLIO's defaults but two: without host the database serves; replicas are the broker's."""
    wanted = case["expected"]
    said = case["input"]
    variables = said.get("env", {}) or {
        name.partition(" ")[0]: value for name, value in said.items() if isinstance(value, str)
    }
    found = read(**variables)

    assert found["ENV"] == wanted.get("environment", "folio")
    configured = found["BROKER"]["BACKEND"] == KAFKA_BROKER
    assert configured is wanted.get("kafka_configured", bool(variables.get("KAFKA_HOST")))
    if configured:
        host, _, port = found["BROKER"]["OPTIONS"]["bootstrap.servers"].rpartition(":")
        assert host == wanted.get("host", "kafka")
        assert port == wanted.get("port", "9092")
    if variables.get("REPLICATION_FACTOR"):
        assert found["TOPIC_REPLICATION"] == wanted["replication_factor"]
    else:
        assert "TOPIC_REPLICATION" not in found


# Names


@pytest.mark.parametrize("case", cases("env_name"))
def test_environment_names_are_folios(case: dict[str, Any]) -> None:
    """What FOLIO takes, refuses and replaces, we do."""
    if not case["expected"]["valid"]:
        with pytest.raises(ConfigurationError, match=f"ENV {re.escape(repr(given(case)['ENV']))}"):
            read(**given(case))
        return
    assert read(**given(case))["ENV"] == case["expected"]["env"]


def test_env_comes_before_its_older_names() -> None:
    """As in FOLIO: ENV, then env, then environment."""
    assert read(environment="c")["ENV"] == "c"
    assert read(environment="c", env="b")["ENV"] == "b"
    assert read(environment="c", env="b", ENV="a")["ENV"] == "a"


@pytest.mark.parametrize("case", cases("tenant_collection"))
def test_tenant_collections_are_folios(case: dict[str, Any]) -> None:
    """What FOLIO takes, refuses and ignores, we do; the error has FOLIO's variable and rule."""
    expected = case["expected"]

    if not expected["valid"]:
        with pytest.raises(ConfigurationError) as caught:
            read(**given(case))
        for part in ("KAFKA_PRODUCER_TENANT_COLLECTION", "[A-Z][A-Z0-9]{0,30}"):
            assert part in expected["error"]
            assert part in str(caught.value)
        return
    found = read(**given(case))
    assert ("TENANT_COLLECTION" in found) is expected["enabled"]
    assert found.get("TENANCY") == ("folio" if expected["enabled"] else None)


# TLS


@pytest.mark.parametrize("said", ["SSL", "ssl"])
def test_the_security_protocol_is_taken_over(said: str) -> None:
    """PLAINTEXT where none is named; capitals make no difference, as in Java."""
    assert options()["security.protocol"] == "PLAINTEXT"
    assert options(KAFKA_SECURITY_PROTOCOL=said)["security.protocol"] == "SSL"


def test_a_security_protocol_that_kafka_does_not_have_is_refused() -> None:
    """The error lists those it has."""
    with pytest.raises(ConfigurationError, match=r"KAFKA_SECURITY_PROTOCOL .*SASL_SSL, not 'TLS'"):
        options(KAFKA_SECURITY_PROTOCOL="TLS")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of keys in stores of every kind, made by Java and OpenSSL."""
    if not shutil.which("keytool") or not shutil.which("openssl"):
        pytest.skip("keytool and openssl make the stores")
    folder = tmp_path_factory.mktemp("stores")
    for command in (
        "keytool -genkeypair -alias c -keyalg EC -groupname secp256r1 -dname CN=c -validity 2 "
        "-storetype PKCS12 -keystore key.p12 {p}",
        "keytool -importkeystore -srckeystore key.p12 -destkeystore key.jks -deststoretype JKS "
        "-srcstorepass {password} -deststorepass {password} -destkeypass {password}",
        "keytool -exportcert -rfc -alias c -keystore key.p12 -file trust.pem {p}",
        "keytool -exportcert -alias c -keystore key.p12 -file trust.der {p}",
        "keytool -importcert -noprompt -alias c -file trust.pem -storetype PKCS12 "
        "-keystore trust.p12 {p}",
        "keytool -importcert -noprompt -alias c -file trust.pem -storetype JKS "
        "-keystore trust.jks {p}",
        "openssl pkcs12 -in key.p12 -out key.pem -passin pass:{password} -passout pass:{password}",
    ):
        line = command.replace("{p}", "-storepass {password}").format(password=f"'{PASSWORD}'")
        subprocess.run(line, shell=True, cwd=folder, check=True, capture_output=True)
    return folder


def takes(found: Mapping[str, Any]) -> None:
    """Have librdkafka read the stores; it raises an error if it cannot."""
    KafkaBroker({**found, "bootstrap.servers": "127.0.0.1:1"}).close()


def test_a_trust_store_in_pem_becomes_the_authorities(stores: Path) -> None:
    """librdkafka reads it, whatever type is declared."""
    found = options(
        KAFKA_SECURITY_PROTOCOL="SSL",
        KAFKA_SSL_TRUSTSTORE_LOCATION=f"{stores}/trust.pem",
        KAFKA_SSL_TRUSTSTORE_TYPE="JKS",
        KAFKA_SSL_TRUSTSTORE_PASSWORD="unused",
    )

    assert found["ssl.ca.location"] == f"{stores}/trust.pem"
    takes(found)


def test_a_key_store_in_pkcs12_is_taken_with_its_password(stores: Path) -> None:
    """Also a password that begins as a reference of django-environ does."""
    found = options(
        KAFKA_SECURITY_PROTOCOL="SSL",
        KAFKA_SSL_KEYSTORE_LOCATION=f"{stores}/key.p12",
        KAFKA_SSL_KEYSTORE_PASSWORD=PASSWORD,
    )

    assert found["ssl.keystore.location"] == f"{stores}/key.p12"
    assert found["ssl.keystore.password"] == PASSWORD
    takes(found)


@pytest.mark.parametrize("name", ["KAFKA_SSL_KEYSTORE_PASSWORD", "ssl.key.password"])
def test_a_key_store_in_pem_is_certificate_and_key(stores: Path, name: str) -> None:
    """Kafka's PEM stores hold both, the key with a password or without."""
    path = f"{stores}/key.pem"

    found = options(
        **{
            "KAFKA_SECURITY_PROTOCOL": "SSL",
            "KAFKA_SSL_KEYSTORE_LOCATION": path,
            name: PASSWORD,
        }
    )

    assert (found["ssl.certificate.location"], found["ssl.key.location"]) == (path, path)
    takes(found)


#: By store: the variable, and whether the command makes a file that is taken instead.
REFUSED = {
    "trust.jks": "KAFKA_SSL_TRUSTSTORE_LOCATION",
    "trust.p12": "KAFKA_SSL_TRUSTSTORE_LOCATION",
    "trust.der": "KAFKA_SSL_TRUSTSTORE_LOCATION",
    "key.jks": "KAFKA_SSL_KEYSTORE_LOCATION",
}


@pytest.mark.parametrize("store", REFUSED)
def test_a_store_that_librdkafka_cannot_read_is_refused_with_the_command_that_converts_it(
    stores: Path, store: str, tmp_path: Path
) -> None:
    """The command, run as it stands, makes a store that is taken."""
    variable = REFUSED[store]
    path = shutil.copy(stores / store, tmp_path)
    said = {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_KEYSTORE_PASSWORD": PASSWORD}

    with pytest.raises(ConfigurationError) as caught:
        options(**said, **{variable: str(path)})

    found = re.search(rf"^{variable} is .*Convert it with '(.*)' and set {variable} to (\S+)\.$",
                      str(caught.value))  # fmt: skip
    assert found, caught.value
    assert PASSWORD not in str(caught.value)
    # It asks for each store's password, some of them twice.
    done = subprocess.run(
        found[1].replace("openssl pkcs12", "openssl pkcs12 -passin stdin"),
        shell=True,
        input=f"{PASSWORD}\n" * 4,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    takes(options(**said, **{variable: found[2]}))


@pytest.mark.parametrize("kind", ["KEYSTORE", "TRUSTSTORE"])
def test_a_java_key_store_is_refused_where_it_cannot_be_read_too(kind: str) -> None:
    """Its name or its declared type say enough."""
    name = f"KAFKA_SSL_{kind}_LOCATION"

    with pytest.raises(ConfigurationError, match=rf"{name} .*\(JKS\).*keytool"):
        options(**{name: "/nowhere/store.jks"})
    with pytest.raises(ConfigurationError, match=rf"{name} .*\(JKS\).*keytool"):
        options(**{name: "/nowhere/store", f"KAFKA_SSL_{kind}_TYPE": "jks"})


@pytest.mark.parametrize("kind", ["KEYSTORE", "TRUSTSTORE"])
def test_a_store_that_cannot_be_read_is_named(kind: str) -> None:
    """With the variable and the reason."""
    name = f"KAFKA_SSL_{kind}_LOCATION"

    with pytest.raises(ConfigurationError, match=f"{name} is '/nowhere/a.pem'.*No such file"):
        options(**{name: "/nowhere/a.pem"})


def test_a_wrong_password_is_not_repeated(stores: Path) -> None:
    """librdkafka says what is wrong without it."""
    found = options(
        KAFKA_SECURITY_PROTOCOL="SSL",
        KAFKA_SSL_KEYSTORE_LOCATION=f"{stores}/key.p12",
        KAFKA_SSL_KEYSTORE_PASSWORD="wrong-and-secret",
    )

    with pytest.raises(ConfigurationError, match="PKCS#12") as caught:
        takes(found)

    assert "wrong-and-secret" not in str(caught.value)


def test_a_key_store_without_password_is_refused(stores: Path) -> None:
    """librdkafka would refuse it by a name that the operator has not used."""
    with pytest.raises(ConfigurationError, match="KAFKA_SSL_KEYSTORE_PASSWORD is not set"):
        options(KAFKA_SSL_KEYSTORE_LOCATION=f"{stores}/key.p12")


# Retries


def test_receivers_without_a_policy_have_that_of_the_environment(settings: Any) -> None:
    """Interval and attempts are FOLIO's; a policy of a receiver's own stays."""

    @receiver("inventory.item", name="tests.plain")
    def plain(event: Event) -> None: ...

    @receiver("inventory.item", name="tests.own", retry=RetryPolicy(attempts=2))
    def own(event: Event) -> None: ...

    settings.FOLIO_EVENTS = read(KAFKA_RETRY_INTERVAL_MS="1500", KAFKA_RETRY_DELIVERY_ATTEMPTS="7")
    found = {one.name: one.retry for one in registry}

    assert (found["tests.plain"].attempts, found["tests.plain"].backoff) == (7, 1.5)
    assert (found["tests.own"].attempts, found["tests.own"].backoff) == (2, 1.0)


# Topics


def test_variables_of_topics_become_their_options(settings: Any) -> None:
    """Partitions, retention and size of the topics that upstream has variables for."""
    settings.FOLIO_EVENTS = read(
        KAFKA_DOMAIN_TOPIC_NUM_PARTITIONS="50",
        KAFKA_LOAN_TYPE_TOPIC_NUM_PARTITIONS="2",
        KAFKA_SUBJECT_SOURCE_TOPIC_NUM_PARTITIONS="3",
        KAFKA_REINDEX_RECORDS_TOPIC_NUM_PARTITIONS="16",
        KAFKA_REINDEX_RECORDS_TOPIC_MESSAGE_RETENTION="86400000",
        KAFKA_REINDEX_RECORDS_TOPIC_MAX_MESSAGE_SIZE="10485760",
        KAFKA_REINDEX_FILE_READY_TOPIC_NUM_PARTITIONS="17",
    )

    partitions = {
        name: topic_options(f"inventory.{name}").partitions
        for name in (
            *("item", "instance", "holdings-record", "loan-type", "location", "subject-source"),
            *("instance-date-type", "reindex-records", "reindex.file-ready"),
        )
    }
    assert partitions == {
        "item": 50, "instance": 50, "holdings-record": 50, "loan-type": 2, "location": None,
        "subject-source": 3, "instance-date-type": 3, "reindex-records": 16,
        "reindex.file-ready": 17,
    }  # fmt: skip
    assert topic_options("inventory.reindex-records").config() == {
        "retention.ms": "86400000",
        "max.message.bytes": "10485760",
    }


@pytest.mark.parametrize("case", cases("di_event_types"))
def test_every_data_import_event_has_a_variable_for_its_partitions(case: dict[str, Any]) -> None:
    """All but DI_JOB_CANCELLED, which has one partition; they stand in the namespace Default."""
    events = next(iter(v for v in case["expected"].values() if isinstance(v, list)))
    variables = {f"{event}_PARTITIONS": "4" for event in events if event != "DI_JOB_CANCELLED"}

    found = read(**variables)["TOPICS"]

    assert len(variables) > 60
    assert found.pop("DI_JOB_CANCELLED") == {"NAMESPACE": "Default", "PARTITIONS": 1}
    assert found == {
        name.removesuffix("_PARTITIONS"): {"NAMESPACE": "Default", "PARTITIONS": 4}
        for name in variables
    }


def test_data_import_can_be_cancelled_in_one_partition_alone() -> None:
    """Upstream has no variable for it: whoever sets one is told."""
    assert read(DI_JOB_CANCELLED_PARTITIONS="1")["TOPICS"]["DI_JOB_CANCELLED"]["PARTITIONS"] == 1
    with pytest.raises(ConfigurationError, match="DI_JOB_CANCELLED_PARTITIONS is 2"):
        read(DI_JOB_CANCELLED_PARTITIONS="2")


# Clients


def standing_for(given: ClientProperty) -> object:
    """What the option has that stands for one of the wrapper's properties."""
    if given.option.isupper():
        return getattr(Settings(), given.option)
    of_clients = Options({"bootstrap.servers": "kafka"})
    own: dict[str, Any] = getattr(of_clients, given.role)
    return own[given.option] if given.option in own else of_librdkafka(given.option)


def of_librdkafka(option: str) -> str:
    """librdkafka's own default, by its C functions."""
    library = ctypes.CDLL(confluent_kafka.cimpl.__file__)
    size, value = ctypes.c_size_t(64), ctypes.create_string_buffer(64)
    for kind in ("conf", "topic_conf"):
        make: Callable[[], Any] = getattr(library, f"rd_kafka_{kind}_new")
        make.restype = ctypes.c_void_p  # type: ignore[attr-defined]
        conf = ctypes.c_void_p(make())
        get = getattr(library, f"rd_kafka_{kind}_get")
        status = get(conf, option.encode(), value, ctypes.byref(size))
        getattr(library, f"rd_kafka_{kind}_destroy")(conf)
        if status == 0:
            return value.value.decode()
    raise AssertionError(option)


@pytest.mark.parametrize("given", CLIENT_PROPERTIES, ids=lambda one: f"{one.role} {one.java}")
def test_the_table_of_client_properties_is_true(given: ClientProperty) -> None:
    """Each has the value that it is said to have here, and a reason where that is not FOLIO's."""
    if given.option:
        assert str(standing_for(given)).lower() == given.ours
    assert given.ours == given.folio or given.why


@pytest.mark.parametrize(
    "given", [one for one in CLIENT_PROPERTIES if one.taken], ids=lambda one: one.names[0]
)
def test_client_properties_are_taken_by_the_wrappers_names(given: ClientProperty) -> None:
    """And by Spring's; the wrapper's own come first, and librdkafka takes the result."""
    text = {"compression.type": "lz4", "auto.offset.reset": "latest"}.get(given.option, "70000")
    wanted = int(text) if text.isdecimal() else text
    own, springs = given.names

    for names in ({own: text}, {springs: text}, {own: text, springs: "8000"}):
        found = options(**names)
        assert found[given.role][given.option] == wanted
    if given.option != "max.in.flight.requests.per.connection":  # more than idempotence allows
        takes(found)


@pytest.mark.parametrize("case", cases("client_config"))
def test_client_settings_of_the_wrapper_have_a_counterpart(case: dict[str, Any]) -> None:
    """What its tests expect of a client is ours, or stands in the table with the reason."""
    said = case["input"]
    role, overrides = said["role"], said.get("override", {})
    variables = {"KAFKA_HOST": said.get("host", "kafka"), "KAFKA_PORT": said.get("port", "")}
    table = {one.java: one for one in CLIENT_PROPERTIES if one.role == role}
    unread = {ignored.name for ignored in IGNORED}

    found = {**asdict(Settings()), **read(**variables, **overrides)}
    client: dict[str, Any] = getattr(Options(found["BROKER"]["OPTIONS"]), role)

    for java, value in case["expected"].items():
        ours = {**client, **found}.get(table[java].option if java in table else java)
        if java == "has_tenant_interceptor":
            assert table["interceptor.classes"].why
        elif java not in unread and str(ours) != value:
            # Of what is set to another value there is none but the wrapper's own default.
            assert value.endswith(table[java].folio)


@pytest.mark.parametrize("case", cases("group_instance_id"))
def test_a_blank_instance_id_is_refused_in_the_words_of_the_wrapper(case: dict[str, Any]) -> None:
    """By the check, before a member joins under it."""
    found = Options(
        {
            "bootstrap.servers": "kafka",
            "consumer": {"group.instance.id": case["input"]["group_instance_id"]},
        }
    ).check()

    assert (found == []) is case["expected"]["valid"]
    if found:
        assert case["expected"]["error"] in found[0].msg


# Refusals and doubts


@pytest.mark.parametrize(
    "name",
    [
        *("NUMBER_OF_PARTITIONS", "REPLICATION_FACTOR", "KAFKA_CONSUMER_MAX_POLL_RECORDS"),
        *("KAFKA_RETRY_INTERVAL_MS", "KAFKA_RETRY_DELIVERY_ATTEMPTS"),
        *(variable.name for variable in TOPIC_VARIABLES),
        "DI_COMPLETED_PARTITIONS",
    ],
)
@pytest.mark.parametrize("value", ["0", "-1", "ten", "1.5", "1e3", "²"])
def test_a_number_that_is_none_is_refused(name: str, value: str) -> None:
    """The error names the variable and what it holds."""
    with pytest.raises(ConfigurationError, match=f"{name} must be a whole number above 0"):
        options(**{name: value})


@pytest.mark.parametrize("value", ["999", "1000000001", "1MB"])
def test_a_message_size_that_librdkafka_would_refuse_is_refused_by_its_variable(value: str) -> None:
    """Its bounds are librdkafka's."""
    with pytest.raises(ConfigurationError, match=f"MAX_REQUEST_SIZE .* not '{value}'"):
        options(MAX_REQUEST_SIZE=value)


def test_events_cannot_be_turned_off_by_a_variable() -> None:
    """It is refused, rather than that some changes have events and some have none."""
    assert read(DOMAIN_EVENTS_ENABLED="true") == read()
    with pytest.raises(
        ConfigurationError, match=r"DOMAIN_EVENTS_ENABLED is false.*suppress_events"
    ):
        read(DOMAIN_EVENTS_ENABLED="False")
    with pytest.raises(ConfigurationError, match=r"DOMAIN_EVENTS_ENABLED .* not 'off'"):
        read(DOMAIN_EVENTS_ENABLED="off")


@pytest.mark.parametrize(
    ("set_one", "meant"),
    [
        ("KAFKA_PRODUCER_TENANT_COLLECTIONS", "KAFKA_PRODUCER_TENANT_COLLECTION"),
        ("KAFKA_PRODUCER_TENANT_COLECTION", "KAFKA_PRODUCER_TENANT_COLLECTION"),
        ("KAFKA_EVENT_CONSUMER_PATTERN", "KAFKA_EVENTS_CONSUMER_PATTERN"),
        ("KAFKA_LOAN_TYPES_TOPIC_NUM_PARTITIONS", "KAFKA_LOAN_TYPE_TOPIC_NUM_PARTITIONS"),
    ],
)
def test_a_name_that_differs_by_a_letter_is_doubted(
    set_one: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the one that was meant is not set."""
    monkeypatch.setenv(set_one, "x")

    [found] = checks.check_environment(None)

    assert (found.id, set_one in found.msg) == ("folio_events.W040", True)
    assert found.hint == f"Was {meant} meant?"
    monkeypatch.setenv(meant, "X")
    assert checks.check_environment(None) == []


def test_names_that_others_use_are_not_doubted() -> None:
    """What Kubernetes, Kafka's own image and other modules set is none of ours."""
    names = [
        *("KAFKA_SERVICE_HOST", "KAFKA_SERVICE_PORT", "KAFKA_PORT_9092_TCP_ADDR", "KAFKA_HOSTS"),
        *("KAFKA_SSL_KEY_PASSWORD", "KAFKA_SSL_KEYSTORE_FILENAME", "KAFKA_SSL_KEYSTORE_CREDENTIALS"),
        *("KAFKA_LISTENER_SECURITY_PROTOCOL_MAP", "KAFKA_INTER_BROKER_SECURITY_PROTOCOL"),
        *("KAFKA_SUBJECTS_TOPIC_NUM_PARTITIONS", "KAFKA_CONTRIBUTORS_TOPIC_PARTITIONS"),
        *("KAFKA_AUTHORITIES_CONSUMER_PATTERN", "KAFKA_CONSUMER_MAX_POLL_INTERVAL"),
        *(one.name for one in VARIABLES), *(one.name for one in TOPIC_VARIABLES),
        *(one.name for one in IGNORED),
    ]  # fmt: skip
    for name in names:
        assert list(doubts({name: "x"})) == [], name


@pytest.mark.parametrize("kind", ["KEYSTORE", "TRUSTSTORE"])
def test_a_store_without_tls_is_doubted(kind: str) -> None:
    """Somebody believes that events travel under TLS."""
    said = {"KAFKA_HOST": "kafka", f"KAFKA_SSL_{kind}_LOCATION": "/store.pem"}

    [(message, hint)] = doubts(said)

    assert f"KAFKA_SSL_{kind}_LOCATION" in message
    assert "KAFKA_SECURITY_PROTOCOL" in hint
    assert list(doubts({**said, "KAFKA_SECURITY_PROTOCOL": "ssl"})) == []
