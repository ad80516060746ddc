-- Filters of subscribers, the matcher, and evstream_backfill().
\set SHOW_CONTEXT never
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS evstream CASCADE;
CREATE EXTENSION evstream;
RESET client_min_messages;

-- ids count from 1; an equal filter has the id it has, in whatever order
SELECT evstream_subscribe('u1');
SELECT evstream_subscribe('u1', event_types => '{purchase,view,purchase}', min_amount => 10.50);
SELECT evstream_subscribe('u1', min_amount => 10.5, event_types => '{view,purchase}');
SELECT evstream_subscribe('u1', properties => '{}');
SELECT evstream_subscribe('u1', properties => '{"a": 1.0, "b": [1, "b", 2]}');
SELECT evstream_subscribe('u1', properties => '{"b": [1, "b", 2], "a": 1}');
SELECT evstream_subscribe('u1', properties => '{"a": 1, "b": [1], "c": 2}'), evstream_subscribe('u1', properties => '{"a": 1, "b": [1, "c", 2]}');
SELECT evstream_subscribe('u1', event_types => '{premium}');
SELECT evstream_subscribe('u1', user_tiers => '{premium}');
SELECT evstream_subscribe('u2', user_ids => '{z,é,"a b",z}', user_tiers => '{premium,Premium,""}');
SELECT filter_id, subscriber_id, event_types, user_tiers, min_amount, user_ids, properties, created_at = updated_at AS same_time
FROM evstream_filters ORDER BY filter_id;

-- arguments that are no good
SELECT evstream_subscribe(NULL);
SELECT evstream_subscribe('');
SELECT evstream_subscribe('two words');
SELECT evstream_subscribe(E'line\n');
SELECT evstream_subscribe(E'\u00a0');
SELECT evstream_subscribe(E'\u0085');
SELECT evstream_subscribe(repeat('é', 256));
SELECT evstream_subscribe(repeat('é', 255)) > 0 AS ok;
SELECT evstream_subscribe('u3', event_types => '{}');
SELECT evstream_subscribe('u3', user_tiers => '{}');
SELECT evstream_subscribe('u3', user_ids => '{}');
SELECT evstream_subscribe('u3', event_types => '{view,NULL}');
SELECT evstream_subscribe('u3', event_types => '{{view},{click}}');
SELECT evstream_subscribe('u3', event_types => '{""}');
SELECT evstream_subscribe('u3', event_types => ARRAY[repeat('x', 101)]);
SELECT evstream_subscribe('u3', user_ids => ARRAY[repeat('x', 256)]);
SELECT evstream_subscribe('u3', min_amount => -0.01);
SELECT evstream_subscribe('u3', min_amount => 'NaN');
SELECT evstream_subscribe('u3', min_amount => 'infinity');
SELECT evstream_subscribe('u3', min_amount => '-infinity');
SELECT evstream_subscribe('u3', properties => '[1]');
SELECT evstream_subscribe('u3', properties => '"text"');
SELECT evstream_subscribe('u3', properties => 'null');
SELECT evstream_filter_update(1, event_types => '{}');
SELECT evstream_filter_update(NULL);
SELECT evstream_filter_remove(NULL);
SELECT evstream_unsubscribe(NULL);
\set VERBOSITY sqlstate
SELECT evstream_subscribe('two words');
SELECT evstream_subscribe('u3', event_types => '{}');
SELECT evstream_subscribe('u3', event_types => '{NULL}');
\set VERBOSITY default

-- an update replaces the whole of it, and is a new version
SELECT evstream_filter_update(2, user_tiers => '{premium,gold}');
SELECT filter_id, event_types, user_tiers, min_amount, updated_at > created_at AS later FROM evstream_filters WHERE filter_id = 2;
-- to what it is: no new version
SELECT evstream_filter_update(2, user_tiers => '{gold,premium}');
SELECT version_id, filter_id, user_tiers, ended_xid IS NULL AS holds FROM evstream.filters WHERE filter_id = 2 ORDER BY 1;
-- to what another one is
SELECT evstream_filter_update(2);
SELECT evstream_filter_update(2, properties => '{}');
-- the same of another subscriber is no matter
SELECT evstream_subscribe('u2', user_tiers => '{gold,premium}') > 0 AS ok;
SELECT evstream_filter_update(4711);

-- the last filter that goes leaves a mark, which goes with the next one
SELECT evstream_subscribe('u4') > 0 AS ok, evstream_subscribe('u4', min_amount => 0) > 0 AS ok;
SELECT evstream_filter_remove(filter_id) FROM evstream_filters WHERE subscriber_id = 'u4' AND min_amount = 0;
SELECT subscriber_id, expires_at FROM evstream.former_subscribers;
SELECT evstream_filter_remove(filter_id) FROM evstream_filters WHERE subscriber_id = 'u4';
SELECT subscriber_id, expires_at FROM evstream.former_subscribers;
SELECT evstream_filter_remove(filter_id), evstream_filter_update(filter_id) FROM evstream.filters WHERE subscriber_id = 'u4' AND min_amount = 0;
SELECT evstream_subscribe('u4') > 0 AS ok;
SELECT subscriber_id, expires_at FROM evstream.former_subscribers;
SELECT evstream_unsubscribe('u1') AS first, evstream_unsubscribe('u1') AS again, evstream_unsubscribe('nobody');
SELECT subscriber_id FROM evstream.former_subscribers ORDER BY 1;
SELECT evstream_filter_remove(4711);
-- nothing stays of what was rolled back
BEGIN;
SELECT evstream_unsubscribe('u2');
SELECT evstream_subscribe('u9') > 0 AS ok;
ROLLBACK;
SELECT subscriber_id, count(*) FROM evstream_filters WHERE subscriber_id ~ '^u' GROUP BY 1 ORDER BY 1;

-- what a filter means
SELECT count(evstream_unsubscribe(subscriber_id)) FROM (SELECT DISTINCT subscriber_id FROM evstream_filters) f;
CREATE TABLE cases (name text, event_types text[], user_tiers text[], min_amount numeric, user_ids text[], properties jsonb);
INSERT INTO cases VALUES
	('any', NULL, NULL, NULL, NULL, NULL),
	('type', '{purchase}', NULL, NULL, NULL, NULL),
	('Type', '{Purchase}', NULL, NULL, NULL, NULL),
	('types', '{view,purchase}', NULL, NULL, NULL, NULL),
	('tier', NULL, '{premium}', NULL, NULL, NULL),
	('user', NULL, NULL, NULL, '{u-1,u-2}', NULL),
	('amount', NULL, NULL, 100, NULL, NULL),
	('zero', NULL, NULL, 0, NULL, NULL),
	('props', NULL, NULL, NULL, NULL, '{"shop": "a"}'),
	('number', NULL, NULL, NULL, NULL, '{"n": 1}'),
	('deep', NULL, NULL, NULL, NULL, '{"page": {"tags": ["x", {"y": null}]}}'),
	('shape', NULL, NULL, NULL, NULL, '{"page": {}}'),
	('all', '{purchase}', '{premium}', 99.99, '{u-1}', '{"shop": "a", "n": 1}'),
	('many', (SELECT array_agg('t' || n) || '{purchase}' FROM generate_series(1, 100) n), (SELECT array_agg('t' || n) || '{premium}' FROM generate_series(1, 100) n),
		NULL, (SELECT array_agg('t' || n) || '{u-1}' FROM generate_series(1, 100) n), NULL);
SELECT count(evstream_subscribe(name, event_types, user_tiers, min_amount, user_ids, properties)) FROM cases;
-- one subscriber is told once, however many of its filters match
SELECT evstream_subscribe('any', min_amount => 1) > 0 AS ok, evstream_subscribe('any', event_types => '{purchase}') > 0 AS ok;
CREATE FUNCTION who(event_type text, user_id text, user_tier text DEFAULT NULL, amount numeric DEFAULT NULL, properties jsonb DEFAULT NULL, snapshot pg_snapshot DEFAULT NULL) RETURNS text
	LANGUAGE sql AS 'SELECT string_agg(m, '' '') FROM evstream.match($1, $2, $3, $4, $5, $6) m';
SELECT who('purchase', 'u-3');
SELECT who('Purchase', 'u-3');
SELECT who('view', 'u-1', 'premium');
SELECT who('view', 'u-1', 'Premium');
SELECT who('', '', '', NULL, '{}');
SELECT who('x', 'u-3', NULL, 100);
SELECT who('x', 'u-3', NULL, 99.9999999999);
SELECT who('x', 'u-3', NULL, 0.0);
SELECT who('x', 'u-3', NULL, -1);
SELECT who('x', 'u-3', NULL, NULL, '{"shop": "a", "n": 1.00}');
SELECT who('x', 'u-3', NULL, NULL, '{"shop": ["a"], "n": "1"}');
SELECT who('x', 'u-3', NULL, NULL, '{"page": {"tags": ["z", {"y": null, "x": 1}, "x", "x"]}}');
SELECT who('x', 'u-3', NULL, NULL, '{"page": {"tags": ["z", {"y": null}]}}');
SELECT who('x', 'u-3', NULL, NULL, '{"page": []}');
SELECT who('purchase', 'u-1', 'premium', 99.99, '{"n": 1, "m": 2, "shop": "a"}');
SELECT who('purchase', 'u-1', 'premium', 99.98, '{"n": 1, "m": 2, "shop": "a"}');
SELECT who('t7', 't100', 't1'), who('t7', 't101', 't1'), who('t7', 't100', 't0'), who('t0', 't100', 't1');

-- changes of this transaction count at once, and only as long as they last
BEGIN;
SELECT evstream_unsubscribe('any');
SELECT evstream_subscribe('mine', event_types => '{x}') > 0 AS ok;
SELECT who('x', 'u-3');
SAVEPOINT a;
SELECT evstream_unsubscribe('mine'), evstream_subscribe('other', event_types => '{x}') > 0 AS ok;
SELECT who('x', 'u-3');
ROLLBACK TO a;
SELECT who('x', 'u-3');
SELECT evstream_filter_update(filter_id, event_types => '{y}') FROM evstream_filters WHERE subscriber_id = 'mine';
SELECT who('x', 'u-3'), who('y', 'u-3');
SELECT evstream_unsubscribe('mine');
SELECT who('y', 'u-3');
ROLLBACK;
SELECT who('x', 'u-3'), who('y', 'u-3');

-- thousands of filters and events beside a plain condition
SELECT count(evstream_unsubscribe(subscriber_id)) FROM (SELECT DISTINCT subscriber_id FROM evstream_filters) f;
SELECT setseed(0.4);
CREATE FUNCTION pick(choices text[], most int) RETURNS text[] LANGUAGE sql VOLATILE
	AS 'SELECT array_agg(choices[1 + floor(random() * array_length(choices, 1))::int]) FROM generate_series(1, 1 + floor(random() * most)::int)';
CREATE FUNCTION some_properties() RETURNS jsonb LANGUAGE sql VOLATILE
	AS $$SELECT (ARRAY[jsonb_build_object('shop', 's' || floor(random() * 20)), jsonb_build_object('n', floor(random() * 10)),
		jsonb_build_object('shop', 's' || floor(random() * 20), 'n', floor(random() * 10)),
		jsonb_build_object('page', jsonb_build_object('path', '/' || floor(random() * 10), 'tags', jsonb_build_array('t' || floor(random() * 5), floor(random() * 5)))),
		jsonb_build_object('tags', jsonb_build_array('t' || floor(random() * 5))), '{"page": {}}', '{"tags": []}'])[1 + floor(random() * 7)::int]$$;
CREATE TABLE lists AS SELECT
	(SELECT array_agg('type-' || n) FROM generate_series(1, 30) n) AS types,
	(SELECT array_agg('tier-' || n) FROM generate_series(1, 12) n) AS tiers,
	(SELECT array_agg('user-' || n) FROM generate_series(1, 300) n) AS users;
CREATE PROCEDURE subscribe_some(number int) LANGUAGE plpgsql AS $$
DECLARE
	l lists;
BEGIN
	SELECT * INTO l FROM lists;
	FOR i IN 1 .. number LOOP
		PERFORM evstream_subscribe('s' || floor(random() * 500),
			CASE WHEN random() < 0.5 THEN pick(l.types, CASE WHEN random() < 0.2 THEN 20 ELSE 2 END) END,
			CASE WHEN random() < 0.3 THEN pick(l.tiers, CASE WHEN random() < 0.2 THEN 10 ELSE 2 END) END,
			CASE WHEN random() < 0.3 THEN round((random() * 100)::numeric, floor(random() * 3)::int) END,
			CASE WHEN random() < 0.3 THEN pick(l.users, CASE WHEN random() < 0.2 THEN 100 ELSE 3 END) END,
			CASE WHEN random() < 0.3 THEN some_properties() END);
	END LOOP;
END
$$;
CALL subscribe_some(2000);
CREATE TABLE happened AS
	SELECT n, (pick(l.types, 1))[1] AS event_type, (pick(l.users, 1))[1] AS user_id,
		CASE WHEN random() < 0.7 THEN (pick(l.tiers, 1))[1] END AS user_tier,
		CASE WHEN random() < 0.6 THEN round((random() * 110)::numeric, floor(random() * 3)::int) END AS amount,
		CASE WHEN random() < 0.3 THEN '{}' ELSE some_properties() || some_properties() || '{"more": [1, {"x": "y"}]}' END AS properties
	FROM generate_series(1, 600) n, lists l;
CREATE VIEW compiled AS
	SELECT h.n, m.subscriber_id FROM happened h
		CROSS JOIN LATERAL evstream.match(h.event_type, h.user_id, h.user_tier, h.amount, h.properties) m (subscriber_id);
CREATE VIEW plain AS
	SELECT DISTINCT h.n, f.subscriber_id FROM happened h JOIN evstream_filters f ON
		(f.event_types IS NULL OR h.event_type = ANY (f.event_types))
		AND (f.user_tiers IS NULL OR h.user_tier = ANY (f.user_tiers))
		AND (f.min_amount IS NULL OR h.amount >= f.min_amount)
		AND (f.user_ids IS NULL OR h.user_id = ANY (f.user_ids))
		AND (f.properties IS NULL OR h.properties @> f.properties);
CREATE FUNCTION compare(OUT many boolean, OUT missing bigint, OUT wrong bigint, OUT doubled bigint) LANGUAGE plpgsql AS $$
BEGIN
	CREATE TEMPORARY TABLE c ON COMMIT DROP AS SELECT * FROM compiled;
	CREATE TEMPORARY TABLE p ON COMMIT DROP AS SELECT * FROM plain;
	SELECT (SELECT count(*) > 5000 FROM p), (SELECT count(*) FROM (SELECT * FROM p EXCEPT SELECT * FROM c) x),
		(SELECT count(*) FROM (SELECT * FROM c EXCEPT SELECT * FROM p) x),
		(SELECT count(*) - count(DISTINCT (n, subscriber_id)) FROM c)
		INTO many, missing, wrong, doubled;
	DROP TABLE c, p;
END
$$;
SELECT * FROM compare();

-- after changes, a few and many, also rolled back
CREATE PROCEDURE change_some(share float8) LANGUAGE plpgsql AS $$
DECLARE
	f record;
	l lists;
BEGIN
	SELECT * INTO l FROM lists;
	FOR f IN SELECT * FROM evstream_filters ORDER BY filter_id LOOP
		IF random() >= share THEN
			CONTINUE;
		ELSIF random() < 0.3 THEN
			PERFORM evstream_filter_remove(f.filter_id);
		ELSIF random() < 0.1 THEN
			PERFORM evstream_unsubscribe(f.subscriber_id);
		ELSE
			BEGIN
				PERFORM evstream_filter_update(f.filter_id, pick(l.types, 3), f.user_tiers, f.min_amount, pick(l.users, 10), f.properties);
				IF random() < 0.2 THEN
					RAISE EXCEPTION USING ERRCODE = 'unique_violation', MESSAGE = 'takes the update back';
				END IF;
			EXCEPTION WHEN unique_violation THEN
				NULL;
			END;
		END IF;
	END LOOP;
	CALL subscribe_some((2000 * share)::int);
END
$$;
CALL change_some(0.01);
SELECT * FROM compare();
CALL change_some(0.3);
SELECT * FROM compare();
BEGIN;
CALL change_some(0.2);
SELECT * FROM compare();
SAVEPOINT a;
CALL change_some(0.2);
SELECT * FROM compare();
ROLLBACK TO a;
SELECT * FROM compare();
ROLLBACK;
SELECT * FROM compare();
CALL change_some(1);
SELECT * FROM compare();

-- true to a snapshot, whatever came after it
CREATE TABLE snapshots (snapshot pg_snapshot, n serial);
CREATE PROCEDURE change_often() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 30 LOOP
		CALL change_some(0.02);
		IF i % 3 = 0 THEN
			ROLLBACK;
		ELSE
			COMMIT;
		END IF;
		INSERT INTO snapshots VALUES (pg_current_snapshot(), DEFAULT);
		-- one that saw neither this transaction nor a later one of those that were made
		INSERT INTO snapshots (snapshot) SELECT format('%s:%s:%s', min(made_xid::text::bigint), max(made_xid::text::bigint) + 1, max(made_xid::text::bigint))::pg_snapshot
			FROM evstream.filters;
		COMMIT;
	END LOOP;
END
$$;
CALL change_often();
CREATE VIEW plain_then AS
	SELECT DISTINCT s.n AS snapshot, h.n, f.subscriber_id FROM snapshots s CROSS JOIN happened h JOIN evstream.filters f ON
		pg_visible_in_snapshot(f.made_xid, s.snapshot) AND NOT COALESCE(pg_visible_in_snapshot(f.ended_xid, s.snapshot), false)
		AND (f.event_types IS NULL OR h.event_type = ANY (f.event_types))
		AND (f.user_tiers IS NULL OR h.user_tier = ANY (f.user_tiers))
		AND (f.min_amount IS NULL OR h.amount >= f.min_amount)
		AND (f.user_ids IS NULL OR h.user_id = ANY (f.user_ids))
		AND (f.properties IS NULL OR h.properties @> f.properties)
	WHERE h.n % 30 = 0;
CREATE VIEW compiled_then AS
	SELECT s.n AS snapshot, h.n, m.subscriber_id FROM snapshots s CROSS JOIN happened h
		CROSS JOIN LATERAL evstream.match(h.event_type, h.user_id, h.user_tier, h.amount, h.properties, s.snapshot) m (subscriber_id)
	WHERE h.n % 30 = 0;
-- in another session, and in one snapshot of the table, from which maintenance may remove versions
\c -
BEGIN ISOLATION LEVEL REPEATABLE READ;
CREATE TEMPORARY TABLE p AS SELECT * FROM plain_then;
CREATE TEMPORARY TABLE c AS SELECT * FROM compiled_then;
COMMIT;
SELECT count(DISTINCT snapshot) > 30 AS snapshots, count(*) > 5000 AS many FROM p;
SELECT count(*) FROM (SELECT * FROM p EXCEPT SELECT * FROM c) x;
SELECT count(*) FROM (SELECT * FROM c EXCEPT ALL SELECT * FROM p) x;
DROP TABLE c, p;

-- ended versions that were deleted from the table are forgotten
DELETE FROM evstream.filters WHERE ended_xid IS NOT NULL;
DO $$
BEGIN
	FOR i IN 1 .. 1500 LOOP
		PERFORM evstream_subscribe('brief', min_amount => i), evstream_unsubscribe('brief');
	END LOOP;
END
$$;
SELECT * FROM compare();
DELETE FROM evstream.filters WHERE ended_xid IS NOT NULL;
SELECT evstream_subscribe('brief') > 0 AS ok;
SELECT * FROM compare();
SELECT evstream_unsubscribe('brief');

-- backfill: nothing for whom there is nothing
SELECT * FROM evstream_backfill('nobody', '-infinity');
SELECT evstream_subscribe('reader', event_types => '{view}', min_amount => 5) > 0 AS ok;
SELECT * FROM evstream_backfill('reader', '-infinity');

CREATE PROCEDURE track_some() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 300 LOOP
		PERFORM evstream_track('u' || i % 7, CASE WHEN i % 3 = 0 THEN 'view' ELSE 'click' END,
			jsonb_build_object('amount', i % 10, 'i', i), ('00000000-0000-4000-8000-' || lpad(to_hex(i * 7919 % 1000), 12, '0'))::uuid);
		IF i % 50 = 0 THEN
			COMMIT;
		END IF;
	END LOOP;
END
$$;
CALL track_some();
SELECT evstream_wait('60 s');
CREATE VIEW due AS SELECT * FROM evstream_events WHERE event_type = 'view' AND amount >= 5;
SELECT count(*) FROM due;
SELECT count(*) FROM evstream_backfill('reader', '-infinity');
SELECT count(*) FROM (SELECT * FROM due EXCEPT SELECT * FROM evstream_backfill('reader', '-infinity')) x;
SELECT count(*) FROM (SELECT * FROM evstream_backfill('reader', '-infinity') EXCEPT SELECT * FROM due) x;
SELECT array_agg(event_id) = (SELECT array_agg(event_id ORDER BY received_at, event_id) FROM due) AS in_order FROM evstream_backfill('reader', '-infinity');
SELECT count(*) FROM evstream_backfill('reader', 'infinity');
SELECT b.received_at = (SELECT d.received_at FROM due d ORDER BY d.received_at, d.event_id OFFSET 20 LIMIT 1) AS ok
FROM evstream_backfill('reader', (SELECT d.received_at FROM due d ORDER BY d.received_at, d.event_id OFFSET 20 LIMIT 1), 1) b;

-- page by page, in this session and as if each page came to another one
CREATE FUNCTION pages(size int, since timestamptz DEFAULT '-infinity', other boolean DEFAULT false, OUT pages int, OUT complete boolean) LANGUAGE plpgsql AS $$
DECLARE
	page uuid[];
	got uuid[] := '{}';
	last uuid;
BEGIN
	pages := 0;
	LOOP
		SELECT array_agg(b.event_id) INTO page FROM evstream_backfill('reader', since, size, last) b;
		EXIT WHEN page IS NULL;
		pages := pages + 1;
		got := got || page;
		last := page[array_length(page, 1)];
		IF other THEN
			PERFORM evstream_backfill('reader', since, 1);
		END IF;
	END LOOP;
	complete := got = (SELECT array_agg(d.event_id ORDER BY d.received_at, d.event_id) FROM due d);
END
$$;
SELECT * FROM pages(1);
SELECT * FROM pages(7);
SELECT * FROM pages(7, other => true);
SELECT * FROM pages(50);
SELECT * FROM pages(1000);
-- behind an event that does not match, and one from before `since`
SELECT count(*) = (SELECT count(*) FROM due d WHERE d.received_at > e.received_at OR d.received_at = e.received_at AND d.event_id > e.event_id) AS ok
FROM (SELECT * FROM evstream_events WHERE event_type = 'click' ORDER BY received_at OFFSET 100 LIMIT 1) e,
	evstream_backfill('reader', '-infinity', 1000, e.event_id) b
GROUP BY e.received_at, e.event_id;
SELECT count(*) = 40 AS ok FROM evstream_backfill('reader', (SELECT received_at FROM due ORDER BY received_at DESC OFFSET 39 LIMIT 1), 1000,
	(SELECT event_id FROM due ORDER BY received_at LIMIT 1));
-- the filters are those of now
SELECT evstream_filter_update(filter_id, user_ids => '{u3}') FROM evstream_filters WHERE subscriber_id = 'reader';
SELECT DISTINCT user_id, count(*) OVER () = (SELECT count(*) FROM evstream_events WHERE user_id = 'u3') AS all_of_them FROM evstream_backfill('reader', '-infinity');
-- on several days
DO $$
BEGIN
	FOR d IN 0 .. 2 LOOP
		EXECUTE format('CREATE TABLE evstream.events_2020010%s PARTITION OF evstream.events FOR VALUES FROM (%L) TO (%L)', d + 1,
			'2020-01-01 00:00:00+00'::timestamptz + make_interval(days => d), '2020-01-02 00:00:00+00'::timestamptz + make_interval(days => d));
	END LOOP;
END
$$;
INSERT INTO evstream.events (event_id, user_id, event_type, occurred_at, received_at, properties, log_id, log_partition, log_offset)
	SELECT ('11111111-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 'u3', 'view', t, t, jsonb_build_object('long', repeat(md5(n::text), 10)), 2, 0, n
	FROM generate_series(0, 29999) n, LATERAL (SELECT '2020-01-01 00:00:00+00'::timestamptz + n / 3 * interval '20 seconds' AS t) x;
CREATE OR REPLACE VIEW due AS SELECT * FROM evstream_events WHERE user_id = 'u3';
SELECT * FROM pages(4001);
SELECT * FROM pages(40000);
SELECT count(*), min(received_at) AT TIME ZONE 'UTC' FROM evstream_backfill('reader', '2020-01-02 12:34:56+00', 100000) WHERE received_at < '2021-01-01';
SELECT event_id, received_at AT TIME ZONE 'UTC' AS received_at FROM evstream_backfill('reader', '2020-01-02 00:00:00+00', 4, '11111111-0000-4000-8000-000000012961');

-- only what was sent, where there is fan-out
SET evstream.redis_url = 'redis://127.0.0.1:1';
SELECT count(*) FROM evstream_backfill('reader', '-infinity', 100000);
INSERT INTO evstream.notifier_cursors (log_id, log_partition, passed_at) VALUES (2, 0, '2020-01-03 00:00:00+00');
SELECT count(*) FROM evstream_backfill('reader', '-infinity', 100000);
RESET evstream.redis_url;

-- errors
SELECT * FROM evstream_backfill(NULL, '-infinity');
SELECT * FROM evstream_backfill('reader', NULL);
SELECT * FROM evstream_backfill('reader', '-infinity', NULL);
SELECT * FROM evstream_backfill('reader', '-infinity', 0);
SELECT * FROM evstream_backfill('reader', '-infinity', 10, '99999999-0000-4000-8000-000000000000');
SET evstream.store_events = off;
SELECT * FROM evstream_backfill('reader', '-infinity');
RESET evstream.store_events;

SET client_min_messages = warning;
DROP TABLE cases, happened, lists, snapshots CASCADE;
DROP VIEW due;
DROP FUNCTION who, pick, some_properties, compare, pages;
DROP PROCEDURE subscribe_some, change_some, change_often, track_some;
DROP EXTENSION evstream;
