-- Times of events: what is taken, what is refused, and their days at the ends of time.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS evstream;
CREATE EXTENSION evstream;
RESET client_min_messages;
SET TimeZone = 'UTC';
SET DateStyle = 'ISO';

-- Each form as a value of JSON, through track_batch; those that are no time become dead letters.
CREATE TEMPORARY TABLE forms (n int GENERATED ALWAYS AS IDENTITY, at jsonb, expected timestamptz);
INSERT INTO forms (at, expected) VALUES
	-- offsets
	('"2026-11-20T12:00:00Z"', '2026-11-20 12:00:00+00'),
	('"2026-11-20t12:00:00z"', '2026-11-20 12:00:00+00'),
	('"2026-11-20 12:00:00"', '2026-11-20 12:00:00+00'),
	('"2026-11-20T12:00:00+14:00"', '2026-11-19 22:00:00+00'),
	('"2026-11-20T12:00:00-12:00"', '2026-11-21 00:00:00+00'),
	('"2026-11-20T12:00:00+15:59"', '2026-11-19 20:01:00+00'),
	('"2026-11-20T12:00:00-15:59"', '2026-11-21 03:59:00+00'),
	('"2026-11-20T12:00:00+0530"', '2026-11-20 06:30:00+00'),
	('"2026-11-20T12:00:00-03"', '2026-11-20 15:00:00+00'),
	('"2026-11-20T12:00:00+16:00"', NULL),
	('"2026-11-20T12:00:00+01:60"', NULL),
	('"2026-11-20T12:00:00 Europe/Berlin"', NULL),
	-- leap seconds count into the next minute, and a day ends at 23:59
	('"2016-12-31T23:59:60Z"', '2017-01-01 00:00:00+00'),
	('"2016-12-31T18:59:60.5-05:00"', '2017-01-01 00:00:00.5+00'),
	('"2016-12-31T23:59:61Z"', NULL),
	('"2026-11-20T24:00:00Z"', NULL),
	('"2026-11-20T12:60:00Z"', NULL),
	-- digits
	('"2026-11-20T12:00:00.1Z"', '2026-11-20 12:00:00.1+00'),
	('"2026-11-20T12:00:00.123456Z"', '2026-11-20 12:00:00.123456+00'),
	('"2026-11-20T12:00:00.1234564Z"', '2026-11-20 12:00:00.123456+00'),
	('"2026-11-20T12:00:00.1234565Z"', '2026-11-20 12:00:00.123457+00'),
	('"2026-11-20T12:00:00.9999999Z"', '2026-11-20 12:00:01+00'),
	('"2026-11-20T12:00:00.123456789012345678901234567890+01:00"', '2026-11-20 11:00:00.123457+00'),
	('"2026-11-20T12:00:00.Z"', NULL),
	('"2026-11-20T12:00Z"', NULL),
	('"2026-11-20"', NULL),
	-- calendar
	('"2024-02-29T00:00:00Z"', '2024-02-29 00:00:00+00'),
	('"2026-02-29T00:00:00Z"', NULL),
	('"1900-02-29T00:00:00Z"', NULL),
	('"2000-02-29T23:59:59.999999Z"', '2000-02-29 23:59:59.999999+00'),
	-- the first and the last year
	('"0001-01-01T00:00:00Z"', '0001-01-01 00:00:00+00'),
	('"0001-01-01T00:00:00-00:01"', '0001-01-01 00:01:00+00'),
	('"0001-01-01T00:00:00+00:01"', NULL),
	('"0000-12-31T23:59:59Z"', NULL),
	('"-0001-01-01T00:00:00Z"', NULL),
	('"0044-03-15 12:00:00 BC"', NULL),
	('"infinity"', NULL),
	('"-infinity"', NULL),
	('"now"', NULL),
	-- numbers: seconds, above 1e11 milliseconds
	('0', '1970-01-01 00:00:00+00'),
	('1795250000', 'epoch'::timestamptz + 1795250000 * interval '1 s'),
	('1795250000.5', 'epoch'::timestamptz + 1795250000.5 * interval '1 s'),
	('-0.5', '1969-12-31 23:59:59.5+00'),
	('-62135596800', '0001-01-01 00:00:00+00'),
	('-62135596800.000001', NULL),
	('-100000000001', '1966-10-31 14:13:19.999+00'),
	('1e300', NULL),
	('"1795250000"', NULL),
	('true', NULL),
	('[]', NULL);
SELECT evstream_track_batch((SELECT jsonb_agg(jsonb_build_object('user_id', n, 'event', 'form', 'ts', at) ORDER BY n) FROM forms), 'dead_letter')
	= (SELECT count(expected) FROM forms) AS tracked;
SELECT evstream_wait('60 s');
SELECT f.at, f.expected, e.occurred_at, d.reason
FROM forms f LEFT JOIN evstream_events e ON e.user_id = f.n::text
	LEFT JOIN evstream_dead_letters d ON convert_from(d.record_value, 'UTF8')::jsonb ->> 'user_id' = f.n::text
WHERE (f.expected IS DISTINCT FROM e.occurred_at) OR (f.expected IS NULL) <> (d.reason IS NOT DISTINCT FROM 'bad_timestamp') OR num_nonnulls(e.occurred_at, d.reason) <> 1
ORDER BY n;
SELECT count(*), count(DISTINCT reason), min(detail), max(detail) FROM evstream_dead_letters;
SELECT bool_and(evstream_dead_letter_discard(id)) AS discarded FROM evstream_dead_letters;

-- The rule of 1e11, and the last year, through the check of records; all of these are in the future.
SET evstream.max_clock_skew = '1000 years';
CREATE FUNCTION pg_temp.verdict(at text) RETURNS text LANGUAGE sql AS $$
	SELECT COALESCE(reason, 'good') FROM evstream.check_record(convert_to('{"user_id": "u", "event": "view", "ts": ' || at || '}', 'UTF8'), now(), NULL)
$$;
SELECT at, pg_temp.verdict(at) FROM unnest(ARRAY['100000000000', '100000000000.1', '100000000001', '1e11', '1.0e11', '99999999999.999999',
	'253402300799', '253402300799999', '253402300799.999999', '253402300800000', '"9999-12-31T23:59:59.999999Z"', '"9999-12-31T23:59:59.9999999Z"',
	'"9999-12-31T23:59:59-00:01"', '"10000-01-01T00:00:00Z"']) WITH ORDINALITY a (at, n) ORDER BY n;
RESET evstream.max_clock_skew;

-- evstream_track takes what timestamptz has.
SELECT evstream_track('ends', 'view', occurred_at => '0001-01-01 00:00:00+00') IS NOT NULL AS ok;
SELECT evstream_track('ends', 'view', occurred_at => '0001-12-31 23:59:59.999999+00 BC') IS NOT NULL AS ok;
SELECT evstream_track('ends', 'view', occurred_at => '10000-01-01 00:00:00+00') IS NOT NULL AS ok;
SELECT evstream_track('ends', 'view', occurred_at => '294276-12-31 00:00:00+00') IS NOT NULL AS ok;
SELECT evstream_track('ends', 'view', occurred_at => '4714-11-24 00:00:00+00 BC') IS NOT NULL AS ok;
SELECT evstream_track('ends', 'view', occurred_at => 'infinity') IS NOT NULL AS ok;
SELECT evstream_track('ends', 'view', occurred_at => '-infinity') IS NOT NULL AS ok;
SELECT evstream_track('ends', 'view', occurred_at => '9999-12-31 23:59:59.999999+00') IS NOT NULL AS ok;

-- The edge of max_clock_skew, by the clock of the call: a bit before it, and behind it.
SELECT evstream_track('edge', 'view', occurred_at => clock_timestamp() + interval '1 day' - interval '1 s') IS NOT NULL AS ok;
SELECT evstream_track('edge', 'view', occurred_at => clock_timestamp() + interval '1 day' + interval '60 s') IS NOT NULL AS ok;
SELECT evstream_wait('60 s');
SELECT count(*) FROM evstream_events WHERE user_id = 'edge';

-- Infinity and the ends of time, wherever a time, a day or an interval is taken.
SELECT evstream_wait('1000000 years');
SELECT evstream_wait('-1000000 years');
SELECT evstream_wait('-1 s'), evstream_wait('0.000001 s');
SELECT evstream_subscribe('ends', event_types => '{form}') IS NOT NULL AS subscribed;
SELECT count(*) = (SELECT count(expected) FROM forms) AS all_of_them FROM evstream_backfill('ends', '-infinity', 100000);
SELECT count(*) = (SELECT count(expected) FROM forms) AS all_of_them FROM evstream_backfill('ends', '4714-11-24 00:00:00+00 BC', 100000);
SELECT count(*) FROM evstream_backfill('ends', 'infinity');
SELECT count(*) FROM evstream_backfill('ends', '294276-12-31');
SELECT evstream_unsubscribe('ends');
SET evstream.kafka_brokers = '127.0.0.1:1';
SELECT evstream_seek('infinity'::timestamptz);
SELECT evstream_seek('-infinity'::timestamptz, force => true);
RESET evstream.kafka_brokers;
SELECT evstream_rebuild('-infinity', 'infinity');
SELECT evstream_rebuild('infinity', 'infinity');
SELECT evstream_rebuild('-infinity', '-infinity');
SET evstream.retention = 'infinity';
SET evstream.dedup_window = '-1 day';
SET evstream.max_clock_skew = '10000 years';

-- Days of the first and the last years, in all zones: those before the year 1 and behind 9999 too.
SELECT z.name, evstream.day_of('0001-01-01 00:00:00+00', z.name) AS first, evstream.day_of('9999-12-31 23:59:59.999999+00', z.name) AS last
FROM unnest(ARRAY['UTC', 'America/New_York', 'Europe/Berlin', 'Pacific/Kiritimati', 'Etc/GMT+12', 'Asia/Manila', 'America/Juneau']) WITH ORDINALITY z (name, n) ORDER BY n;
-- They are in the default leaves, as are all days but those of about now, and are counted as any other.
SELECT evstream_track_batch('[{"user_id": "far", "event": "purchase", "ts": "0001-01-01T00:00:00Z", "item_id": "i", "amount": 1},
	{"user_id": "far", "event": "purchase", "ts": "0001-01-01T23:59:59Z", "item_id": "i", "amount": 2}, {"user_id": "far", "event": "view", "ts": "0001-01-02T00:00:00Z"},
	{"user_id": "far", "event": "view", "ts": "1582-10-10T00:00:00Z"}]');
SELECT evstream_wait('60 s');
SELECT tableoid::regclass, day, event_type, event_count, amount_total FROM evstream.daily_counts WHERE user_id = 'far' ORDER BY 2, 3;
SELECT tableoid::regclass, day, item_id, purchase_count FROM evstream.daily_items WHERE user_id = 'far' ORDER BY 2, 3;
SELECT user_id, day, view_count, purchase_count, purchase_amount, first_event_at, last_event_at FROM evstream_daily_summary WHERE user_id = 'far' ORDER BY day;

-- Computed again, from the first day that there is to the last one: what plain SQL computes.
CREATE TEMPORARY TABLE before AS SELECT user_id, day, event_type, event_count, amount_total, first_event_at, last_event_at FROM evstream_daily_counts;
SELECT count(*) FROM ((TABLE before EXCEPT SELECT user_id, occurred_at::date, event_type, count(*), sum(amount), min(occurred_at), max(occurred_at) FROM evstream_events GROUP BY 1, 2, 3)
	UNION ALL (SELECT user_id, occurred_at::date, event_type, count(*), sum(amount), min(occurred_at), max(occurred_at) FROM evstream_events GROUP BY 1, 2, 3 EXCEPT TABLE before)) d;
SELECT evstream_rebuild('4714-11-24 BC', '5874897-12-31') = (SELECT count(*) FROM before) + (SELECT count(*) FROM evstream_daily_item_summary)
	+ (SELECT count(*) FROM (SELECT DISTINCT day, event_type FROM before) t) AS rows_written;
SELECT count(*) FROM ((TABLE before EXCEPT SELECT user_id, day, event_type, event_count, amount_total, first_event_at, last_event_at FROM evstream_daily_counts)
	UNION ALL (SELECT user_id, day, event_type, event_count, amount_total, first_event_at, last_event_at FROM evstream_daily_counts EXCEPT TABLE before)) d;
SELECT evstream_rebuild('0001-01-01', '9999-12-31') > 0 AS rebuilt, evstream_rebuild('100000-01-01', '5874897-12-31') AS beyond, evstream_rebuild('4714-11-24 BC', '0044-03-15 BC') AS before;
-- one of them cannot be, and is named
INSERT INTO evstream.unstored_days VALUES ('0001-12-31 BC', 'UTC');
SELECT evstream_rebuild('4714-11-24 BC', '5874897-12-31');
SELECT evstream_rebuild('0001-01-01', '0001-01-01') AS next_day;

-- A retried dead letter has the time of its record, also where that is long ago.
INSERT INTO evstream.dead_letters (reason, record_value, record_timestamp) VALUES ('not_json', '{"user_id": "retried", "event": "view"}', '0001-02-03 04:05:06.789+00'),
	('not_json', '{"user_id": "too old", "event": "view"}', '0044-03-15 12:00:00+00 BC'), ('not_json', '{"user_id": "too late", "event": "view"}', '294246-01-01 00:00:00+00');
SELECT evstream_dead_letter_retry(id) FROM evstream_dead_letters ORDER BY id;
SELECT evstream_wait('60 s');
DO $$
BEGIN
	FOR i IN 1 .. 600 LOOP
		EXIT WHEN EXISTS (SELECT FROM evstream_daily_counts WHERE user_id = 'retried');
		PERFORM pg_sleep(0.05);
	END LOOP;
END
$$;
SELECT user_id, day FROM evstream_daily_counts WHERE user_id IN ('retried', 'too old', 'too late');
SELECT reason, detail, attempts FROM evstream_dead_letters ORDER BY id;

DROP EXTENSION evstream;
CREATE EXTENSION evstream;
