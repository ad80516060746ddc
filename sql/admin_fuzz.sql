-- All functions take whatever SQL can give them: an error at most.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS evstream;
-- a text that is no UTF-8, as no user can make it
CREATE CAST (bytea AS text) WITHOUT FUNCTION;

CREATE TEMPORARY TABLE odd (type regtype, value text);
INSERT INTO odd VALUES
	('text', $$NULL$$), ('text', $$''$$), ('text', $$'s'$$), ('text', $$E'a b\n\r\t'$$), ('text', $$'00000000-0000-0000-0000-000000000000'$$),
	('text', $$repeat('x', 3000000)$$), ('text', $$repeat(E'\u20ac', 255)$$), ('text', $$'UTC'$$), ('text', $$'Mars/Olympus'$$), ('text', $$'dead_letter'$$), ('text', $$'operate'$$),
	('text', $$'%s%n%1$s'$$), ('text', $$'''; DROP TABLE x; --'$$), ('text', $$'\x00'::bytea::text$$), ('text', $$'\xf0'::bytea::text$$), ('text', $$'\x61e2'::bytea::text$$),
	('text', $$'\xc0afff'::bytea::text$$), ('text', $$(SELECT t FROM stored)$$),
	('bytea', $$NULL$$), ('bytea', $$''$$), ('bytea', $$'\x00'$$), ('bytea', $$'\x0000000001'$$), ('bytea', $$'\xffff'$$),
	('bytea', $$'{"user_id": "u", "event_type": "view"}'$$), ('bytea', $$'{"user_id": "u", "event_type": "view"'$$),
	('bytea', $$convert_to(repeat('[', 100000), 'UTF8')$$), ('bytea', $$convert_to(repeat('{"a":', 100000), 'UTF8')$$), ('bytea', $$convert_to(repeat('9', 100000), 'UTF8')$$),
	('jsonb', $$NULL$$), ('jsonb', $$'{}'$$), ('jsonb', $$'[]'$$), ('jsonb', $$'null'$$), ('jsonb', $$'"x"'$$), ('jsonb', $$'1e400'$$), ('jsonb', $$'true'$$),
	('jsonb', $$'[[], 1, null, {"user_id": {}}]'$$), ('jsonb', $$'[{"user_id": "u", "event_type": "view", "amount": 1e131071}]'$$),
	('jsonb', $$jsonb_build_array(jsonb_build_object('user_id', repeat('u', 300000), 'event_type', 'view'))$$),
	('jsonb', $$(repeat('[', 3000) || repeat(']', 3000))::jsonb$$), ('jsonb', $$jsonb_object_agg(g::text, g) FROM generate_series(1, 3000) g$$),
	('jsonb', $$'[["traceparent", "AA=="], ["traceparent", null], [], [1], "x"]'$$),
	('integer', $$NULL$$), ('integer', $$0$$), ('integer', $$-1$$), ('integer', $$2147483647$$), ('integer', $$-2147483648$$),
	('bigint', $$NULL$$), ('bigint', $$0$$), ('bigint', $$-1$$), ('bigint', $$9223372036854775807$$), ('bigint', $$-9223372036854775808$$),
	('numeric', $$NULL$$), ('numeric', $$0$$), ('numeric', $$-1$$), ('numeric', $$'NaN'$$), ('numeric', $$'Infinity'$$), ('numeric', $$'-Infinity'$$), ('numeric', $$1e100000$$), ('numeric', $$1e-16383$$),
	('boolean', $$NULL$$), ('boolean', $$true$$), ('boolean', $$false$$),
	('uuid', $$NULL$$), ('uuid', $$'00000000-0000-0000-0000-000000000000'$$), ('uuid', $$'ffffffff-ffff-ffff-ffff-ffffffffffff'$$),
	('timestamptz', $$NULL$$), ('timestamptz', $$now()$$), ('timestamptz', $$'infinity'$$), ('timestamptz', $$'-infinity'$$), ('timestamptz', $$'4713-01-01 BC'$$), ('timestamptz', $$'294276-12-31'$$),
	('interval', $$NULL$$), ('interval', $$'0'$$), ('interval', $$'-1 day'$$), ('interval', $$'1 us'$$), ('interval', $$'178000000 years'$$), ('interval', $$'-178000000 years'$$),
	('interval', $$'-2147483648 months -2147483648 days'$$), ('interval', $$'2147483647 days 2562047788 hours'$$),
	('date', $$NULL$$), ('date', $$current_date$$), ('date', $$'infinity'$$), ('date', $$'-infinity'$$), ('date', $$'4713-01-01 BC'$$), ('date', $$'5874897-12-31'$$),
	('regrole', $$NULL$$), ('regrole', $$0$$), ('regrole', $$4294967295$$), ('regrole', $$'pg_monitor'$$),
	('text[]', $$NULL$$), ('text[]', $$'{}'$$), ('text[]', $$'{NULL}'$$), ('text[]', $$'{{a,b},{c,d}}'$$), ('text[]', $$'[5:6]={a,b}'$$), ('text[]', $$array_fill('x'::text, ARRAY[5000])$$),
	('text[]', $$ARRAY(SELECT g::text FROM generate_series(1, 5000) g)$$), ('text[]', $$ARRAY[repeat('x', 3000000)]$$), ('text[]', $$ARRAY['\xf0'::bytea::text]$$), ('text[]', $$(SELECT a FROM stored)$$),
	('pg_snapshot', $$NULL$$), ('pg_snapshot', $$'1:1:'$$), ('pg_snapshot', $$'9223372036854775806:9223372036854775807:'$$), ('pg_snapshot', $$pg_current_snapshot()$$);
-- toasted, compressed or not
CREATE TEMPORARY TABLE stored (t text, a text[]);
INSERT INTO stored SELECT string_agg(md5(g::text), ''), array_agg(md5(g::text)) FROM generate_series(1, 20000) g;

CREATE TEMPORARY VIEW functions AS
	SELECT p.oid, p.proname, p.proargtypes, p.prolang FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
	WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
		AND d.refobjid = (SELECT x.oid FROM pg_extension x WHERE x.extname = 'evstream') AND p.prorettype <> 'trigger'::regtype;
-- types that nobody thought of here
SELECT DISTINCT t::regtype AS missing FROM functions f, unnest(f.proargtypes) t
WHERE t NOT IN (SELECT type FROM odd) ORDER BY 1;

-- All nulls, and then odd ones, each in its place and by chance, with the same
-- chance each time.
CREATE FUNCTION pg_temp.fuzz(function oid, calls int) RETURNS TABLE (error text, call text)
LANGUAGE plpgsql AS $$
DECLARE
	types oidvector;
	sets boolean;
	arguments text;
	statement text;
	turn int;
BEGIN
	SELECT p.proargtypes, p.proretset INTO types, sets FROM pg_proc p WHERE p.oid = function;
	FOR turn IN 0 .. CASE WHEN cardinality(types::oid[]) = 0 THEN 0 ELSE calls END LOOP
		SELECT COALESCE(string_agg(format('(SELECT %s)', COALESCE(CASE WHEN turn > 0 THEN (
				SELECT o.value FROM odd o WHERE o.type = a.type::regtype
				ORDER BY hashtext(o.value || turn::text || a.n) LIMIT 1) END, 'NULL')) || '::' || a.type::regtype, ', ' ORDER BY a.n), '')
			INTO arguments FROM unnest(types::oid[]) WITH ORDINALITY a (type, n);
		statement := format(CASE WHEN sets THEN 'SELECT count(*) FROM (SELECT %s(%s)) s' ELSE 'SELECT %s(%s) IS NULL' END,
			(SELECT format('%I.%I', p.pronamespace::regnamespace, p.proname) FROM pg_proc p WHERE p.oid = function), arguments);
		BEGIN
			EXECUTE statement;
		EXCEPTION
			WHEN query_canceled OR assert_failure THEN NULL;
			WHEN OTHERS THEN
				-- what cannot happen, and calls that were none
				IF SQLSTATE LIKE 'XX%' OR SQLSTATE LIKE '58%' OR SQLSTATE IN ('42601', '42804', '42846', '42883') THEN
					error := SQLSTATE || ' ' || SQLERRM;
					call := statement;
					RETURN NEXT;
				END IF;
		END;
	END LOOP;
END
$$;

-- As superuser; nothing of it is kept.
SELECT count(*) FILTER (WHERE l.lanname = 'c') >= 20 AND count(*) >= 50 AS enough FROM functions f JOIN pg_language l ON l.oid = f.prolang;
BEGIN;
SELECT p.oid::regprocedure AS function, f.error, left(f.call, 200) AS call
FROM functions p JOIN pg_language l ON l.oid = p.prolang CROSS JOIN LATERAL pg_temp.fuzz(p.oid, CASE l.lanname WHEN 'c' THEN 100 ELSE 20 END) f
WHERE p.proname <> 'evstream_wait'
ORDER BY 1, 2, 3;
ROLLBACK;
-- this one waits, and would for itself
BEGIN;
SET LOCAL statement_timeout = '60 s';
SELECT f.error, left(f.call, 200) AS call FROM functions p CROSS JOIN LATERAL pg_temp.fuzz(p.oid, 30) f WHERE p.proname = 'evstream_wait';
ROLLBACK;

-- Nobody but a superuser calls those that are not for users.
CREATE ROLE regress_ev_anybody;
GRANT USAGE ON SCHEMA evstream TO regress_ev_anybody;
SET ROLE regress_ev_anybody;
CREATE FUNCTION pg_temp.refused(statement text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RETURN false;
EXCEPTION
	WHEN insufficient_privilege THEN RETURN true;
	WHEN OTHERS THEN RETURN false;
END
$$;
SELECT p.oid::regprocedure AS allowed FROM pg_proc p
WHERE p.pronamespace = 'evstream'::regnamespace AND p.prorettype <> 'trigger'::regtype
	AND NOT pg_temp.refused(format('SELECT %s(%s)', p.oid::regproc, (SELECT string_agg(format('(SELECT NULL::%s OFFSET 0)', t::regtype), ', ') FROM unnest(p.proargtypes) t)))
ORDER BY 1;
RESET ROLE;
-- nor can a function of ours be had by a name of one's own
SET ROLE regress_ev_anybody;
CREATE FUNCTION pg_temp.mine(jsonb, text) RETURNS bigint LANGUAGE c AS '$libdir/evstream', 'evstream_track_batch';
RESET ROLE;
-- nor is what runs a worker a function
CREATE FUNCTION pg_temp.mine() RETURNS void LANGUAGE c AS '$libdir/evstream', 'evstream_consumer_main';
CREATE FUNCTION pg_temp.mine() RETURNS trigger LANGUAGE c AS '$libdir/evstream', 'evstream_event_id';
REVOKE USAGE ON SCHEMA evstream FROM regress_ev_anybody;
DROP OWNED BY regress_ev_anybody;
DROP ROLE regress_ev_anybody;
DROP CAST (bytea AS text);
