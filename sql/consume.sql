-- Consuming: the daily views are what plain SQL computes from the events.
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
-- Other processes than before, with the settings of the database.
CREATE TEMPORARY TABLE old_workers (pid int);
CREATE PROCEDURE pg_temp.restart() LANGUAGE plpgsql AS $$
BEGIN
	CALL pg_temp.wait_until('count(pid) = 2 FROM evstream_workers');
	DELETE FROM old_workers;
	INSERT INTO old_workers SELECT w.pid FROM evstream_workers w;
	PERFORM evstream_restart();
	COMMIT;
	CALL pg_temp.wait_until('count(w.pid) = 2 AND NOT bool_or(w.pid IN (SELECT o.pid FROM old_workers o)) FROM evstream_workers w');
END
$$;
-- A setting of this database, for workers and for this session; null resets it.
CREATE FUNCTION pg_temp.set_here(name text, value text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF value IS NULL THEN
		EXECUTE format('ALTER DATABASE %I RESET %s', current_database(), name);
	ELSE
		EXECUTE format('ALTER DATABASE %I SET %s = %L', current_database(), name, value);
	END IF;
END
$$;

-- What is to come out, by plain SQL over what went in and over the stored events;
-- each gives the rows of one side that the other has not.
CREATE TEMPORARY TABLE source (event_id uuid, user_id text, event_type text, occurred_at timestamptz, item_id text, amount numeric, user_tier text);
CREATE TEMPORARY VIEW diff_events AS
	(SELECT 'missing', * FROM source EXCEPT SELECT 'missing', event_id, user_id, event_type, occurred_at, item_id, amount, user_tier FROM evstream_events)
	UNION ALL
	(SELECT 'extra', event_id, user_id, event_type, occurred_at, item_id, amount, user_tier FROM evstream_events EXCEPT SELECT 'extra', * FROM source);
CREATE TEMPORARY VIEW want_counts AS
	SELECT user_id, occurred_at::date AS day, event_type, count(*) AS event_count, sum(amount) AS amount_total, min(occurred_at) AS first_event_at, max(occurred_at) AS last_event_at
	FROM evstream_events GROUP BY 1, 2, 3;
CREATE TEMPORARY VIEW want_summary AS
	SELECT user_id, occurred_at::date AS day, count(*) FILTER (WHERE event_type = 'view') AS view_count, count(*) FILTER (WHERE event_type = 'click') AS click_count,
		count(*) FILTER (WHERE event_type = 'purchase') AS purchase_count, count(*) FILTER (WHERE event_type = 'login') AS login_count, count(*) AS event_count,
		sum(amount) FILTER (WHERE event_type = 'purchase') AS purchase_amount, min(occurred_at) AS first_event_at, max(occurred_at) AS last_event_at
	FROM evstream_events GROUP BY 1, 2;
CREATE TEMPORARY VIEW want_items AS
	SELECT user_id, item_id, occurred_at::date AS day, count(*) FILTER (WHERE event_type = 'view') AS view_count, count(*) FILTER (WHERE event_type = 'click') AS click_count,
		count(*) FILTER (WHERE event_type = 'purchase') AS purchase_count, count(*) AS event_count
	FROM evstream_events WHERE item_id IS NOT NULL GROUP BY 1, 2, 3;
CREATE TEMPORARY VIEW want_totals AS
	SELECT occurred_at::date AS day, event_type, count(*) AS event_count, count(DISTINCT user_id) AS user_count, sum(amount) AS amount_total
	FROM evstream_events GROUP BY 1, 2;
CREATE TEMPORARY VIEW differences AS
	SELECT 'events' AS what, count(*) FROM diff_events
	UNION ALL
	SELECT 'counts', count(*) FROM ((TABLE want_counts EXCEPT SELECT user_id, day, event_type, event_count, amount_total, first_event_at, last_event_at FROM evstream_daily_counts)
		UNION ALL (SELECT user_id, day, event_type, event_count, amount_total, first_event_at, last_event_at FROM evstream_daily_counts EXCEPT TABLE want_counts)) d
	UNION ALL
	SELECT 'summary', count(*) FROM ((TABLE want_summary EXCEPT SELECT user_id, day, view_count, click_count, purchase_count, login_count, event_count, purchase_amount, first_event_at, last_event_at FROM evstream_daily_summary)
		UNION ALL (SELECT user_id, day, view_count, click_count, purchase_count, login_count, event_count, purchase_amount, first_event_at, last_event_at FROM evstream_daily_summary EXCEPT TABLE want_summary)) d
	UNION ALL
	SELECT 'items', count(*) FROM ((TABLE want_items EXCEPT SELECT user_id, item_id, day, view_count, click_count, purchase_count, event_count FROM evstream_daily_item_summary)
		UNION ALL (SELECT user_id, item_id, day, view_count, click_count, purchase_count, event_count FROM evstream_daily_item_summary EXCEPT TABLE want_items)) d
	UNION ALL
	SELECT 'totals', count(*) FROM ((TABLE want_totals EXCEPT SELECT day, event_type, event_count, user_count, amount_total FROM evstream_daily_totals)
		UNION ALL (SELECT day, event_type, event_count, user_count, amount_total FROM evstream_daily_totals EXCEPT TABLE want_totals)) d;

-- 3,000 events of 40 users in 5 days, half of them one by one and half in a batch.
INSERT INTO source
SELECT evstream_event_id('consume ' || n), 'user ' || (n * n % 40), (ARRAY['view', 'view', 'click', 'purchase', 'login', 'search'])[1 + n % 6],
	'2026-01-02 00:00:00+00'::timestamptz + n * n % 432000 * interval '1 s' + n * interval '1 us',
	CASE WHEN n % 3 > 0 THEN 'item ' || n % 17 END, CASE WHEN n % 5 > 0 THEN (n * 37 % 10007 - 500) / 100.0 END, CASE WHEN n % 7 = 0 THEN 'gold' END
FROM generate_series(1, 3000) n;
SELECT count(evstream_track(user_id, event_type, jsonb_strip_nulls(jsonb_build_object('item_id', item_id, 'amount', amount, 'user_tier', user_tier)), event_id, occurred_at))
FROM source WHERE event_type IN ('view', 'click', 'search');
SELECT evstream_track_batch(jsonb_agg(to_jsonb(s))) FROM source s WHERE event_type NOT IN ('view', 'click', 'search');
SELECT evstream_wait('60 s');
TABLE differences;
SELECT sum(event_count) FROM evstream_daily_summary;
SELECT user_id, day, view_count, click_count, purchase_count, login_count, event_count, purchase_amount, first_event_at, last_event_at
FROM evstream_daily_summary WHERE user_id = 'user 4' ORDER BY day;
SELECT day, event_type, event_count, user_count, amount_total FROM evstream_daily_totals ORDER BY event_type, day;

-- The same events again change nothing; late ones go to their own days, and one to year 1.
SELECT count(*) AS rows, max(updated_at) AS updated FROM evstream_daily_counts \gset before_
SELECT evstream_track_batch(jsonb_agg(to_jsonb(s))) FROM source s;
SELECT count(evstream_track('somebody else', 'view', event_id => event_id)) FROM source;
SELECT evstream_wait('60 s');
TABLE differences;
SELECT count(*) = :before_rows AND max(updated_at) = :'before_updated' AS unchanged FROM evstream_daily_counts;
WITH late AS (
	INSERT INTO source
	SELECT evstream_event_id('late ' || n), 'user ' || n % 50, (ARRAY['view', 'purchase'])[1 + n % 2],
		(ARRAY['2026-01-02 00:00:00+00', '2026-01-02 23:59:59.999999+00', '2026-01-03 12:00:00+00', '2025-12-31 23:59:59.999999+00', '2020-02-29 00:00:00+00'])[1 + n % 5]::timestamptz,
		'item ' || n % 20, n * 0.0000000001, NULL
	FROM generate_series(1, 500) n
	UNION ALL
	SELECT evstream_event_id('late of all'), 'user 0', 'view', '0001-01-01 00:00:00+00', NULL, NULL, NULL
	RETURNING *
)
SELECT evstream_track_batch(jsonb_agg(jsonb_strip_nulls(to_jsonb(late) || jsonb_build_object('occurred_at', occurred_at)))) FROM late;
SELECT evstream_wait('60 s');
TABLE differences;
SELECT min(day) FROM evstream_daily_totals;

-- Large and negative amounts add up exactly; no amount is no zero.
SELECT evstream_track_batch('[
	{"user_id": "sums", "event": "purchase", "timestamp": "2026-02-01T00:00:00Z", "amount": 99999999999999999999.9999999999},
	{"user_id": "sums", "event": "purchase", "timestamp": "2026-02-01T00:00:00Z", "amount": 99999999999999999999.9999999999},
	{"user_id": "sums", "event": "purchase", "timestamp": "2026-02-01T00:00:00Z", "amount": 0.0000000001},
	{"user_id": "sums", "event": "purchase", "timestamp": "2026-02-02T00:00:00Z", "amount": -99999999999999999999.9999999999},
	{"user_id": "sums", "event": "purchase", "timestamp": "2026-02-02T00:00:00Z", "amount": 99999999999999999999.9999999999},
	{"user_id": "sums", "event": "purchase", "timestamp": "2026-02-03T00:00:00Z"},
	{"user_id": "sums", "event": "refund", "timestamp": "2026-02-03T00:00:00Z", "amount": -5}]');
SELECT evstream_wait('60 s');
SELECT day, event_type, event_count, amount_total FROM evstream_daily_counts WHERE user_id = 'sums' ORDER BY 1, 2;
SELECT day, purchase_count, event_count, purchase_amount FROM evstream_daily_summary WHERE user_id = 'sums' ORDER BY 1;

-- Paused: tracking goes on, nothing is counted, also after a restart.
SELECT evstream_pause();
CALL pg_temp.wait_until($$ state = 'paused' FROM evstream_workers WHERE role = 'consumer' $$);
SELECT evstream_track('paused', 'view', occurred_at => '2026-02-01 00:00:00+00') IS NOT NULL AS ok;
SELECT evstream_wait('100 ms');
SELECT evstream_wait('0');
-- a timeout beyond all times is none
SET statement_timeout = '300 ms';
SELECT evstream_wait('178000000 years');
RESET statement_timeout;
CALL pg_temp.restart();
CALL pg_temp.wait_until($$ state = 'paused' FROM evstream_workers WHERE role = 'consumer' $$);
SELECT evstream_wait('100 ms');
SELECT count(*) FROM evstream_daily_summary WHERE user_id = 'paused';
SELECT evstream_health() ->> 'status' AS status;
SELECT evstream_resume();
SELECT evstream_wait('60 s');
SELECT event_count FROM evstream_daily_summary WHERE user_id = 'paused';
SELECT evstream_wait('0');

-- What is not committed before the call is not waited for.
BEGIN;
SELECT evstream_track('not yet', 'view') IS NOT NULL AS ok;
SELECT evstream_wait('60 s');
ROLLBACK;

-- Dead letters of the consumer: good for the tracker, no good for the worker.
SET evstream.max_clock_skew = '10 years';
SET evstream.max_event_bytes = '2MB';
SELECT evstream_track('future', 'view', event_id => '0190f5c2-7a0e-7cc1-b2a4-8d2f2f0c9a21', occurred_at => date_trunc('day', now()) + interval '5 days') IS NOT NULL AS ok;
SELECT evstream_track('large', 'view', jsonb_build_object('x', repeat('x', 1500000))) IS NOT NULL AS ok;
RESET evstream.max_clock_skew;
RESET evstream.max_event_bytes;
SELECT evstream_wait('60 s');
SELECT reason, detail LIKE 'the value has 1500___ bytes, and at most 1048576 are allowed' AS bytes, topic, log_partition, log_offset IS NOT NULL AS log_offset, convert_from(record_key, 'UTF8') AS key,
	convert_from(record_value, 'UTF8')::jsonb ->> 'user_id' AS user_id, record_timestamp < received_at AS times, attempts
FROM evstream_dead_letters ORDER BY id;
SELECT count(*) FROM evstream_daily_counts WHERE user_id IN ('future', 'large');
-- still bad; then edited; then discarded
SELECT id AS future FROM evstream_dead_letters WHERE reason = 'future_timestamp' \gset
SELECT id AS large FROM evstream_dead_letters WHERE reason = 'too_large' \gset
SELECT evstream_dead_letter_retry(:future);
SELECT reason, attempts FROM evstream_dead_letters WHERE id = :future;
UPDATE evstream_dead_letters SET record_value = convert_to(jsonb_set(convert_from(record_value, 'UTF8')::jsonb, '{occurred_at}', '"2026-02-01T00:00:00Z"')::text, 'UTF8')
WHERE id = :future;
SELECT evstream_dead_letter_retry(:future);
SELECT evstream_dead_letter_discard(:large);
CALL pg_temp.wait_until($$ count(*) = 1 FROM evstream_daily_counts WHERE user_id = 'future' $$);
SELECT event_id, event_type, occurred_at FROM evstream_events WHERE user_id = 'future';
SELECT count(*) FROM evstream_dead_letters;
-- its id is known now
SELECT evstream_track('future again', 'view', event_id => '0190f5c2-7a0e-7cc1-b2a4-8d2f2f0c9a21') IS NOT NULL AS ok;
SELECT evstream_wait('60 s');
SELECT count(*) FROM evstream_events WHERE user_id = 'future again';
-- one of a batch has the time of its tracking
SELECT evstream_track_batch('[{"user_id": "retried"}]', 'dead_letter');
SELECT id AS retried, record_timestamp AS tracked FROM evstream_dead_letters \gset
UPDATE evstream_dead_letters SET record_value = '{"user_id": "retried", "event": "view"}' WHERE id = :retried;
SELECT evstream_dead_letter_retry(:retried);
CALL pg_temp.wait_until($$ count(*) = 1 FROM evstream_daily_counts WHERE user_id = 'retried' $$);
SELECT occurred_at = :'tracked' AS time, topic FROM evstream_events WHERE user_id = 'retried';

-- Events not stored: counted, known again, and the days are not rebuilt.
SELECT pg_temp.set_here('evstream.store_events', 'off');
CALL pg_temp.restart();
SELECT evstream_track('unstored', 'purchase', '{"item_id": "i", "amount": 2.5}', evstream_event_id('unstored'), '2026-03-01 12:00:00+00') IS NOT NULL AS ok;
SELECT evstream_track('unstored', 'view', '{}', evstream_event_id('unstored'), '2026-03-02 12:00:00+00') IS NOT NULL AS ok;
SELECT evstream_wait('60 s');
SELECT count(*) FROM evstream_events WHERE user_id = 'unstored';
SELECT day, event_type, event_count, amount_total FROM evstream_daily_counts WHERE user_id = 'unstored';
SELECT item_id, day, purchase_count, event_count FROM evstream_daily_item_summary WHERE user_id = 'unstored';
SELECT pg_temp.set_here('evstream.store_events', NULL);
CALL pg_temp.restart();
SELECT evstream_rebuild('2026-03-01', '2026-03-01');
SELECT evstream_rebuild('2026-01-01', '2026-01-31') > 0 AS rebuilt;
SELECT event_count FROM evstream_daily_summary WHERE user_id = 'unstored';

-- No counts by item.
SELECT pg_temp.set_here('evstream.item_stats', 'off');
CALL pg_temp.restart();
SELECT evstream_track('no items', 'purchase', '{"item_id": "i", "amount": 2.5}', NULL, '2026-03-03 12:00:00+00') IS NOT NULL AS ok;
SELECT evstream_wait('60 s');
SELECT day, event_type, event_count FROM evstream_daily_counts WHERE user_id = 'no items';
SELECT count(*) FROM evstream_daily_item_summary WHERE user_id = 'no items';
SELECT item_id FROM evstream_events WHERE user_id = 'no items';
SELECT pg_temp.set_here('evstream.item_stats', NULL);

-- Days of another zone, and back; what came before is rebuilt.
SELECT pg_temp.set_here('evstream.time_zone', 'Europe/Berlin');
CALL pg_temp.restart();
SELECT evstream_track('zone', 'view', '{}', NULL, t::timestamptz) IS NOT NULL AS ok
FROM unnest(ARRAY['2026-03-28 22:59:59.999999+00', '2026-03-28 23:00:00+00', '2026-03-29 21:59:59.999999+00', '2026-03-29 22:00:00+00']) t;
SELECT evstream_wait('60 s');
SELECT day, event_count FROM evstream_daily_summary WHERE user_id = 'zone' ORDER BY day;
SELECT pg_temp.set_here('evstream.time_zone', NULL);
CALL pg_temp.restart();
CALL pg_temp.wait_until($$ time_zone = 'UTC' FROM evstream.state $$);
SELECT evstream_rebuild('2026-03-28', '2026-03-30') > 0 AS rebuilt;
SELECT day, event_count FROM evstream_daily_summary WHERE user_id = 'zone' ORDER BY day;

-- CET is a zone with summer time, here and when stats are computed again.
SELECT pg_temp.set_here('evstream.time_zone', 'CET');
CALL pg_temp.restart();
CALL pg_temp.wait_until($$ time_zone = 'CET' FROM evstream.state $$);
SELECT evstream_track('cet', 'view', occurred_at => '2026-07-01 22:30:00+00') IS NOT NULL AS ok;
SELECT evstream_wait('60 s');
SELECT evstream_rebuild('2026-06-30', '2026-07-03') > 0 AS rebuilt;
SELECT day, event_count FROM evstream_daily_summary WHERE user_id = 'cet';
SELECT pg_temp.set_here('evstream.time_zone', NULL);
CALL pg_temp.restart();
CALL pg_temp.wait_until($$ time_zone = 'UTC' FROM evstream.state $$);

-- At the limit of dead letters consumption waits, and goes on when some are gone.
SELECT pg_temp.set_here('evstream.dead_letter_limit', '2');
CALL pg_temp.restart();
SELECT evstream_track_batch('[1, 2, {"user_id": "limit", "event": "view", "timestamp": "2026-02-01T00:00:00Z"}]', 'dead_letter');
SELECT evstream_wait('100 ms');
CALL pg_temp.wait_until($$ evstream_health() #>> '{components,dead_letters,status}' = 'down' $$);
SELECT h ->> 'status' AS status, h #>> '{components,dead_letters,why}' AS why FROM evstream_health() h;
SELECT evstream_dead_letter_discard(id) FROM evstream_dead_letters ORDER BY id;
SELECT evstream_wait('60 s');
SELECT event_count FROM evstream_daily_summary WHERE user_id = 'limit';
SELECT pg_temp.set_here('evstream.dead_letter_limit', NULL);
CALL pg_temp.restart();

-- Nothing is behind, and nothing has failed.
CALL pg_temp.wait_until('count(lag) = 1 FROM evstream_lag');
SELECT topic, log_partition, lag, lag_seconds FROM evstream_lag;
SELECT role, state IS NOT NULL AS state, errors FROM evstream_workers ORDER BY role;

-- What cannot be stored is no loss, and health says that counting has stopped.
ALTER TABLE evstream.batch_log ADD CONSTRAINT broken CHECK (log_id <> 1) NOT VALID;
SELECT evstream_track('broken', 'view', occurred_at => '2026-02-01 00:00:00+00') IS NOT NULL AS ok;
CALL pg_temp.wait_until($$ evstream_health() #>> '{components,workers,status}' = 'down' $$);
SELECT h ->> 'status' AS status, split_part(h #>> '{components,workers,why}', ';', 1) AS why FROM evstream_health() h;
ALTER TABLE evstream.batch_log DROP CONSTRAINT broken;
SELECT evstream_wait('60 s');
SELECT event_count FROM evstream_daily_summary WHERE user_id = 'broken';
SELECT evstream_health() #>> '{components,workers,why}' LIKE '%fails%' AS fails;

-- Made again it starts clean.
DISCARD TEMP;
DROP EXTENSION evstream;
CREATE EXTENSION evstream;
SELECT count(*) FROM evstream_daily_counts;
SELECT evstream_track('user 1', 'view', event_id => evstream_event_id('consume 1')) IS NOT NULL AS ok;
SELECT evstream_wait('60 s');
SELECT user_id, event_count FROM evstream_daily_summary;
