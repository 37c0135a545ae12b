"""What PostgreSQL does, and what stands before it."""

from __future__ import annotations

import shutil
import subprocess
import time

from tests.faults.evidence import Evidence
from tests.faults.harness import scenario
from tests.faults.proxy import Proxy
from tests.faults.scenarios.outbox import probe_latency
from tests.faults.stage import Stage
from tests.services.packages import ServiceUnavailable, install
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
    for _ in range(3 if stage.size >= 2000 else 1):
        stage.pause(1, 3)
        stage.parts.postgres.restart()


@scenario("PostgreSQL is killed under load")
def killed(stage: Stage) -> None:
    stage.open(retries=True)
    for _ in range(2 if stage.size >= 2000 else 1):
        stage.pause(1, 3)
        stage.parts.postgres.kill()
        stage.pause(0, 2)
        stage.parts.postgres.start()


@scenario("everything behind PgBouncer in transaction mode")
def behind_pgbouncer(stage: Stage) -> None:
    if not shutil.which("pgbouncer", path="/usr/sbin:/usr/bin"):
        install("PgBouncer", ["pgbouncer"])
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin") or "pgbouncer"
    port, mark = reserve_port()
    with private_folder("pgbouncer", owner="postgres") as folder:
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
        bouncer.start()
        try:
            stage.front_url = f"postgres://postgres@127.0.0.1:{port}/{stage.id}"
            stage.pause(0.5, 0.5)
            stage.open(relays=3, consumers=2, retries=True)
            for _ in range(3):
                stage.pause(0.5, 1.5)
                stage.one("relay").kill()
                stage.relay()
            stage.write_until()
            for writer in stage.cast("writer"):
                writer.stop()
            _finish(stage)
        finally:
            for actor in stage.actors:
                actor.kill()
            bouncer.kill()
            mark.close()


def _finish(stage: Stage) -> None:
    """Wait for the end here, while what the scenario needs still runs."""
    evidence = Evidence(stage)
    try:
        evidence.settle()
    finally:
        evidence.close()


@scenario("network to PostgreSQL cut again and again")
def network_cut(stage: Stage) -> None:
    port, mark = reserve_port()
    with Proxy(port, stage.parts.postgres.port) as proxy:
        stage.front_url = f"postgres://postgres@127.0.0.1:{port}/{stage.id}"
        stage.open(relays=2, retries=True)
        for _ in range(4 if stage.size >= 2000 else 2):
            stage.pause(0.5, 1.5)
            proxy.break_links()
            stage.pause(0.5, 1.5)
            proxy.cut()
            stage.pause(0.5, 2)
            proxy.mend()
        stage.write_until()
        for writer in stage.cast("writer"):
            writer.stop()
        _finish(stage)
        for actor in stage.actors:
            actor.kill()
    mark.close()


@scenario("the listening connection dies in silence", short_size=300)
def listener_dead(stage: Stage) -> None:
    port, mark = reserve_port()
    with Proxy(port, stage.parts.postgres.port) as proxy:
        stage.front_url = f"postgres://postgres@127.0.0.1:{port}/{stage.id}"
        stage.open()
        relay = stage.one("relay")
        stage.await_(lambda: relay.said("listens for wake-ups"), "the listening")
        stage.expect(proxy.silence(b"LISTEN") == 1, "no listening connection was found")
        began = time.monotonic()
        worst = 0.0
        while time.monotonic() - began < 14 and not relay.said("hears no wake-ups and polls"):
            worst = max(worst, probe_latency(stage))
        took = time.monotonic() - began
        stage.expect(relay.said("hears no wake-ups and polls"), "the relay did not say so")
        stage.remarks.append(f"said after {took:.0f} s; slowest publication {worst:.2f} s")
        stage.expect(worst < 3, "events waited longer than the poll")
        stage.write_until()
        for writer in stage.cast("writer"):
            writer.stop()
        _finish(stage)
        for actor in stage.actors:
            actor.kill()
    mark.close()


@scenario("the disk of the outbox is full for a while")
def disk_full(stage: Stage) -> None:
    with private_folder("disk", owner="postgres") as folder:
        small = folder / "small"
        small.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m,uid=postgres", "tmpfs", str(small)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ServiceUnavailable(f"mount -t tmpfs: {done.stderr.strip()}")
        try:
            space = f"space_{stage.id}"
            stage.execute(f"CREATE TABLESPACE {space} LOCATION '{small}'")
            stage.execute(f"ALTER TABLE folio_events_outboxmessage SET TABLESPACE {space}")
            stage.create_topics()
            stage.writer(bytes=3000, threads=6)
            stage.relay()
            stage.consumer()
            last = "SELECT last_value FROM folio_events_outboxmessage_id_seq"

            def is_full() -> bool:
                before = stage.execute("SELECT max(id) FROM folio_events_outboxmessage")
                drawn = stage.execute(last)
                stage.pause(0.5, 0.5)
                same = before == stage.execute("SELECT max(id) FROM folio_events_outboxmessage")
                return bool(same and stage.execute(last) > drawn)

            stage.await_(is_full, "the full disk", 60)
            stage.remarks.append(f"full at {stage.committed()} changes")
            stage.pause(1, 2)
            subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
            stage.write_until()
            for writer in stage.cast("writer"):
                writer.stop()
            _finish(stage)
            for actor in stage.actors:
                actor.kill()
            stage.execute("ALTER TABLE folio_events_outboxmessage SET TABLESPACE pg_default")
            stage.execute(f"DROP TABLESPACE {space}")
        finally:
            subprocess.run(["umount", "-l", str(small)], check=False)
