-- Functions of operators, and what they refuse.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS evstream;
RESET client_min_messages;

-- pause and resume
SELECT evstream_pause();
SELECT paused, paused_at IS NOT NULL AS at FROM evstream.state;
SELECT evstream_pause();
SELECT evstream_health() #>> '{components,workers,hint}' LIKE '%evstream_resume()%' AS hinted;
SELECT evstream_resume();
SELECT paused, paused_at IS NOT NULL AS at FROM evstream.state;
SELECT evstream_restart();

-- as after a restore
BEGIN;
INSERT INTO evstream.restored DEFAULT VALUES;
DELETE FROM evstream.outbox_current;
SELECT evstream_health() #>> '{components,workers,why}' LIKE '%restored from a dump%' AS said,
	evstream_health() #>> '{components,workers,hint}' LIKE '%evstream_resume()%' AS hinted;
SELECT evstream_resume();
SELECT count(*) FROM evstream.restored;
SELECT current FROM evstream.outbox_current;
ROLLBACK;

-- seek: nothing to seek in the embedded log
SELECT evstream_seek('2026-01-01 00:00+00'::timestamptz);
SELECT evstream_seek(0, 100);
SELECT evstream_seek(NULL::timestamptz);
SELECT evstream_seek('infinity'::timestamptz);
SELECT evstream_seek(0, NULL);
SELECT evstream_seek(NULL, 1);
SELECT evstream_seek(-1, 1);
SELECT evstream_seek(0, -1);
BEGIN;
SET LOCAL evstream.kafka_brokers = '127.0.0.1:1';
SET LOCAL evstream.kafka_topic = 'a';
SET LOCAL evstream.kafka_read_topics = 'b , c';
SELECT evstream_seek('2026-01-01 00:00+00'::timestamptz);
SELECT evstream_seek(1, 100, force => true);
SELECT evstream_seek(partition => 2, log_offset => 5, topic => 'c');
SELECT topic, log_partition, to_time = '2026-01-01 00:00+00' AS at_time, log_offset, force FROM evstream.seeks ORDER BY seek_id DESC LIMIT 3;
SELECT evstream_seek(0, 100, 'd');
ROLLBACK;

-- take over: the claim grows, and the mark stays what it was
BEGIN;
CREATE TEMPORARY TABLE before ON COMMIT DROP AS SELECT * FROM evstream.identity;
UPDATE evstream.identity SET system_identifier = 1, database_oid = 1;
SELECT evstream_take_over();
SELECT i.mark = b.mark AS mark, i.system_identifier = b.system_identifier AS system, i.database_oid = b.database_oid AS database,
	i.claim > b.claim AS claims, i.claimed_at = now() AS now
FROM evstream.identity i, before b;
ROLLBACK;

-- dead letters
SELECT evstream_dead_letter_retry(0);
SELECT evstream_dead_letter_retry(NULL);
SELECT evstream_dead_letter_discard(0);
BEGIN;
INSERT INTO evstream.dead_letters (reason, detail, log_id, log_partition, log_offset, record_key, record_value, record_timestamp, record_headers)
	VALUES ('not_json', 'x', 1, 0, 5, 'k', '{}', '2026-01-01 00:00+00', '[["a", "Yg=="]]');
SELECT reason, topic, log_partition, log_offset, record_key, record_value, record_headers, attempts FROM evstream_dead_letters;
SELECT evstream_dead_letter_retry(max(id)) FROM evstream_dead_letters;
SELECT reason, attempts FROM evstream_dead_letters;
UPDATE evstream_dead_letters SET record_value = '{"user_id": "u", "event_type": "view"}';
SAVEPOINT a;
UPDATE evstream_dead_letters SET reason = 'none';
ROLLBACK TO a;
UPDATE evstream_dead_letters SET record_headers = NULL, record_value = '';
ROLLBACK TO a;
DELETE FROM evstream_dead_letters;
ROLLBACK TO a;
SELECT evstream_dead_letter_retry(max(id)) FROM evstream_dead_letters;
SELECT count(*) FROM evstream_dead_letters;
SELECT log_id, log_partition, log_offset, record_key, convert_from(record_value, 'UTF8') AS record_value,
	record_timestamp = '2026-01-01 00:00+00' AS time, record_headers, attempts FROM evstream.retries;
ROLLBACK;
BEGIN;
INSERT INTO evstream.dead_letters (reason, record_value) VALUES ('not_json', 'x');
SELECT evstream_dead_letter_discard(max(id)) FROM evstream_dead_letters;
SELECT count(*) FROM evstream_dead_letters;
ROLLBACK;

-- A restart cannot be prepared, as nobody would see to it at the commit.
BEGIN;
SELECT evstream_restart();
PREPARE TRANSACTION 'evstream restart';
