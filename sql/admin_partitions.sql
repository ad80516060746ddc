-- What the maintenance worker does with the tables.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS evstream;
RESET client_min_messages;
SET TimeZone = 'UTC';
SET datestyle = 'ISO';

-- Waits until a query gives true.
CREATE FUNCTION wait_until(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	ok boolean;
BEGIN
	FOR i IN 1..600 LOOP
		EXECUTE query INTO ok;
		IF ok THEN
			RETURN 'seen';
		END IF;
		PERFORM pg_sleep(0.05);
	END LOOP;
	RETURN 'not seen: ' || query;
END
$$;

-- In the catalog as it is now, without the session's cache.
CREATE FUNCTION has_table(name text) RETURNS boolean LANGUAGE sql AS $$
	SELECT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = 'evstream'::regnamespace AND c.relname = name)
$$;

-- leaves are made ahead, by the extension's owner, with indexes of their own
SELECT wait_until($$ SELECT count(*) = 3 FROM generate_series(0, 2) n
	WHERE has_table('events_' || to_char(now() + n * interval '1 day', 'YYYYMMDD')) $$);
SELECT wait_until($$ SELECT count(*) = 6 FROM generate_series(0, 2) n CROSS JOIN unnest(ARRAY['daily_counts', 'daily_items']) t
	WHERE has_table(t || '_' || to_char(date_trunc('month', now()) + n * interval '1 month', 'YYYYMM')) $$);
SELECT pg_get_expr(c.relpartbound, c.oid) = format('FOR VALUES FROM (''%s 00:00:00+00'') TO (''%s 00:00:00+00'')', current_date, current_date + 1) AS bounds,
	c.relowner = (SELECT p.relowner FROM pg_class p WHERE p.oid = 'evstream.events'::regclass) AS owner,
	(SELECT count(*) FROM pg_index i WHERE i.indrelid = c.oid) AS indexes
FROM pg_class c WHERE c.oid = ('evstream.events_' || to_char(now(), 'YYYYMMDD'))::regclass;
SELECT c.reloptions, (SELECT string_agg(pg_get_indexdef(i.indexrelid), ' ') LIKE '%UNIQUE%(user_id, day, event_type)' FROM pg_index i WHERE i.indrelid = c.oid) AS pkey
FROM pg_class c WHERE c.oid = ('evstream.daily_counts_' || to_char(now(), 'YYYYMM'))::regclass;
-- none is a member, so pg_dump takes them as they are
SELECT count(*) FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'e' AND c.relname ~ '_[0-9]{6,}$';

SELECT evstream_pause();

-- expired events: their days are recorded, then the leaf is dropped
CREATE TABLE evstream.events_20010203 (LIKE evstream.events INCLUDING ALL);
INSERT INTO evstream.events_20010203 (event_id, user_id, event_type, occurred_at, received_at, properties, log_id, log_partition, log_offset)
SELECT gen_random_uuid(), 'u', 'view', at::timestamptz, '2001-02-03 12:00+00', '{}', 1, 0, 1
FROM unnest(ARRAY['2001-02-01 23:00+00', '2001-02-03 00:00+00', '2001-02-03 23:59+00']) at;
-- and a table of a partial restore, which is no leaf yet
CREATE TABLE evstream.events_20990101 (LIKE evstream.events INCLUDING ALL);
CREATE TABLE evstream.ids_777777 (LIKE evstream.ids INCLUDING ALL);
-- expired dead letters
INSERT INTO evstream.dead_letters (reason, record_value, received_at) VALUES ('not_json', 'old', '2001-01-01 00:00+00');
-- ids out of the window, which has seen three more days with events, and within
INSERT INTO evstream.id_segments (segment_id, closed_at, last_day) VALUES (777777, '2001-01-01 00:00+00', '2001-01-01'), (777778, '2001-01-02 00:00+00', '2099-01-01');
INSERT INTO evstream.id_filters (segment_id, kind, relfilenode, filter) VALUES (777777, 1, 0, '');
INSERT INTO evstream.received_days SELECT '2001-01-01'::date + n FROM generate_series(0, 6) n ON CONFLICT DO NOTHING;
-- a log with many batches
INSERT INTO evstream.logs (log_id, kind, cluster_id, topic) VALUES (777777, 'kafka', 'c', 't');
INSERT INTO evstream.partitions (log_id, log_partition, generation, start_offset, consumed) VALUES (777777, 0, 3, 1000, '{[0,5)}');
INSERT INTO evstream.batch_log (log_id, log_partition, generation, from_offset, to_offset, last_offset)
	SELECT 777777, 0, 2, n, n + 10, n + 9 FROM generate_series(10, 40, 10) n
	UNION ALL SELECT 777777, 0, 3, 1000 + n * 10, 1010 + n * 10, 1009 + n * 10 FROM generate_series(0, 249) n;
-- expired stats
INSERT INTO evstream.daily_counts VALUES ('u', '2001-02-03', 'view', 1, NULL, now(), now(), now());
CREATE TABLE evstream.daily_counts_200103 (LIKE evstream.daily_counts INCLUDING ALL, PRIMARY KEY (user_id, day, event_type));
INSERT INTO evstream.daily_counts_200103 VALUES ('u', '2001-03-03', 'view', 1, NULL, now(), now(), now());
INSERT INTO evstream.daily_totals VALUES ('2001-02-03', 'view', 0, 1, 1, NULL, now());
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET evstream.stats_retention = ''5 years''', current_database()); END $$;

SELECT evstream_restart();
SELECT wait_until($$ SELECT NOT has_table('events_20010203') $$);
SELECT day, time_zone FROM evstream.unstored_days WHERE day < '2002-01-01' ORDER BY day;
SELECT wait_until($$ SELECT relispartition FROM pg_class WHERE oid = 'evstream.events_20990101'::regclass $$);
SELECT wait_until($$ SELECT NOT EXISTS (SELECT FROM evstream.dead_letters WHERE received_at < '2002-01-01') $$);
SELECT wait_until($$ SELECT NOT has_table('ids_777777') $$);
SELECT segment_id FROM evstream.id_segments WHERE segment_id >= 777777;
SELECT segment_id FROM evstream.id_filters WHERE segment_id >= 777777;
SELECT wait_until($$ SELECT count(*) = 100 FROM evstream.batch_log WHERE log_id = 777777 $$);
SELECT min(generation), min(from_offset), max(to_offset) FROM evstream.batch_log WHERE log_id = 777777;
SELECT consumed FROM evstream.partitions WHERE log_id = 777777;
SELECT wait_until($$ SELECT NOT has_table('daily_counts_200103') $$);
SELECT wait_until($$ SELECT NOT EXISTS (SELECT FROM evstream.daily_totals WHERE day < '2002-01-01') $$);
SELECT count(*) FROM evstream.daily_counts WHERE day < '2002-01-01';
SELECT evstream_rebuild('2001-02-01', '2001-02-04');

-- as it was
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET evstream.stats_retention', current_database()); END $$;
DROP TABLE evstream.events_20990101;
DELETE FROM evstream.unstored_days WHERE day < '2002-01-01';
DELETE FROM evstream.id_segments WHERE segment_id >= 777777;
DELETE FROM evstream.received_days WHERE day < '2002-01-01';
DELETE FROM evstream.batch_log WHERE log_id = 777777;
DELETE FROM evstream.partitions WHERE log_id = 777777;
DELETE FROM evstream.logs WHERE log_id = 777777;
SELECT evstream_resume();
SELECT evstream_restart();
DROP FUNCTION wait_until(text);
DROP FUNCTION has_table(text);
