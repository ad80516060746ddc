-- Who may do what.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS evstream;
DROP ROLE IF EXISTS regress_ev_none, regress_ev_track, regress_ev_read, regress_ev_subscribe, regress_ev_operate, regress_ev_monitor;
RESET client_min_messages;
CREATE ROLE regress_ev_none;
CREATE ROLE regress_ev_track;
CREATE ROLE regress_ev_read;
CREATE ROLE regress_ev_subscribe;
CREATE ROLE regress_ev_operate;
CREATE ROLE regress_ev_monitor;
GRANT pg_monitor TO regress_ev_monitor;
SELECT evstream_grant('regress_ev_track', 'track');
SELECT evstream_grant('regress_ev_read', 'read');
SELECT evstream_grant('regress_ev_subscribe', 'subscribe');
SELECT evstream_grant('regress_ev_operate', 'operate');

CREATE TEMPORARY VIEW rights AS
	SELECT o.object, string_agg(r.role, ' ' ORDER BY r.ordinality) FILTER (WHERE o.opens) AS roles
	FROM unnest(ARRAY['none', 'track', 'read', 'subscribe', 'operate', 'monitor']) WITH ORDINALITY r (role, ordinality)
	CROSS JOIN LATERAL (
		SELECT p.oid::regprocedure::text AS object, has_function_privilege('regress_ev_' || r.role, p.oid, 'EXECUTE') AS opens
		FROM pg_proc p
		WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'evstream\_%'
		UNION ALL
		SELECT c.relname || ' (' || lower(v.privilege) || ')',
			has_table_privilege('regress_ev_' || r.role, c.oid, v.privilege)
		FROM pg_class c CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) v (privilege)
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'v' AND c.relname LIKE 'evstream\_%'
		UNION ALL
		SELECT c.relname || '.' || a.attname || ' (update)',
			has_column_privilege('regress_ev_' || r.role, c.oid, a.attnum, 'UPDATE')
		FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
		WHERE c.relnamespace = 'public'::regnamespace AND c.relname = 'evstream_dead_letters'
	) o
	GROUP BY o.object;
SELECT * FROM rights WHERE roles IS NOT NULL ORDER BY object;
-- for no role of them
SELECT object FROM rights WHERE roles IS NULL AND object !~ '\((insert|update|delete|select)\)$' ORDER BY object;

-- no table and no schema of our own is open to any of them
SELECT r.rolname, c.relname FROM pg_roles r CROSS JOIN pg_class c
WHERE r.rolname LIKE 'regress\_ev\_%' AND c.relnamespace = 'evstream'::regnamespace
	AND (CASE WHEN c.relkind IN ('r', 'p', 'v') THEN has_table_privilege(r.oid, c.oid, 'SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER') END
		OR CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(r.oid, c.oid, 'USAGE,SELECT,UPDATE') END);
SELECT r.rolname FROM pg_roles r
WHERE r.rolname LIKE 'regress\_ev\_%' AND has_schema_privilege(r.oid, 'evstream', 'USAGE,CREATE');

-- and it works that way
SET ROLE regress_ev_none;
SELECT evstream_track('u', 'view');
SELECT count(*) FROM evstream_daily_summary;
SELECT evstream_health();
SELECT count(*) FROM evstream_workers;
SELECT evstream_grant('regress_ev_none', 'operate');
SET ROLE regress_ev_track;
BEGIN;
SELECT evstream_track('u', 'view') IS NOT NULL AS ok;
SELECT evstream_track(42, 'view') IS NOT NULL AS ok;
SELECT evstream_track_batch('[{"user_id": "u", "event_type": "view"}]');
SELECT evstream_event_id('key') IS NOT NULL AS ok;
ROLLBACK;
SELECT count(*) FROM evstream_daily_summary;
SET ROLE regress_ev_read;
SELECT count(*) >= 0 AS ok FROM evstream_daily_summary;
SELECT count(*) >= 0 AS ok FROM evstream_daily_counts;
SELECT count(*) >= 0 AS ok FROM evstream_daily_item_summary;
SELECT count(*) >= 0 AS ok FROM evstream_daily_totals;
SELECT count(*) >= 0 AS ok FROM evstream_events;
SELECT count(*) FROM evstream_dead_letters;
SELECT evstream_track('u', 'view');
SELECT count(*) FROM evstream.events;
SELECT evstream_subscribe('s');
SET ROLE regress_ev_subscribe;
BEGIN;
SELECT evstream_subscribe('s') > 0 AS ok;
SELECT evstream_filter_update(filter_id, min_amount => 1) FROM evstream_filters;
SELECT count(*) FROM evstream_backfill('s', 'infinity');
SELECT evstream_filter_remove(filter_id), evstream_unsubscribe(subscriber_id) FROM evstream_filters;
ROLLBACK;
SELECT count(*) FROM evstream_events;
SELECT evstream.match('view', 'u', NULL, NULL, NULL);
SET ROLE regress_ev_operate;
SELECT jsonb_typeof(evstream_health()) AS health, evstream_metrics() LIKE '# HELP %' AS metrics;
SELECT count(*) >= 0 AS ok FROM evstream_workers;
SELECT count(*) >= 0 AS ok FROM evstream_lag;
SELECT count(*) >= 0 AS ok FROM evstream_dead_letters;
UPDATE evstream_dead_letters SET record_value = '' WHERE id = 0;
UPDATE evstream_dead_letters SET reason = '' WHERE id = 0;
SELECT evstream_dead_letter_discard(0);
SELECT count(*) FROM evstream_events;
SET ROLE regress_ev_monitor;
SELECT jsonb_typeof(evstream_health()) AS health, evstream_metrics() LIKE '# HELP %' AS metrics;
SELECT count(*) >= 0 AS ok FROM evstream_workers;
SELECT count(*) >= 0 AS ok FROM evstream_lag;
SELECT evstream_pause();
RESET ROLE;

-- two privileges that open the same: it stays until both are taken back
SELECT evstream_grant('regress_ev_track', 'read');
SELECT evstream_revoke('regress_ev_track', 'track');
SELECT object FROM rights WHERE 'track' = ANY (string_to_array(roles, ' ')) ORDER BY object;
SELECT evstream_revoke('regress_ev_track', 'read');
SELECT evstream_revoke('regress_ev_read', 'read');
SELECT evstream_revoke('regress_ev_subscribe', 'subscribe');
SELECT evstream_revoke('regress_ev_operate', 'operate');
SELECT object, roles FROM rights WHERE roles ~ 'track|read|subscribe|operate' ORDER BY object;

-- errors
SELECT evstream_grant('regress_ev_none', 'everything');
SELECT evstream_grant('regress_ev_none', NULL);
SELECT evstream_grant(NULL, 'read');
SELECT evstream_grant('regress_ev_nobody', 'read');
SELECT evstream_revoke('regress_ev_none', '');

DROP ROLE regress_ev_none, regress_ev_track, regress_ev_read, regress_ev_subscribe, regress_ev_operate, regress_ev_monitor;
