-- Tracking: what is refused and how, what is written, and by whom.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS evstream;
DROP ROLE IF EXISTS regress_ev_tracker, regress_ev_attacker;
RESET client_min_messages;
SET TimeZone = 'UTC';

-- What this transaction has written.
CREATE TEMPORARY VIEW written AS
	SELECT o.* FROM (
		SELECT * FROM evstream.outbox_0 UNION ALL SELECT * FROM evstream.outbox_1 UNION ALL SELECT * FROM evstream.outbox_2
	) o WHERE o.xid = pg_current_xact_id_if_assigned();
CREATE FUNCTION pg_temp.fault(call text, OUT state text, OUT message text, OUT detail text, OUT hint text) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE 'SELECT ' || call;
	state := 'ok';
EXCEPTION WHEN others THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
END
$$;

-- The faults of evstream_track, in full.
BEGIN;
SELECT evstream_track(NULL, 'view');
ROLLBACK;
\x
SELECT c.call, f.state, f.message, f.detail, f.hint
FROM unnest(ARRAY[
	$$evstream_track(NULL, 'view')$$,
	$$evstream_track(NULL::bigint, 'view')$$,
	$$evstream_track('', 'view')$$,
	$$evstream_track(repeat('x', 256), 'view')$$,
	$$evstream_track(repeat('ü', 256), 'view')$$,
	$$evstream_track('u', NULL)$$,
	$$evstream_track('u', '')$$,
	$$evstream_track('u', repeat('x', 101))$$,
	$$evstream_track('u', 'view', '[]')$$,
	$$evstream_track('u', 'view', '"x"')$$,
	$$evstream_track('u', 'view', occurred_at => 'infinity')$$,
	$$evstream_track('u', 'view', occurred_at => '-infinity')$$,
	$$evstream_track('u', 'view', occurred_at => '0001-12-31 23:59:59+00 BC')$$,
	$$evstream_track('u', 'view', occurred_at => '10000-01-01 00:00:00+00')$$,
	$$evstream_track('u', 'view', occurred_at => now() + interval '24 h 5 min')$$,
	$$evstream_track('u', 'view', jsonb_build_object('x', repeat('x', 1024 * 1024)))$$,
	$$evstream_track('u', 'view', ('{"x": ' || repeat('[', 99) || repeat(']', 99) || '}')::jsonb)$$
]) WITH ORDINALITY c (call, n), pg_temp.fault(c.call) f
ORDER BY c.n;

-- And of evstream_track_batch.
SELECT c.call, f.state, f.message, f.detail, f.hint
FROM unnest(ARRAY[
	$$evstream_track_batch('{"user_id": "u", "event_type": "view"}')$$,
	$$evstream_track_batch('"x"')$$,
	$$evstream_track_batch('null')$$,
	$$evstream_track_batch('[]', 'skip')$$,
	$$evstream_track_batch('[1]')$$,
	$$evstream_track_batch('[[]]')$$,
	$$evstream_track_batch('[{"user_id": "u", "event_type": "view"}, {"user_id": "u"}]')$$,
	$$evstream_track_batch('[{"event_type": "view"}]')$$,
	$$evstream_track_batch('[{"userId": 1.5, "event_type": "view"}]')$$,
	$$evstream_track_batch('[{"user_id": "u", "event": 1}]')$$,
	$$evstream_track_batch('[{"user_id": "u", "event": "view", "messageId": 1}]')$$,
	$$evstream_track_batch('[{"user_id": "u", "event": "view", "timestamp": "yesterday"}]')$$,
	$$evstream_track_batch('[{"user_id": "u", "event": "view", "timestamp": []}]')$$,
	$$evstream_track_batch('[{"user_id": "u", "event": "view", "timestamp": 1e300}]')$$,
	$$evstream_track_batch('[{"user_id": "u", "event": "view", "timestamp": 99999999999}]')$$,
	$$evstream_track_batch('[{"user_id": "u", "event": "view", "amount": "12,5"}]')$$,
	$$evstream_track_batch('[{"user_id": "u", "event": "view", "amount": 100000000000000000000}]')$$,
	$$evstream_track_batch('[{"user_id": "u", "event": "view", "properties": []}]')$$,
	$$evstream_track_batch(jsonb_build_array(jsonb_build_object('user_id', 'u', 'event', 'view', 'x', repeat('x', 1024 * 1024))))$$,
	$$evstream_track_batch(('[{"user_id": "u", "event": "view", "x": ' || repeat('[', 99) || repeat(']', 99) || '}]')::jsonb)$$
]) WITH ORDINALITY c (call, n), pg_temp.fault(c.call) f
ORDER BY c.n;
\x

-- The largest that are taken; limits are characters, and settings of the session.
SELECT c.call, f.state, f.message
FROM unnest(ARRAY[
	$$evstream_track(repeat('ü', 255), repeat('ü', 100))$$,
	$$evstream_track('u', 'view', NULL)$$,
	$$evstream_track('u', 'view', 'null')$$,
	$$evstream_track('u', 'view', occurred_at => '0001-01-01 00:00:00+00')$$,
	$$evstream_track('u', 'view', occurred_at => now() + interval '23 h 55 min')$$,
	$$evstream_track('u', 'view', ('{"x": ' || repeat('[', 98) || repeat(']', 98) || '}')::jsonb)$$,
	$$evstream_track('u', 'view', jsonb_build_object('x', repeat('x', 1024 * 1024 - 500)))$$,
	$$evstream_track_batch(('[{"user_id": "u", "event": "view", "x": ' || repeat('[', 98) || repeat(']', 98) || '}]')::jsonb)$$,
	$$evstream_track_batch(NULL)$$,
	$$evstream_track_batch('[]')$$,
	$$evstream_track_batch('[]', NULL)$$,
	$$evstream_track_batch('[]', 'dead_letter')$$
]) WITH ORDINALITY c (call, n)
	CROSS JOIN LATERAL (SELECT f.*, set_config('evstream.enabled', 'on', true) FROM pg_temp.fault(c.call) f) f
ORDER BY c.n;
BEGIN;
SET LOCAL evstream.max_event_bytes = 1024;
SET LOCAL evstream.max_clock_skew = '1 hour';
SELECT f.* FROM pg_temp.fault($$evstream_track('u', 'view', jsonb_build_object('x', repeat('x', 1024)))$$) f;
SELECT f.* FROM pg_temp.fault($$evstream_track('u', 'view', occurred_at => now() + interval '2 h')$$) f;
ROLLBACK;

-- What is written: an event with the names of the first column.
BEGIN;
SELECT evstream_track('u-1', 'view') IS NOT NULL AS text,
	evstream_track(42, 'view') IS NOT NULL AS int,
	evstream_track((-9223372036854775808)::bigint, 'view') IS NOT NULL AS bigint,
	evstream_track(user_id => 'u-2', event_type => 'purchase', occurred_at => '2026-03-29 02:30:00.123456+02',
		event_id => '0190F5C2-7A0E-7CC1-B2A4-8D2F2F0C9A11',
		properties => '{"item_id": 7, "amount": "12.50", "user_tier": "gold", "x": {"y": [1, null, "ü\t\""]}}');
SELECT w.user_id, w.value::jsonb ->> 'user_id' = w.user_id AS same,
	w.value::jsonb ->> 'event_id' = w.event_id::text AS id,
	(w.value::jsonb ->> 'occurred_at')::timestamptz = w.tracked_at AS now,
	w.tracked_at BETWEEN now() AND clock_timestamp() AS tracked
FROM written w ORDER BY w.id;
SELECT w.value FROM written w WHERE w.user_id = 'u-2';
ROLLBACK;

-- Ids: the given one, or UUIDv7 of the moment, growing.
BEGIN;
SELECT count(DISTINCT t.id), bool_and(t.id > t.before) AS growing,
	bool_and(substr(t.id::text, 15, 1) = '7') AS version, bool_and(substr(t.id::text, 20, 1) ~ '[89ab]') AS variant,
	bool_and(abs(('x' || left(replace(t.id::text, '-', ''), 12))::bit(48)::bigint / 1000.0 - extract(epoch FROM clock_timestamp())) < 60) AS moment
FROM (
	SELECT r.id, lag(r.id) OVER (ORDER BY r.n) AS before
	FROM (SELECT n, evstream_track('u', 'view') AS id FROM generate_series(1, 1000) n) r
) t;
SELECT count(DISTINCT w.event_id) = 1000 AS written FROM written w;
ROLLBACK;

-- More than goes into the table at a time, some of it kept out of line, all in the index.
BEGIN;
SELECT evstream_track_batch((SELECT jsonb_agg(jsonb_build_object('user_id', n, 'event', 'view',
		'text', CASE WHEN n % 100 = 0 THEN (SELECT string_agg(md5(n || '-' || m), '') FROM generate_series(1, 1000) m) ELSE '' END) ORDER BY n)
	FROM generate_series(1, 2500) n));
SELECT evstream_track(0, 'view', jsonb_build_object('text', (SELECT string_agg(md5(m::text), '') FROM generate_series(1, 1000) m))) IS NOT NULL AS ok;
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
SELECT count(*), bool_and(o.user_id = o.value::jsonb ->> 'user_id') AS same,
	count(*) FILTER (WHERE length(o.value::jsonb -> 'properties' ->> 'text') = 32000) AS long
FROM (SELECT * FROM evstream.outbox_0 UNION ALL SELECT * FROM evstream.outbox_1 UNION ALL SELECT * FROM evstream.outbox_2) o
WHERE o.xid = pg_current_xact_id();
ROLLBACK;

-- A column that somebody else has added stays empty; a view is no table.
BEGIN;
ALTER TABLE evstream.outbox_0 ADD COLUMN note text;
ALTER TABLE evstream.outbox_1 ADD COLUMN note text;
ALTER TABLE evstream.outbox_2 ADD COLUMN note text;
SELECT evstream_track_batch('[{"user_id": "a", "event": "view"}, {"user_id": "b", "event": "view"}]');
SELECT w.user_id, o.note FROM written w
	JOIN (SELECT * FROM evstream.outbox_0 UNION ALL SELECT * FROM evstream.outbox_1 UNION ALL SELECT * FROM evstream.outbox_2) o USING (id)
ORDER BY w.id;
DO $$
BEGIN
	FOR i IN 0 .. 2 LOOP
		EXECUTE format('ALTER TABLE evstream.outbox_%s RENAME TO kept_%1$s', i);
		EXECUTE format('CREATE VIEW evstream.outbox_%s AS SELECT * FROM evstream.kept_%1$s', i);
	END LOOP;
	PERFORM evstream_track('a', 'view');
EXCEPTION WHEN datatype_mismatch THEN
	RAISE NOTICE '%', regexp_replace(sqlerrm, '_[012]', '_N');
END
$$;
ROLLBACK;

-- Ids of texts: UUIDv5 in the namespace 6a1f3c52-8f5e-4f0b-9d57-5b1d6c3e0a4e, as other programs compute it.
SELECT t.text, evstream_event_id(t.text) = t.expected AS as_expected
FROM (VALUES
	('order-4711', 'd3613f74-7565-5363-a3cb-344ac192ec6f'::uuid),
	('', 'e9a01748-4511-5fdd-9d9c-116a7f2ef681'),
	('Grüße, 世界 🎉', '618e78dc-3be9-514b-b5d9-64bfab3beb55'),
	('{0190f5c2-7a0e-7cc1-b2a4-8d2f2f0c9a11}', 'c2fb4e19-1ffc-5ed5-8af5-6250ef6b7982'),
	('0190f5c27a0e7cc1b2a48d2f2f0c9a11', '8e28921f-662e-5670-a900-ac1a5c3bdd40'),
	('0190f5c2-7a0e-7cc1-b2a4-8d2f2f0c9a11', '0190f5c2-7a0e-7cc1-b2a4-8d2f2f0c9a11'),
	('0190F5C2-7A0E-7CC1-B2A4-8D2F2F0C9A11', '0190f5c2-7a0e-7cc1-b2a4-8d2f2f0c9a11')
) t (text, expected);
SELECT evstream_event_id(NULL) IS NULL AS strict;
SELECT p.proname, p.provolatile, p.proparallel, p.prosecdef, p.proisstrict, p.proconfig
FROM pg_proc p WHERE p.proname IN ('evstream_track', 'evstream_track_batch', 'evstream_event_id', 'evstream_wait')
ORDER BY p.proname, p.proargtypes::text;
BEGIN;
SELECT evstream_track_batch('[
	{"user_id": "a", "event": "view", "event_id": "order-4711"},
	{"user_id": "b", "event": "view", "uuid": "0190F5C2-7A0E-7CC1-B2A4-8D2F2F0C9A11"},
	{"user_id": "c", "event": "view"}]');
SELECT w.user_id, CASE WHEN w.user_id = 'c' THEN substr(w.event_id::text, 15, 1) ELSE w.event_id::text END AS event_id,
	w.value::jsonb ->> 'event_id' = w.event_id::text AS same
FROM written w ORDER BY w.id;
ROLLBACK;

-- The trace context of the session, the transaction, the event.
SET evstream.traceparent = '00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
SET evstream.traceparent = '00-00000000000000000000000000000000-00f067aa0ba902b7-01';
SET evstream.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
BEGIN;
SELECT evstream_track('session', 'view') IS NOT NULL AS ok;
SET LOCAL evstream.traceparent = '00-11111111111111111111111111111111-1111111111111111-00';
SELECT evstream_track('transaction', 'view') IS NOT NULL AS ok;
SELECT evstream_track_batch('[
	{"user_id": "batch", "event": "view"},
	{"user_id": "both", "event": "view", "traceparent": "00-22222222222222222222222222222222-2222222222222222-01"}]');
SET LOCAL evstream.traceparent = '';
SELECT evstream_track('none', 'view') IS NOT NULL AS ok;
SELECT evstream_track_batch('[
	{"user_id": "event", "event": "view", "traceparent": "00-22222222222222222222222222222222-2222222222222222-01"},
	{"user_id": "malformed", "event": "view", "traceparent": "00-2"}]');
SELECT w.user_id, w.traceparent, w.value::jsonb ->> 'traceparent' AS value, w.value::jsonb -> 'properties' AS properties FROM written w ORDER BY w.id;
ROLLBACK;
SHOW evstream.traceparent;
RESET evstream.traceparent;

-- Batches: in order, all or nothing.
BEGIN;
SELECT evstream_track_batch((SELECT jsonb_agg(jsonb_build_object('user_id', n, 'event', 'view') ORDER BY n) FROM generate_series(1, 5000) n));
SELECT count(*), count(DISTINCT event_id) AS ids, bool_and(r.user_id = r.n::text) AS in_order
FROM (SELECT w.*, row_number() OVER (ORDER BY w.id) AS n FROM written w) r;
ROLLBACK;
BEGIN;
SELECT f.message FROM pg_temp.fault($$evstream_track_batch((SELECT jsonb_agg(jsonb_build_object('user_id', n, 'event', CASE WHEN n <> 4000 THEN 'view' END) ORDER BY n) FROM generate_series(1, 5000) n))$$) f;
SELECT count(*) FROM written;
ROLLBACK;
BEGIN;
CREATE TEMPORARY TABLE before ON COMMIT DROP AS SELECT COALESCE(max(id), 0) AS id FROM evstream.dead_letters;
SELECT evstream_track_batch('[
	{"user_id": "good", "event": "view"},
	{"user_id": "bad"},
	17,
	{"user_id": "bad", "event": "view", "timestamp": "soon"},
	{"user_id": "bad", "event": "view", "amount": "much"},
	{"user_id": "good", "event": "click"}]', 'dead_letter');
SELECT w.user_id, w.value::jsonb ->> 'event_type' AS event_type FROM written w ORDER BY w.id;
SELECT d.reason, d.detail, d.topic, d.log_partition, d.log_offset, d.record_key, convert_from(d.record_value, 'UTF8') AS value,
	d.record_timestamp BETWEEN now() AND clock_timestamp() AS now, d.record_headers, d.attempts
FROM evstream_dead_letters d WHERE d.id > (SELECT id FROM before) ORDER BY d.id;
ROLLBACK;
-- Dead letters among more than are written at a time.
BEGIN;
CREATE TEMPORARY TABLE before ON COMMIT DROP AS SELECT COALESCE(max(id), 0) AS id FROM evstream.dead_letters;
SELECT evstream_track_batch((SELECT jsonb_agg(CASE WHEN n % 90 = 0 THEN to_jsonb(n) ELSE jsonb_build_object('user_id', n, 'event', 'view') END ORDER BY n)
	FROM generate_series(1, 450) n), 'dead_letter');
SELECT count(*), bool_and(r.before < r.user_id::int) AS in_order
FROM (SELECT w.user_id, lag(w.user_id::int, 1, 0) OVER (ORDER BY w.id) AS before FROM written w) r;
SELECT array_agg(convert_from(d.record_value, 'UTF8') ORDER BY d.id) FROM evstream_dead_letters d WHERE d.id > (SELECT id FROM before);
ROLLBACK;

-- Properties of every shape are written as they are.
BEGIN;
CREATE TEMPORARY TABLE shapes ON COMMIT DROP AS
	SELECT row_number() OVER () AS n, p
	FROM (
		-- what is escaped, at each place of strings of each length up to 20
		SELECT jsonb_build_object('s', overlay(repeat('x', l) PLACING c FROM at FOR 1), overlay(repeat('k', l) PLACING c FROM at FOR 1), c)
		FROM generate_series(1, 20) l, generate_series(1, l) at, unnest(ARRAY['"', '\', E'\n', E'\x01', E'\x1f', ' ', E'\x7f', 'ü', '🙂']) c
		UNION ALL
		SELECT jsonb_build_object('s', repeat(c, l)) FROM generate_series(0, 300, 20) l, unnest(ARRAY['"', E'\x01', 'x"', '日']) c
		UNION ALL
		-- objects and arrays of more entries than have lengths alone, of all types and alignments
		SELECT jsonb_object_agg('key ' || i, CASE i % 7 WHEN 0 THEN 'null' WHEN 1 THEN 'true' WHEN 2 THEN 'false'
			WHEN 3 THEN to_jsonb(-i / 8.0) WHEN 4 THEN to_jsonb(repeat('y', i)) WHEN 5 THEN jsonb_build_array('a', i, '{}'::jsonb, '[]'::jsonb)
			ELSE jsonb_build_object('i', i, 'o', jsonb_build_object('deep', ARRAY[i, NULL])) END)
		FROM generate_series(1, 100) m, generate_series(1, m) i GROUP BY m
		UNION ALL
		SELECT jsonb_build_object('a', jsonb_agg(CASE i % 3 WHEN 0 THEN to_jsonb(i) WHEN 1 THEN to_jsonb(repeat('z', i % 5)) ELSE '[[], {}, "", 1e3]' END))
		FROM generate_series(1, 100) m, generate_series(1, m) i GROUP BY m
	) s (p);
SELECT evstream_track_batch((SELECT jsonb_agg(jsonb_build_object('user_id', s.n, 'event', 'view', 'properties', s.p) ORDER BY s.n) FROM shapes s)) = (SELECT count(*) FROM shapes) AS tracked;
SELECT count(*), bool_and(w.value::jsonb -> 'properties' = s.p) AS same FROM written w JOIN shapes s ON w.user_id = s.n::text;
SELECT count(evstream_track(s.n, 'view', s.p)) = count(*) AS tracked FROM shapes s;
SELECT count(*), bool_and(w.value::jsonb -> 'properties' = s.p) AS same FROM written w JOIN shapes s ON w.user_id = s.n::text;
ROLLBACK;

-- Not in a transaction that only reads; waiting and looking are possible there.
BEGIN READ ONLY;
SELECT f.* FROM pg_temp.fault($$evstream_track('u', 'view')$$) f;
SELECT f.* FROM pg_temp.fault($$evstream_track(1, 'view')$$) f;
SELECT f.* FROM pg_temp.fault($$evstream_track_batch('[]')$$) f;
SELECT evstream_event_id('order-4711') IS NOT NULL AS ok;
SELECT evstream_wait('60 s');
COMMIT;

-- Part of the transaction: nothing is left of what was rolled back.
SET evstream.traceparent = '00-33333333333333333333333333333333-3333333333333333-01';
BEGIN;
SELECT evstream_track('rolled back', 'regress_track') IS NOT NULL AS ok;
ROLLBACK;
BEGIN;
SAVEPOINT a;
SELECT evstream_track('first of all, undone', 'regress_track') IS NOT NULL AS ok;
ROLLBACK TO a;
SELECT evstream_track('after it', 'regress_track') IS NOT NULL AS ok;
-- the lock that keeps the rotation from emptying the table
SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
WHERE l.pid = pg_backend_pid() AND l.mode = 'RowExclusiveLock' AND l.granted AND c.relname = 'outbox_' || (SELECT current FROM evstream.outbox_current);
SAVEPOINT b;
SELECT evstream_track('released', 'regress_track') IS NOT NULL AS ok;
RELEASE b;
SAVEPOINT c;
SELECT evstream_track('undone', 'regress_track') IS NOT NULL AS ok;
SAVEPOINT d;
SELECT evstream_track_batch('[{"user_id": "undone too", "event": "regress_track"}]');
RELEASE d;
ROLLBACK TO c;
DO $$
BEGIN
	BEGIN
		PERFORM evstream_track('undone by an exception', 'regress_track');
		PERFORM 1 / 0;
	EXCEPTION WHEN division_by_zero THEN
		PERFORM evstream_track('in its handler', 'regress_track');
	END;
END
$$;
SELECT evstream_track('last', 'regress_track') IS NOT NULL AS ok;
COMMIT;
SELECT evstream_track('failed statement', 'regress_track'), 1 / 0;
SELECT evstream_wait('60 s');
SELECT e.user_id, e.traceparent FROM evstream_events e WHERE e.event_type = 'regress_track' ORDER BY e.log_offset;
RESET evstream.traceparent;

-- A role that may only track.
CREATE ROLE regress_ev_tracker;
SET ROLE regress_ev_tracker;
SELECT evstream_track('u', 'view');
RESET ROLE;
SELECT evstream_grant('regress_ev_tracker', 'track');
SET ROLE regress_ev_tracker;
SELECT f.* FROM pg_temp.fault($$set_config('evstream.max_event_bytes', '1GB', false)$$) f;
SET evstream.traceparent = '00-44444444444444444444444444444444-4444444444444444-01';
SELECT evstream_track('tracker', 'regress_track') IS NOT NULL AS text, evstream_track(17, 'regress_track') IS NOT NULL AS bigint;
SELECT evstream_track_batch('[{"user_id": "tracker", "event": "regress_track"}, {}]', 'dead_letter');
SELECT evstream_event_id('order-4711') IS NOT NULL AS ok;
SELECT evstream_wait('60 s');
RESET evstream.traceparent;
SELECT count(*) FROM evstream_events;
SELECT count(*) FROM evstream_dead_letters;
SELECT count(*) FROM evstream.outbox_0;
SELECT nextval('evstream.outbox_id_seq');
INSERT INTO evstream.outbox_0 DEFAULT VALUES;
RESET ROLE;
SELECT e.user_id, e.traceparent FROM evstream_events e WHERE e.traceparent LIKE '00-444%' ORDER BY e.log_offset;
DELETE FROM evstream.dead_letters WHERE record_value = '{}';

-- Objects that lie in wait in the caller's search_path are not used.
CREATE ROLE regress_ev_attacker;
SELECT evstream_grant('regress_ev_attacker', 'track');
SELECT evstream_grant('regress_ev_attacker', 'read');
SELECT evstream_grant('regress_ev_attacker', 'operate');
CREATE SCHEMA regress_ev_trap AUTHORIZATION regress_ev_attacker;
SET ROLE regress_ev_attacker;
CREATE FUNCTION regress_ev_trap.spring() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'caught as %', current_user; END $$;
DO $$
DECLARE
	f record;
	types regtype[] := '{int2,int4,int8,text,name,bool,uuid,xid8,timestamptz,timestamp,interval,date,jsonb,oid,float8,numeric,pg_snapshot}';
BEGIN
	FOR f IN
		SELECT p.proname, pg_get_function_result(p.oid) AS result, pg_get_function_identity_arguments(p.oid) AS arguments
		FROM pg_proc p
		WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND NOT p.proretset AND p.provariadic = 0 AND p.proargmodes IS NULL
			AND p.proargtypes::oid[] <@ (types || '{regclass,regrole,regproc}'::regtype[])::oid[] AND p.prorettype = ANY (types)
	LOOP
		EXECUTE format('CREATE FUNCTION regress_ev_trap.%I(%s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN PERFORM regress_ev_trap.spring(); RETURN NULL; END $f$',
			f.proname, f.arguments, f.result);
	END LOOP;
	FOR f IN
		SELECT o.oid, o.oprname, o.oprleft::regtype AS arg1, o.oprright::regtype AS arg2, o.oprresult::regtype AS result
		FROM pg_operator o
		WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprleft = ANY (types) AND o.oprright = ANY (types) AND o.oprresult = ANY (types)
	LOOP
		EXECUTE format('CREATE FUNCTION regress_ev_trap.operator_%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN PERFORM regress_ev_trap.spring(); RETURN NULL; END $f$',
			f.oid, f.arg1, f.arg2, f.result);
		EXECUTE format('CREATE OPERATOR regress_ev_trap.%s (FUNCTION = regress_ev_trap.operator_%s, LEFTARG = %s, RIGHTARG = %s)',
			f.oprname, f.oid, f.arg1, f.arg2);
	END LOOP;
	-- tables and types are also looked for among the temporary ones
	FOR f IN
		SELECT c.relname FROM pg_class c
		WHERE c.relkind IN ('r', 'v') AND (c.relnamespace = 'evstream'::regnamespace
			OR c.relname IN ('pg_extension', 'pg_class', 'pg_namespace', 'pg_database', 'pg_roles', 'pg_available_extensions'))
	LOOP
		EXECUTE format('CREATE TEMPORARY TABLE %I (trap int)', f.relname);
	END LOOP;
	CREATE DOMAIN pg_temp.uuid AS int;
	CREATE DOMAIN pg_temp.text AS int;
END
$$;
SET search_path = pg_temp, regress_ev_trap, public, pg_catalog;
SELECT now();
SELECT 1::int4 = 1::int4;
SELECT public.evstream_track('attacker', 'regress_track') AS id \gset
SELECT public.evstream_track(66, 'regress_track', '{"item_id": "i", "amount": 1}', NULL, '2026-01-02 00:00:00+00') AS id \gset
SELECT public.evstream_track_batch('[{"user_id": "attacker", "event": "regress_track"}, {"user_id": "attacker"}]', 'dead_letter') AS n \gset
SELECT public.evstream_event_id('order-4711') AS id \gset
SELECT public.evstream_wait('60 s');
SELECT public.evstream_health() AS health \gset
SELECT public.evstream_metrics() AS metrics \gset
SELECT public.evstream_pause();
SELECT public.evstream_resume();
SELECT public.evstream_restart();
SELECT public.evstream_take_over();
SELECT public.evstream_seek(0, 0);
SELECT public.evstream_rebuild('2001-01-01', '2001-01-02');
SELECT public.evstream_dead_letter_retry(0);
SELECT public.evstream_dead_letter_discard(0);
SELECT event_count FROM public.evstream_daily_summary WHERE false;
SELECT event_count FROM public.evstream_daily_counts WHERE false;
SELECT event_count FROM public.evstream_daily_item_summary WHERE false;
SELECT event_count FROM public.evstream_daily_totals WHERE false;
SELECT topic FROM public.evstream_events WHERE false;
SELECT reason FROM public.evstream_dead_letters WHERE false;
SELECT role FROM public.evstream_workers WHERE false;
SELECT topic FROM public.evstream_lag WHERE false;
RESET search_path;
RESET ROLE;
SELECT e.user_id, e.item_id FROM evstream_events e WHERE e.user_id IN ('attacker', '66') ORDER BY e.log_offset;
DISCARD TEMP;
DELETE FROM evstream.dead_letters WHERE record_value LIKE '%attacker%';
SET client_min_messages = warning;
DROP SCHEMA regress_ev_trap CASCADE;
DROP OWNED BY regress_ev_tracker, regress_ev_attacker;
DROP ROLE regress_ev_tracker, regress_ev_attacker;
