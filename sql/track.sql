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
	$$evstream_track_batch(jsonb_build_array(jsonb_build_object('user_id', 'u', 'event', 'view', 'x', repeat('x', 1024 * 1024))))$$
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

-- Ids of texts: UUIDv5 in the namespace 6a1f3c52-8f5e-4f0b-9d57-5b1d6c3e0a4e.
SELECT t.text, evstream_event_id(t.text), evstream_event_id(t.text) = t.expected AS as_expected
FROM (VALUES
	('order-4711', 'e3fe9d65-31d5-5bbb-8b71-6d9f0a5d5a5b'::uuid),
	('', NULL),
	('Grüße, 世界 🎉', NULL),
	('0190f5c2-7a0e-7cc1-b2a4-8d2f2f0c9a11', '0190f5c2-7a0e-7cc1-b2a4-8d2f2f0c9a11'),
	('0190F5C2-7A0E-7CC1-B2A4-8D2F2F0C9A11', '0190f5c2-7a0e-7cc1-b2a4-8d2f2f0c9a11'),
	('{0190f5c2-7a0e-7cc1-b2a4-8d2f2f0c9a11}', NULL),
	('0190f5c27a0e7cc1b2a48d2f2f0c9a11', NULL)
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
CREATE SCHEMA regress_trap AUTHORIZATION regress_ev_attacker;
SET ROLE regress_ev_attacker;
CREATE FUNCTION regress_trap.caught() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'caught as %', current_user; END $$;
DO $$
DECLARE
	f record;
	home text;
BEGIN
	FOREACH home IN ARRAY ARRAY['regress_trap', 'pg_temp'] LOOP
		-- functions, with the very arguments of those in pg_catalog
		FOR f IN
			SELECT p.oid, p.proname, pg_get_function_result(p.oid) AS result,
				pg_get_function_identity_arguments(p.oid) AS arguments
			FROM pg_proc p
			WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND NOT p.proretset
				AND p.prorettype <> 'internal'::regtype AND NOT 'internal'::regtype = ANY (p.proargtypes)
				AND p.proname IN ('nextval', 'pg_current_xact_id', 'now', 'clock_timestamp', 'pg_current_snapshot', 'pg_snapshot_xmax',
					'pg_visible_in_snapshot', 'gen_random_uuid', 'current_setting', 'set_config', 'current_database', 'format', 'date_trunc',
					'pg_control_system', 'to_char', 'concat_ws', 'jsonb_build_object', 'jsonb_strip_nulls', 'round', 'isfinite', 'lower', 'upper',
					'has_schema_privilege', 'pg_is_in_recovery', 'to_jsonb', 'pg_backend_pid')
		LOOP
			EXECUTE format('CREATE FUNCTION %s.%I(%s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN PERFORM regress_trap.caught(); RETURN NULL; END $f$',
				home, f.proname, f.arguments, f.result);
		END LOOP;
		-- operators
		FOR f IN
			SELECT o.oprname, format_type(o.oprleft, NULL) AS arg1, format_type(o.oprright, NULL) AS arg2, o.oprresult::regtype AS result
			FROM pg_operator o
			WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprname IN ('=', '<>', '<', '>', '>=', '<=', '+', '-', '||', '->>', '->')
				AND o.oprleft = ANY ('{int4,int8,int2,text,uuid,xid8,timestamptz,bool,jsonb,date,name,oid,interval}'::regtype[])
				AND o.oprright = ANY ('{int4,int8,int2,text,uuid,xid8,timestamptz,bool,jsonb,date,name,oid,interval}'::regtype[])
		LOOP
			EXECUTE format('CREATE FUNCTION %s.trap(%s, %s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN PERFORM regress_trap.caught(); RETURN NULL; END $f$',
				home, f.arg1, f.arg2, f.result)
				WHERE to_regprocedure(format('%s.trap(%s, %s)', home, f.arg1, f.arg2)) IS NULL;
		END LOOP;
	END LOOP;
END
$$;
RESET ROLE;
DROP ROLE regress_ev_tracker;
