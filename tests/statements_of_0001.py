"""What processes of the version before send to PostgreSQL, as it left their code.

Its schema is migration 0001. While a new version is deployed, such processes go on for a
while on the new schema. Never changed: the version after the next gets a module of its own.
"""

from __future__ import annotations

APPEND = """
INSERT INTO folio_events_outboxmessage (event_id, topic, event_type, tenant, key, payload,
  repeating_headers, own_headers, occurred_at)
VALUES (%(event_id)s, 'library.note', 'note', '', %(key)s, %(payload)s, '[]', '', now())
RETURNING id
"""

# The relay

READ_CURSOR = "SELECT version, position FROM folio_events_relaycursor LIMIT 1"
READ_GAPS = "SELECT first_id, last_id FROM folio_events_relaygap"
ANY_WITHHELD = """
SELECT 1 AS a FROM folio_events_withheldmessage WHERE state IN ('refused', 'waiting') LIMIT 1
"""
READ = """
SELECT 0::bigint, NULL, pg_current_snapshot()::text, NULL, NULL,
       NULL::bytea, NULL::bytea, NULL::bytea, NULL::timestamptz
UNION ALL
(SELECT * FROM (
  (SELECT late.*
   FROM unnest(%(first)s::bigint[], %(last)s::bigint[]) AS gap (first, last)
   CROSS JOIN LATERAL (
     SELECT o.id, o.event_id::text, o.topic, o.tenant, o.key, o.payload, o.repeating_headers,
            o.own_headers, o.occurred_at
     FROM folio_events_outboxmessage o WHERE o.id BETWEEN gap.first AND gap.last
     ORDER BY o.id LIMIT %(limit)s) AS late
   ORDER BY late.id LIMIT %(limit)s)
  UNION ALL
  (SELECT o.id, o.event_id::text, o.topic, o.tenant, o.key, o.payload, o.repeating_headers,
          o.own_headers, o.occurred_at
   FROM folio_events_outboxmessage o WHERE o.id > %(position)s
   ORDER BY o.id LIMIT %(limit)s)
) AS batch ORDER BY id LIMIT %(limit)s)
"""
HOLDERS = """
SELECT l.virtualtransaction, x.transactionid::text::bigint
FROM pg_locks l
LEFT JOIN pg_locks x ON x.virtualtransaction = l.virtualtransaction
  AND x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock' AND x.granted
WHERE l.locktype = 'relation' AND l.relation = 'folio_events_outboxmessage'::regclass
  AND l.mode = 'RowExclusiveLock'
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.pid IS DISTINCT FROM pg_backend_pid()
"""
RECORD = """
COPY folio_events_publication (outbox_message_id, topic, partition, "offset", published_at)
FROM STDIN
"""
WITHHOLD = """
INSERT INTO folio_events_withheldmessage (outbox_message_id, topic, tenant, key, state, error,
  withheld_at, resolved_at, reason)
VALUES (%(id)s, 'library.note', '', %(key)s, 'refused', 'too large', now(), NULL, '')
ON CONFLICT (outbox_message_id) DO UPDATE
SET state = EXCLUDED.state, error = EXCLUDED.error, withheld_at = EXCLUDED.withheld_at
"""
ADD_GAP = "INSERT INTO folio_events_relaygap (first_id, last_id) VALUES (%(id)s, %(id)s)"
DROP_GAP = "DELETE FROM folio_events_relaygap WHERE first_id IN (%(id)s)"
ADVANCE = """
INSERT INTO folio_events_relaycursor (id, position, version, updated_at)
VALUES (1, %(position)s, %(version)s, now())
ON CONFLICT (id) DO UPDATE
SET position = EXCLUDED.position, version = EXCLUDED.version, updated_at = EXCLUDED.updated_at
"""

# The consumer and the retries

START = """
INSERT INTO folio_events_consumeroffset ("group", topic, partition, database, "offset", topic_id,
  started_offset, starts, updated_at)
VALUES ('events', 'folio.library.note', 0, 'default', 0, '', NULL, 0, now())
ON CONFLICT DO NOTHING
"""
LOCK = """
SELECT topic, partition, "offset" FROM folio_events_consumeroffset
WHERE ((topic = 'folio.library.note' AND partition IN (0)) AND database = 'default'
  AND "group" = 'events')
ORDER BY topic, partition FOR UPDATE SKIP LOCKED
"""
MOVE = """
UPDATE folio_events_consumeroffset SET "offset" = %(offset)s, updated_at = now()
WHERE ((topic = 'folio.library.note' AND partition IN (0)) AND database = 'default'
  AND "group" = 'events')
"""
TAKE_EFFECT = """
INSERT INTO folio_events_inboxentry (receiver, event_id, replay, handled_at)
SELECT *, now() FROM unnest(%(receivers)s::text[], %(event_ids)s::uuid[], %(replays)s::int[])
ON CONFLICT DO NOTHING RETURNING receiver, event_id, replay
"""
FAIL = """
INSERT INTO folio_events_delivery (receiver, "group", event_id, replay, state, "order", attempts,
  unfinished, next_attempt_at, topic, partition, "offset", tenant, event_type, key, raw_key,
  headers, payload, published_at, error_class, error, traceback, created_at, last_attempt_at,
  resolved_at, reason)
VALUES ('notes', 'events', %(event_id)s, 0, 'retrying', 'key', 1, false, now(),
  'folio.library.note', 0, 1, '', 'note', %(key)s, %(raw_key)s, '[]', %(payload)s, now(),
  'builtins.ValueError', 'no', '', now(), now(), NULL, '')
ON CONFLICT DO NOTHING
"""
CLAIM = """
SELECT id, receiver, attempts FROM folio_events_delivery
WHERE state = 'retrying' AND next_attempt_at <= now() AND receiver IN ('notes')
  AND (NOT "order" = 'key' OR NOT EXISTS (
    SELECT 1 AS a FROM folio_events_delivery u
    WHERE u.key = folio_events_delivery.key AND u.id < folio_events_delivery.id
      AND u."order" = 'key' AND u.receiver = folio_events_delivery.receiver
      AND u.state IN ('retrying', 'dead') AND u.topic = folio_events_delivery.topic LIMIT 1))
ORDER BY next_attempt_at, id LIMIT 1 FOR UPDATE OF folio_events_delivery SKIP LOCKED
"""
FAIL_AGAIN = """
UPDATE folio_events_delivery SET state = 'retrying', attempts = attempts + 1, unfinished = false,
  next_attempt_at = now(), last_attempt_at = now(), error_class = 'builtins.ValueError',
  error = 'no', traceback = ''
WHERE id = %(id)s
"""
