/* evstream--1.0--1.1.sql: what version 1.1 changes in the objects of 1.0 */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION evstream UPDATE" to load this file. \quit

SET LOCAL search_path = pg_catalog, pg_temp;

-- ---------------------------------------------------------------------------
-- Outbox and relay
-- ---------------------------------------------------------------------------

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
