/* evstream--1.0--1.1.sql: what version 1.1 changes in the objects of 1.0 */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION evstream UPDATE" to load this file. \quit

SET LOCAL search_path = pg_catalog, pg_temp;

-- Who holds which privilege before what it opens has changed; see the end.
CREATE TABLE evstream.privileges_before AS
	SELECT r.oid AS role, p.privilege
	FROM pg_catalog.pg_roles r CROSS JOIN unnest(ARRAY['track', 'read', 'subscribe', 'operate']) p (privilege)
	WHERE evstream.holds_privilege(r.oid::regrole, p.privilege)
		AND r.oid <> (SELECT x.extowner FROM pg_catalog.pg_extension x WHERE x.extname = 'evstream');

-- ---------------------------------------------------------------------------
-- Outbox and relay
-- ---------------------------------------------------------------------------

-- The library writes the rows itself: it looks up no name on a path, and asks
-- for no privilege but EXECUTE, so that the price of each call is saved.
ALTER FUNCTION @extschema@.evstream_track(text, text, jsonb, uuid, timestamptz) SECURITY INVOKER RESET search_path;
ALTER FUNCTION @extschema@.evstream_track(bigint, text, jsonb, uuid, timestamptz) SECURITY INVOKER RESET search_path;

-- ---------------------------------------------------------------------------
-- Batches: positions, ids, stored events, stats
-- ---------------------------------------------------------------------------

-- ---------------------------------------------------------------------------
-- Fan-out
-- ---------------------------------------------------------------------------

-- ---------------------------------------------------------------------------
-- Operating: health, metrics, seek, rebuild, grants
-- ---------------------------------------------------------------------------

-- A dump sets row_security by SET. As a setting of the database, the role or the
-- server it does not tell of a restore: what 1.0 took for one, a moment ago, is none.
DO $$
BEGIN
	IF (SELECT s.source FROM pg_catalog.pg_settings s WHERE s.name = 'row_security') <> 'session' THEN
		DELETE FROM evstream.restored r WHERE r.restored_at = pg_catalog.now();
		IF FOUND THEN
			PERFORM evstream.add_first_rows();
		END IF;
	END IF;
END
$$;

-- ---------------------------------------------------------------------------
-- Rights; to stay the last section
-- ---------------------------------------------------------------------------

-- What is new belongs to the owner of the extension, whoever updates it, and
-- nothing is for PUBLIC, whatever the default privileges are.
DO $$
DECLARE
	item record;
BEGIN
	FOR item IN
		SELECT CASE WHEN p.oid IS NOT NULL THEN format('FUNCTION %s', p.oid::regprocedure) ELSE format('TABLE %s', c.oid::regclass) END AS object,
			pg_get_userbyid(x.extowner) AS owner,
			COALESCE(p.proowner, c.relowner) <> x.extowner
				AND NOT EXISTS (SELECT FROM pg_depend s WHERE s.classid = 'pg_class'::regclass AND s.objid = c.oid AND c.relkind = 'S'
					AND s.refclassid = 'pg_class'::regclass AND s.refobjsubid > 0) AS is_other
		FROM pg_extension x
			JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = x.oid AND d.deptype = 'e'
			LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
			LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
		WHERE x.extname = 'evstream' AND (p.oid IS NOT NULL OR c.oid IS NOT NULL)
	LOOP
		IF item.is_other THEN
			EXECUTE format('ALTER %s OWNER TO %I', item.object, item.owner);
		END IF;
		EXECUTE format('REVOKE ALL ON %s FROM PUBLIC', item.object);
	END LOOP;
END
$$;

-- A privilege that was granted opens what 1.1 adds to it, too.
SELECT @extschema@.evstream_grant(b.role::regrole, b.privilege) FROM evstream.privileges_before b ORDER BY b.role, b.privilege;
DROP TABLE evstream.privileges_before;
