-- Stats computed again from stored events.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS evstream;
RESET client_min_messages;
SET TimeZone = 'America/New_York';
SET datestyle = 'ISO';

BEGIN;
-- a day of its own, which the workers neither write nor drop
CREATE TABLE evstream.events_20990101 (LIKE evstream.events INCLUDING ALL);
ALTER TABLE evstream.events ATTACH PARTITION evstream.events_20990101
	FOR VALUES FROM ('2099-01-01 00:00:00+00') TO ('2099-01-02 00:00:00+00');
INSERT INTO evstream.events (event_id, user_id, event_type, occurred_at, received_at, item_id, amount, properties, log_id, log_partition, log_offset)
SELECT gen_random_uuid(), e.user_id, e.event_type, e.occurred_at, '2099-01-01 12:00+00', e.item_id, e.amount, '{}', 1, 0, row_number() OVER ()
FROM (VALUES
	('a', 'view', '2001-02-03 00:00:00+00'::timestamptz, 'i1', NULL),
	('a', 'view', '2001-02-03 23:59:59.999999+00', 'i1', NULL),
	('a', 'click', '2001-02-03 12:00+00', 'i2', NULL),
	('a', 'purchase', '2001-02-03 13:00+00', 'i1', 10.5),
	('a', 'purchase', '2001-02-03 14:00+00', NULL, -0.25),
	('b', 'view', '2001-02-03 01:00+00', NULL, NULL),
	('b', 'login', '2001-02-03 02:00+00', NULL, NULL),
	('b', 'ping', '2001-02-03 03:00+00', 'i1', 1),
	('a', 'view', '2001-02-04 00:00:00+00', NULL, NULL),
	('a', 'view', '2001-02-05 00:00:00+00', NULL, NULL)
) e (user_id, event_type, occurred_at, item_id, amount);

-- wrong stats, by two writers, and of a day that is not asked for
INSERT INTO evstream.daily_counts VALUES ('z', '2001-02-03', 'view', 9, NULL, '2001-02-03 12:00+00', '2001-02-03 12:00+00', now()),
	('z', '2001-02-05', 'view', 9, NULL, '2001-02-05 12:00+00', '2001-02-05 12:00+00', now());
INSERT INTO evstream.daily_items VALUES ('z', 'i', '2001-02-03', 9, 0, 0, 9, now());
INSERT INTO evstream.daily_totals VALUES ('2001-02-03', 'view', 0, 9, 9, NULL, now()), ('2001-02-03', 'view', 1, 9, 9, NULL, now()),
	('2001-02-05', 'view', 3, 9, 9, NULL, now());

SELECT evstream_rebuild('2001-02-03', '2001-02-04');
SELECT user_id, day, event_type, event_count, amount_total, first_event_at, last_event_at, updated_at = now() AS now
FROM evstream_daily_counts WHERE day < '2002-01-01' ORDER BY 1, 2, 3;
SELECT user_id, day, view_count, click_count, purchase_count, login_count, event_count, purchase_amount, first_event_at, last_event_at
FROM evstream_daily_summary WHERE day < '2002-01-01' ORDER BY 1, 2;
SELECT user_id, item_id, day, view_count, click_count, purchase_count, event_count
FROM evstream_daily_item_summary WHERE day < '2002-01-01' ORDER BY 1, 2, 3;
SELECT day, event_type, event_count, user_count, amount_total
FROM evstream_daily_totals WHERE day < '2002-01-01' ORDER BY 1, 2;
SELECT day, event_type, writer FROM evstream.daily_totals WHERE day < '2002-01-01' ORDER BY 1, 2, 3;
-- once more gives the same
SELECT evstream_rebuild('2001-02-03', '2001-02-04');
SELECT sum(event_count) FROM evstream_daily_counts WHERE day < '2002-01-01';
SELECT user_id, event_type, topic, log_partition, log_offset FROM evstream_events WHERE received_at >= '2099-01-01' ORDER BY log_offset LIMIT 2;

-- after a change of the zone, until all days are rebuilt
SAVEPOINT a;
DELETE FROM evstream.daily_totals WHERE day NOT BETWEEN '2001-02-03' AND '2001-02-05';
UPDATE evstream.state SET time_zone = 'Asia/Tokyo', rebuild_needed = true;
SELECT evstream_rebuild('2001-02-03', '2001-02-04');
ROLLBACK TO a;
DELETE FROM evstream.daily_totals WHERE day NOT BETWEEN '2001-02-03' AND '2001-02-05';
UPDATE evstream.state SET time_zone = 'Asia/Tokyo', rebuild_needed = true;
SET LOCAL evstream.time_zone = 'Asia/Tokyo';
SELECT evstream_health() #>> '{components,workers,hint}' LIKE '%evstream_rebuild(%' AS said;
SELECT evstream_rebuild('2001-02-03', '2001-02-04');
SELECT rebuild_needed, rebuilt FROM evstream.state;
SELECT evstream_rebuild('2001-02-05', '2001-02-05');
SELECT rebuild_needed, rebuilt FROM evstream.state;
SELECT user_id, day, view_count, event_count FROM evstream_daily_summary WHERE day < '2002-01-01' ORDER BY 1, 2;
ROLLBACK TO a;

-- days whose events are not stored
INSERT INTO evstream.unstored_days VALUES ('2001-02-03', 'UTC'), ('2001-02-05', 'Asia/Tokyo');
SELECT evstream_rebuild('2001-02-01', '2001-02-10');
ROLLBACK TO a;
INSERT INTO evstream.unstored_days VALUES ('2001-02-03', 'UTC'), ('2001-02-06', 'Asia/Tokyo');
SELECT evstream_rebuild('2001-02-05', '2001-02-05');
ROLLBACK TO a;
INSERT INTO evstream.unstored_days VALUES ('2001-02-03', 'UTC'), ('2001-02-06', 'Asia/Tokyo');
SELECT evstream_rebuild('2001-02-04', '2001-02-04');
ROLLBACK TO a;
SET LOCAL evstream.store_events = off;
SELECT evstream_rebuild('2001-02-04', '2001-02-04');
ROLLBACK TO a;
SET LOCAL evstream.item_stats = off;
SELECT evstream_rebuild('2001-02-03', '2001-02-03');
ROLLBACK;

-- errors
SELECT evstream_rebuild(NULL, '2001-02-04');
SELECT evstream_rebuild('2001-02-04', 'infinity');
SELECT evstream_rebuild('2001-02-04', '2001-02-03');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT evstream_rebuild('2001-02-04', '2001-02-04');
ROLLBACK;
