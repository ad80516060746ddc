-- Days in evstream.time_zone across both clock changes of two zones, and computed again after a change of the zone.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS evstream;
CREATE EXTENSION evstream;
RESET client_min_messages;
SET TimeZone = 'UTC';
SET DateStyle = 'ISO';

CREATE PROCEDURE pg_temp.wait_until(condition text) LANGUAGE plpgsql AS $$
DECLARE
	holds boolean;
	until timestamptz := clock_timestamp() + interval '60 s';
BEGIN
	LOOP
		EXECUTE 'SELECT ' || condition INTO holds;
		EXIT WHEN holds;
		IF clock_timestamp() > until THEN
			RAISE EXCEPTION 'waited in vain for: %', condition;
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.02);
	END LOOP;
END
$$;
CREATE PROCEDURE pg_temp.count_in(zone text) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('ALTER DATABASE %I SET evstream.time_zone = %L', current_database(), zone);
	PERFORM evstream_restart();
	COMMIT;
	CALL pg_temp.wait_until(format('time_zone = %L FROM evstream.state', zone));
	-- an event is counted: the consumer is there, and by this zone
	PERFORM evstream_track('started', 'start', occurred_at => '2025-01-15 12:00:00+00');
	COMMIT;
	IF NOT evstream_wait('60 s') THEN
		RAISE EXCEPTION 'nothing is counted in %', zone;
	END IF;
END
$$;

-- The days of all events by plain SQL, and what the views have otherwise.
CREATE FUNCTION pg_temp.differences(zone text) RETURNS TABLE (side text, user_id text, day date, event_type text, event_count bigint, amount_total numeric) LANGUAGE sql AS $$
	WITH want AS (
		SELECT e.user_id, (e.occurred_at AT TIME ZONE zone)::date, e.event_type, count(*), sum(e.amount) FROM evstream_events e GROUP BY 1, 2, 3
	), have AS (
		SELECT c.user_id, c.day, c.event_type, c.event_count, c.amount_total FROM evstream_daily_counts c
	)
	(SELECT 'missing', * FROM (TABLE want EXCEPT TABLE have) m) UNION ALL (SELECT 'extra', * FROM (TABLE have EXCEPT TABLE want) x)
	UNION ALL (
		SELECT 'total', NULL, COALESCE(w.day, h.day), COALESCE(w.event_type, h.event_type), COALESCE(w.n, 0) - COALESCE(h.event_count, 0), w.users - h.user_count
		FROM (SELECT (e.occurred_at AT TIME ZONE zone)::date AS day, e.event_type, count(*) AS n, count(DISTINCT e.user_id) AS users FROM evstream_events e GROUP BY 1, 2) w
			FULL JOIN evstream_daily_totals h ON h.day = w.day AND h.event_type = w.event_type
		WHERE (w.n, w.users) IS DISTINCT FROM (h.event_count, h.user_count)
	)
$$;

-- A minute and a microsecond around each midnight of the days of the changes, and each half hour of them:
-- the hour that comes twice, and the one that there is not. Half of them by track, half in one batch.
CREATE TEMPORARY TABLE instants AS
	SELECT DISTINCT m.zone, t.at
	FROM (VALUES ('Europe/Berlin', '2025-03-30'::date), ('Europe/Berlin', '2025-10-26'), ('America/New_York', '2025-03-09'), ('America/New_York', '2025-11-02')) m (zone, day)
		CROSS JOIN LATERAL (
			SELECT ((m.day + n)::timestamp AT TIME ZONE m.zone) + step FROM generate_series(0, 1) n,
				unnest(ARRAY[interval '-1 min', interval '-0.000001 s', interval '0', interval '0.000001 s', interval '1 min']) step
			UNION ALL
			SELECT g FROM generate_series(m.day::timestamp AT TIME ZONE m.zone, (m.day + 1)::timestamp AT TIME ZONE m.zone, interval '30 min') g
		) t (at);
SELECT zone, count(*), count(DISTINCT at AT TIME ZONE zone) AS local_times FROM instants GROUP BY 1 ORDER BY 1;
CREATE FUNCTION pg_temp.track_all() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
	PERFORM evstream_track(i.zone, 'tracked', jsonb_build_object('amount', 1), evstream_event_id(i.zone || i.at), i.at) FROM instants i;
	-- as somebody there would write it: with the offset of the hour, which tells the first from the second
	RETURN evstream_track_batch((SELECT jsonb_agg(jsonb_build_object('user_id', i.zone, 'event', 'batch', 'amount', 2, 'id', n,
			'ts', to_char(i.at AT TIME ZONE i.zone, 'YYYY-MM-DD"T"HH24:MI:SS.US') || (ARRAY['-05:00', '-04:00', '+01:00', '+02:00'])[
				(EXTRACT(epoch FROM (i.at AT TIME ZONE i.zone) - (i.at AT TIME ZONE 'UTC')) / 3600 + CASE WHEN i.zone = 'Europe/Berlin' THEN 2 ELSE 6 END)::int]) ORDER BY n)
		FROM (SELECT *, row_number() OVER (ORDER BY zone, at) AS n FROM instants) i));
END
$$;

CALL pg_temp.count_in('Europe/Berlin');
SELECT pg_temp.track_all() = (SELECT count(*) FROM instants) AS tracked;
SELECT evstream_wait('60 s');
SELECT user_id, event_type, count(*) = (SELECT count(*) FROM instants i WHERE i.zone = user_id) AS all_of_them, bool_and(occurred_at IN (SELECT at FROM instants i WHERE i.zone = user_id)) AS same_instants
FROM evstream_events WHERE user_id <> 'started' GROUP BY 1, 2 ORDER BY 1, 2;
SELECT * FROM pg_temp.differences('Europe/Berlin');
-- 46 and 50 half hours, and those around midnight
SELECT day, event_count FROM evstream_daily_counts WHERE user_id = 'Europe/Berlin' AND event_type = 'tracked' ORDER BY day;

-- Another zone: nothing moves by itself, health asks for it, and what comes meanwhile has its new day.
CALL pg_temp.count_in('America/New_York');
SELECT h #>> '{components,workers,status}' AS status, h #>> '{components,workers,why}' AS why, h #>> '{components,workers,hint}' AS hint FROM evstream_health() h;
SELECT evstream_track('late', 'view', occurred_at => '2025-03-10 03:59:59+00') IS NOT NULL, evstream_track('late', 'view', occurred_at => '2025-03-10 04:00:00+00') IS NOT NULL;
SELECT evstream_wait('60 s');
SELECT day, event_count FROM evstream_daily_counts WHERE user_id = 'late' ORDER BY day;
SELECT count(*) > 0 AS differs FROM pg_temp.differences('America/New_York');
SELECT evstream_rebuild('2025-01-01', '2025-03-31') > 0 AS rebuilt;
SELECT count(*) FROM pg_temp.differences('America/New_York') WHERE day BETWEEN '2025-01-01' AND '2025-03-31';
SELECT rebuild_needed FROM evstream.state;
SELECT evstream_rebuild('2025-04-01', '2025-12-31') > 0 AS rebuilt;
SELECT * FROM pg_temp.differences('America/New_York');
SELECT rebuild_needed FROM evstream.state;
SELECT day, event_count FROM evstream_daily_counts WHERE user_id = 'America/New_York' AND event_type = 'batch' ORDER BY day;
-- the first instant that there is: of a day before the year 1 here
SELECT evstream_track('first', 'purchase', '{"item_id": "i", "amount": 1}', occurred_at => '0001-01-01 00:00:00+00') IS NOT NULL AS ok;
SELECT evstream_wait('60 s');
SELECT day, purchase_count, first_event_at FROM evstream_daily_summary WHERE user_id = 'first';
SELECT evstream_rebuild('0001-12-31 BC', '0001-12-31 BC') AS rebuilt;
SELECT day, purchase_count, purchase_amount FROM evstream_daily_summary WHERE user_id = 'first';
SELECT day, purchase_count FROM evstream_daily_item_summary WHERE user_id = 'first';
SELECT * FROM pg_temp.differences('America/New_York');

-- The zones of the earliest and of the latest day, 26 hours apart.
CALL pg_temp.count_in('Pacific/Kiritimati');
SELECT evstream_rebuild('0001-12-30 BC', '2025-12-31') > 0 AS rebuilt;
SELECT * FROM pg_temp.differences('Pacific/Kiritimati');
CALL pg_temp.count_in('Etc/GMT+12');
SELECT evstream_rebuild('0001-12-30 BC', '2025-12-31') > 0 AS rebuilt;
SELECT * FROM pg_temp.differences('Etc/GMT+12');
CALL pg_temp.count_in('Europe/Berlin');
SELECT evstream_rebuild('0001-12-30 BC', '2025-12-31') > 0 AS rebuilt;
SELECT * FROM pg_temp.differences('Europe/Berlin');

-- A zone that only one of the workers knows, as it alone has started since: no other one counts by that of before.
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET evstream.time_zone = %L', current_database(), 'Pacific/Kiritimati'); END $$;
SELECT pg_terminate_backend(pid) FROM evstream_workers WHERE role = 'maintenance';
CALL pg_temp.wait_until($$ time_zone = 'Pacific/Kiritimati' FROM evstream.state $$);
SELECT evstream_rebuild('0001-12-30 BC', '2025-12-31') > 0 AS rebuilt;
SELECT evstream_track('after', 'view', occurred_at => '2025-06-01 12:00:00+00') IS NOT NULL AS ok;
SELECT evstream_wait('60 s');
SELECT day FROM evstream_daily_counts WHERE user_id = 'after';
SELECT * FROM pg_temp.differences('Pacific/Kiritimati');

-- Days of events that were dropped, or not stored: of two zones it is all days that one of theirs may overlap.
CALL pg_temp.count_in('Pacific/Kiritimati');
-- at once, as maintenance may be looking for leaves
BEGIN;
CREATE TABLE evstream.events_20010203 (LIKE evstream.events INCLUDING ALL);
INSERT INTO evstream.events_20010203 (event_id, user_id, event_type, occurred_at, received_at, properties, log_id, log_partition, log_offset)
	VALUES (gen_random_uuid(), 'dropped', 'view', '2001-02-03 00:00:00+14', '2001-02-03 12:00+00', '{}', 1, 0, 1);
INSERT INTO evstream.daily_counts VALUES ('dropped', '2001-02-03', 'view', 1, NULL, '2001-02-03 00:00:00+14', '2001-02-03 00:00:00+14', now());
INSERT INTO evstream.daily_totals VALUES ('2001-02-03', 'view', 0, 1, 1, NULL, now());
COMMIT;
SELECT evstream_restart();
CALL pg_temp.wait_until($$ to_regclass('evstream.events_20010203') IS NULL $$);
SELECT day, time_zone FROM evstream.unstored_days;
SELECT evstream_rebuild('2001-02-03', '2001-02-03');
SELECT evstream_rebuild('2001-02-02', '2001-02-02') AS before, evstream_rebuild('2001-02-04', '2001-02-04') AS after;
CALL pg_temp.count_in('Etc/GMT+12');
-- it occurred on the 1st here
SELECT evstream.day_of('2001-02-03 00:00:00+14', 'Etc/GMT+12');
SELECT evstream_rebuild('2001-02-01', '2001-02-01');
SELECT evstream_rebuild('2001-01-31', '2001-01-31') AS before;
SELECT evstream_rebuild('2001-02-04', '2001-02-04') AS after;
-- what is counted of it has the 3rd as its day
SELECT evstream_rebuild('2001-02-03', '2001-02-03');
SELECT evstream.zone_days('2025-03-30', 'Europe/Berlin', 'UTC') AS berlin, evstream.zone_days('2025-03-30', 'CET', 'UTC') AS cet, evstream.zone_days('2025-03-30', 'UTC', 'Europe/Berlin') AS utc,
	evstream.zone_days('2025-03-30', 'UTC', 'UTC') AS same, evstream.zone_days('2025-03-30', 'UTC', 'Etc/UTC') AS alias, evstream.zone_days('0001-12-31 BC', 'Asia/Manila', 'America/Juneau') AS manila;
SELECT day, event_count FROM evstream_daily_counts WHERE user_id = 'dropped';
-- days that cannot be rebuilt are not waited for
SELECT rebuild_needed FROM evstream.state;
SELECT evstream_rebuild('2025-01-01', '2025-12-31') > 0 AS rebuilt, evstream_rebuild('0001-12-30 BC', '2000-12-31') AS first;
SELECT rebuild_needed FROM evstream.state;

DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET evstream.time_zone', current_database()); END $$;
DISCARD TEMP;
DROP EXTENSION evstream;
CREATE EXTENSION evstream;
