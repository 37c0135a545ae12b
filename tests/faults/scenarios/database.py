"""What PostgreSQL does, and what stands before it."""

from __future__ import annotations

import shutil
import time

import psycopg

from tests.faults.harness import scenario
from tests.faults.parts import database_url, fill, small_disk
from tests.faults.replica import replica
from tests.faults.scenarios.outbox import probe_latency
from tests.faults.stage import Stage
from tests.services import PostgresServer
from tests.services.packages import install
from tests.services.process import Process, private_folder, reserve_port

_BOUNCER = """
[databases]
{name} = host=127.0.0.1 port={server} dbname={name} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 300
default_pool_size = 20
ignore_startup_parameters = extra_float_digits
"""


@scenario("PostgreSQL restarts under load", telling=True)
def restarted(stage: Stage) -> None:
    stage.open(retries=True)
    rounds = 3 if stage.size >= 2000 else 1
    for _ in range(rounds):
        stage.pause(1, 3)
        stage.parts.postgres.restart()
        stage.await_published(1)
    stage.happened(rounds, "restarts")


@scenario("PostgreSQL is killed under load")
def killed(stage: Stage) -> None:
    stage.open(retries=True)
    rounds = 2 if stage.size >= 2000 else 1
    for _ in range(rounds):
        stage.pause(1, 3)
        stage.parts.postgres.kill()
        stage.pause(0, 2)
        stage.parts.postgres.start()
        stage.await_published(1)
    stage.happened(rounds, "kills")


@scenario("PostgreSQL is killed, and its synchronous replica takes over")
def failover(stage: Stage) -> None:
    primary = stage.parts.postgres
    proxy = stage.behind_proxy()
    stage.ended.callback(_restore, primary)
    successor = stage.ended.enter_context(replica(primary))
    # Of the primary alone: the successor must not wait for a replica of its own.
    _tell(primary, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
    synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
    stage.await_(lambda: stage.execute(synchronous), "the synchronous replica")
    stage.open(retries=True)
    stage.write_until(0.4)
    before = stage.committed()
    primary.kill()
    began = time.monotonic()
    _tell(successor, "SELECT pg_promote()")
    proxy.target = successor.port
    proxy.break_links()
    stage.move(database_url(successor, stage.id))
    stage.expect(stage.committed() >= before, "the replica had less than was committed")
    stage.await_published(1)
    stage.happened(1, "failover")
    stage.remarks.append(f"publication went on after {time.monotonic() - began:.1f} s")


def _tell(server: PostgresServer, *statements: str) -> None:
    with psycopg.connect(server.url, autocommit=True) as session:
        for statement in statements:
            session.execute(statement)


def _restore(primary: PostgresServer) -> None:
    if primary.process and not primary.process.running:
        primary.start()
    _tell(primary, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")


@scenario("everything behind PgBouncer in transaction mode")
def behind_pgbouncer(stage: Stage) -> None:
    if not shutil.which("pgbouncer", path="/usr/sbin:/usr/bin"):
        install("PgBouncer", ["pgbouncer"])
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin") or "pgbouncer"
    port, mark = reserve_port()
    stage.ended.callback(mark.close)
    folder = stage.ended.enter_context(private_folder("pgbouncer", owner="postgres"))
    text = _BOUNCER.format(name=stage.id, server=stage.parts.postgres.port, port=port)
    (folder / "pgbouncer.ini").write_text(text)
    (folder / "pgbouncer.ini").chmod(0o644)
    bouncer = Process(
        [program, str(folder / "pgbouncer.ini")],
        folder=folder,
        cwd=folder,
        log=stage.folder / "pgbouncer.log",
        user="postgres",
    )
    stage.ended.callback(bouncer.kill)
    bouncer.start()
    stage.front_url = f"postgres://postgres@127.0.0.1:{port}/{stage.id}"
    stage.pause(0.5, 0.5)
    stage.open(relays=3, consumers=2, retries=True)
    for _ in range(3):
        stage.pause(0.5, 1.5)
        stage.one("relay").kill()
        stage.relay()
        stage.await_published(1)
    backends = stage.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    )
    stage.happened(3, "relays killed")
    stage.remarks.append(f"{len(stage.actors)} processes on {backends} connections of the server")


@scenario("network to PostgreSQL cut again and again")
def network_cut(stage: Stage) -> None:
    proxy = stage.behind_proxy()
    stage.open(relays=2, retries=True)
    rounds, links = 4 if stage.size >= 2000 else 2, 0
    for _ in range(rounds):
        stage.pause(0.5, 1.5)
        links += proxy.break_links()
        stage.pause(0.5, 1.5)
        links += proxy.cut()
        stage.pause(0.5, 2)
        proxy.mend()
        stage.await_published(1)
    stage.happened(links, "connections broken", 2 * rounds)


@scenario("the listening connection dies in silence", short_size=300)
def listener_dead(stage: Stage) -> None:
    proxy = stage.behind_proxy()
    stage.open()
    relay = stage.one("relay")
    stage.await_word(relay, "listens for wake-ups")
    stage.happened(proxy.silence(b"LISTEN"), "connection silenced")
    began, worst = time.monotonic(), 0.0
    while time.monotonic() - began < 20 and not relay.said("hears no wake-ups and polls"):
        worst = max(worst, probe_latency(stage))
    took = time.monotonic() - began
    stage.expect(relay.said("hears no wake-ups and polls"), "the relay did not say so")
    stage.remarks.append(f"said after {took:.0f} s; slowest publication {worst:.2f} s")
    stage.expect(worst < 3, "events waited longer than the poll")


@scenario("the disk of the outbox is full for a while")
def disk_full(stage: Stage) -> None:
    small = stage.ended.enter_context(small_disk(60, owner="postgres"))
    space = f"space_{stage.id}"
    stage.execute(f"CREATE TABLESPACE {space} LOCATION '{small}'")
    stage.ended.callback(stage.execute, f"DROP TABLESPACE {space}")
    stage.ended.callback(
        stage.execute, "ALTER TABLE folio_events_outboxmessage SET TABLESPACE pg_default"
    )
    stage.execute(f"ALTER TABLE folio_events_outboxmessage SET TABLESPACE {space}")
    stage.open()
    stage.write_until(0.3)
    filler = fill(small)
    last = "SELECT last_value FROM folio_events_outboxmessage_id_seq"

    def is_full() -> bool:
        before = stage.execute("SELECT max(id) FROM folio_events_outboxmessage")
        drawn = stage.execute(last)
        stage.pause(0.5, 0.5)
        same = before == stage.execute("SELECT max(id) FROM folio_events_outboxmessage")
        return bool(same and stage.execute(last) > drawn)

    stage.await_(is_full, "the full disk")
    drawn = stage.execute(last)
    stage.remarks.append(f"full at {stage.committed()} changes")
    stage.pause(1, 2)
    stage.happened(stage.execute(last) - drawn, "writes refused meanwhile")
    filler.unlink()
