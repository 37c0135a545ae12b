"""What transactions do to the outbox: late commits, rollbacks, long and prepared ones."""

from __future__ import annotations

import statistics
import threading
import time
import uuid
from contextlib import ExitStack

import psycopg

from tests.faults.harness import scenario
from tests.faults.stage import ACCOUNTS, Stage

_APPEND = """
INSERT INTO folio_events_outboxmessage (event_id, topic, event_type, tenant, key, payload,
    repeating_headers, own_headers, occurred_at)
VALUES (gen_random_uuid(), 'bank.account', 'UPDATE', '', %s, %s, '[]', '', now())
"""
# Rows that were committed after one with a higher id.
_LATE = """
SELECT count(*) FROM (
  SELECT pg_xact_commit_timestamp(xmin) AS at, min(pg_xact_commit_timestamp(xmin))
    OVER (ORDER BY id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS of_later_rows
  FROM folio_events_outboxmessage) AS commits
WHERE of_later_rows < at
"""
_DRAWN = "SELECT last_value FROM folio_events_outboxmessage_id_seq"


def change_account(session: psycopg.Connection, account: int, note: str = "") -> None:
    """Change an account as a writer would, in the transaction that is open, without Django."""
    number = session.execute(
        "UPDATE bank_account SET number = number + 1 WHERE id = %s RETURNING number", [account]
    ).fetchall()[0][0]
    body = (
        f'{{"eventId": "{uuid.uuid4()}", "type": "UPDATE", "old": null,'
        f' "new": {{"id": {account}, "number": {number}, "note": "{note}"}}}}'
    )
    session.execute(_APPEND, [str(account), body.encode()])


def quiet_account(stage: Stage) -> int:
    """An account that no running writer knows, so that none waits for who holds it."""
    return int(stage.execute("INSERT INTO bank_account (number, note) VALUES (0, '') RETURNING id"))


def probe_latency(stage: Stage) -> float:
    """Seconds from a commit until the relay has recorded its publication."""
    account = quiet_account(stage)
    with psycopg.connect(stage.url) as session:
        change_account(session, account)
        number = session.execute("SELECT max(id) FROM folio_events_outboxmessage").fetchall()[0][0]
    began = time.monotonic()
    while not stage.execute(
        "SELECT 1 FROM folio_events_publication WHERE outbox_message_id = %s", number
    ):
        if time.monotonic() - began > 30:
            break
        time.sleep(0.005)
    return time.monotonic() - began


def usual_latency(stage: Stage) -> float:
    """Median of the seconds from commit to publication."""
    return statistics.median(probe_latency(stage) for _ in range(15))


def expect_unslowed(stage: Stage, before: float, after: float, what: str) -> None:
    """Nothing unrelated slows down."""
    stage.remarks.append(
        f"commit to publication {before * 1e3:.0f} ms, {what} {after * 1e3:.0f} ms"
    )
    stage.expect(after < before * 3 + 0.1, f"publication slowed down {what}")


@scenario("transactions and savepoints roll back")
def rollbacks(stage: Stage) -> None:
    stage.open(writers=0)
    stage.writer(rollbacks=0.5, rate=400)
    stage.write_until()
    rows = stage.execute("SELECT count(*) FROM folio_events_outboxmessage")
    stage.happened(stage.execute(_DRAWN) - rows, "rows rolled back", 100)


@scenario("rows commit late, in another order than their ids", telling=True)
def late_commits(stage: Stage) -> None:
    stage.open(writers=0, relays=0)
    # That of the proof waits between its two statements instead.
    stage.relay("" if stage.defect else "relay.looked=hold")
    stage.writer(hold=0.4, threads=8, rate=300)
    stage.writer(hold=0.1, threads=8, rate=300)
    stage.write_until()
    stage.stop_writers()
    stage.happened(stage.execute(_LATE), "rows committed after later ones", 20)
    stage.await_(stage.relay_is_done, "the relay's way to the end")
    for _ in range(10 if stage.size >= 2000 else 3):
        _commit_between_two_looks(stage)


def _commit_between_two_looks(stage: Stage) -> None:
    """A late row and the next one of its key are committed while the relay is reading."""
    account = quiet_account(stage)
    with psycopg.connect(stage.url) as late, psycopg.connect(stage.url) as other:
        change_account(late, account)
        passed = late.execute(_DRAWN).fetchall()[0][0]
        change_account(other, quiet_account(stage))
        other.commit()
        gap = "SELECT 1 FROM folio_events_relaygap WHERE %s BETWEEN first_id AND last_id"
        stage.await_(lambda: stage.execute(gap, passed), "the gap")
        with stage.held("relay.looked"):
            late.commit()
            change_account(other, account)
            other.commit()
    stage.await_(stage.relay_is_done, "the relay's way past both")


@scenario("a transaction that began first writes a key last")
def early_transactions(stage: Stage) -> None:
    stage.open()
    account = quiet_account(stage)
    with psycopg.connect(stage.url) as first, psycopg.connect(stage.url) as second:
        for _ in range(50):
            # Its transaction id is drawn here, elsewhere.
            first.execute("UPDATE bank_till SET total = total + 1 WHERE id = 1")
            change_account(second, account)
            second.commit()
            stage.pause(0, 0.05)
            change_account(first, account)
            first.commit()
    stage.happened(50, "transactions with an early id and a late row")


@scenario("transactions that wrote an event stay open for long")
def long_transactions(stage: Stage) -> None:
    stage.open()
    before, held = usual_latency(stage), []
    for _ in range(3):
        with ExitStack() as ended:
            sessions = [ended.enter_context(psycopg.connect(stage.url)) for _ in range(3)]
            for session in sessions:
                change_account(session, quiet_account(stage))
            held.append(usual_latency(stage))
            # This one the writers want as well.
            change_account(sessions[0], ACCOUNTS)
            stage.pause(1, 3)
            sessions[0].commit()
            stage.pause(0.2, 1)
            sessions[1].rollback()
            stage.pause(0.2, 1)
    expect_unslowed(stage, before, max(held), "behind them")


@scenario("an unrelated transaction, a dump's snapshot and a foreign database hold on")
def unrelated_transactions(stage: Stage) -> None:
    stage.open()
    stage.write_until(0.3)
    before = usual_latency(stage)
    with ExitStack() as ended:
        holder = ended.enter_context(psycopg.connect(stage.url))
        holder.execute("UPDATE bank_till SET total = 1 WHERE id = 1")
        dump = ended.enter_context(psycopg.connect(stage.url))
        dump.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        dump.execute("SELECT count(*) FROM bank_entry")
        other = ended.enter_context(psycopg.connect(stage.parts.postgres.url))
        other.execute("CREATE TABLE IF NOT EXISTS elsewhere (x int)")
        other.execute("SELECT txid_current()")
        stage.write_until(0.8)
        after = usual_latency(stage)
        for session in (holder, dump, other):
            session.rollback()
    expect_unslowed(stage, before, after, "behind them")


@scenario("200,000 gaps of rollbacks while a transaction is held", short_size=300)
def many_gaps(stage: Stage) -> None:
    stage.open()
    stage.write_until(0.3)
    before = usual_latency(stage)
    gaps = 200_000 if stage.size >= 2000 else 10_000
    with psycopg.connect(stage.url) as holder, psycopg.connect(stage.url) as session:
        change_account(holder, quiet_account(stage))
        # Every other id is a rollback's: as many ranges as there are rows between them.
        step = gaps // 20
        for _ in range(20):
            session.execute(
                "SELECT count(nextval('folio_events_outboxmessage_id_seq'))"
                " FROM generate_series(1, %s)",
                [1],
            )
            session.execute(
                "INSERT INTO folio_events_outboxmessage (id, event_id, topic, event_type, tenant,"
                " key, payload, repeating_headers, own_headers, occurred_at)"
                " SELECT id, gen_random_uuid(), 'bank.notice', 'GAP', '', NULL, '{}', '[]', '',"
                " now() FROM (SELECT nextval('folio_events_outboxmessage_id_seq') AS id"
                "             FROM generate_series(1, %s)) AS drawn WHERE id %% 2 = 0",
                [2 * step],
            )
            session.commit()
        stage.await_(
            lambda: (
                stage.execute("SELECT position FROM folio_events_relaycursor")
                >= stage.execute("SELECT max(id) - 1000 FROM folio_events_outboxmessage")
            ),
            "the relay's way past the gaps",
            240,
        )
        known = stage.execute("SELECT count(*) FROM folio_events_relaygap")
        after = usual_latency(stage)
        holder.commit()
    stage.happened(known, "gaps stored at once", gaps * 9 // 10)
    expect_unslowed(stage, before, after, "behind them")


@scenario("a bulk of a million rows is rolled back", short_size=300)
def rolled_back_bulk(stage: Stage) -> None:
    stage.open()
    count = 1_000_000 if stage.size >= 2000 else 50_000
    before, drawn = usual_latency(stage), stage.execute(_DRAWN)
    with psycopg.connect(stage.url) as session:
        # The rows themselves would only cost the disk; their ids are what the relay meets.
        change_account(session, quiet_account(stage))
        session.execute(
            "INSERT INTO folio_events_outboxmessage (event_id, topic, event_type, tenant, key,"
            " payload, repeating_headers, own_headers, occurred_at)"
            " SELECT gen_random_uuid(), 'bank.notice', 'BULK', '', NULL, '{}', '[]', '', now()"
            " FROM generate_series(1, %s)",
            [count],
        )
        stage.pause(0.5, 1)
        session.rollback()
    stage.happened(stage.execute(_DRAWN) - drawn, "ids drawn meanwhile", count)
    expect_unslowed(stage, before, usual_latency(stage), "behind the bulk")


@scenario("prepared transactions commit and roll back late")
def prepared(stage: Stage) -> None:
    stage.open()
    before = usual_latency(stage)
    with psycopg.connect(stage.url, autocommit=True) as session:
        session.execute("BEGIN")
        change_account(session, quiet_account(stage))
        session.execute(f"PREPARE TRANSACTION '{stage.id}-held'")
        expect_unslowed(stage, before, usual_latency(stage), "behind a prepared one")
        session.execute(f"COMMIT PREPARED '{stage.id}-held'")
    for number in range(4):
        with psycopg.connect(stage.url, autocommit=True) as session:
            session.execute("BEGIN")
            change_account(session, stage.chance.randint(1, ACCOUNTS))
            session.execute(f"PREPARE TRANSACTION '{stage.id}-{number}'")
        stage.pause(0.3, 1.2)
        with psycopg.connect(stage.url, autocommit=True) as session:
            how = "COMMIT" if number % 2 == 0 else "ROLLBACK"
            session.execute(f"{how} PREPARED '{stage.id}-{number}'")
    stage.happened(5, "prepared transactions")


@scenario("ids are skipped as after a crash of the database", short_size=300)
def skipped_ids(stage: Stage) -> None:
    stage.open()
    for _ in range(5):
        stage.execute(
            "SELECT setval('folio_events_outboxmessage_id_seq',"
            " nextval('folio_events_outboxmessage_id_seq') + 32)"
        )
        stage.pause(0.2, 0.6)
    stage.happened(5, "times 32 ids skipped")


@scenario("one hot account for 16 writers at once", short_size=300)
def hot_key(stage: Stage) -> None:
    stage.open(writers=0, relays=2)
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(stage.url) as session:
            while not stop.is_set():
                change_account(session, 1)
                if stage.chance.random() < 0.1:
                    session.rollback()
                else:
                    session.commit()

    threads = [threading.Thread(target=write) for _ in range(16)]
    for thread in threads:
        thread.start()
    try:
        stage.write_until()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    changes = stage.execute("SELECT number FROM bank_account WHERE id = 1")
    stage.happened(changes, "changes of one key", stage.size)
