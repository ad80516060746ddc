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

-- What is not new; see the end.
CREATE TABLE evstream.members_before AS
	SELECT d.classid, d.objid
	FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid
	WHERE d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.deptype = 'e' AND x.extname = 'evstream';

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

-- What is published through the parents is told apart as the parents say, which
-- have no key; on the subscriber the key of the leaves finds the rows.
ALTER TABLE evstream.daily_counts REPLICA IDENTITY FULL;
ALTER TABLE evstream.daily_items REPLICA IDENTITY FULL;

-- Days of events that are stored, by the UTC day on which they were received, which
-- is that of their leaf: so that rebuilding them is refused when that is gone.
CREATE TABLE evstream.stored_days (
	received_day date NOT NULL,
	day date NOT NULL,
	time_zone text COLLATE "C" NOT NULL,
	PRIMARY KEY (received_day, day, time_zone)
);
COMMENT ON TABLE evstream.stored_days IS 'Days of the events in each partition of evstream.events';
SELECT pg_catalog.pg_extension_config_dump('evstream.stored_days', '');

-- Not dumped: maintenance makes those that are missing.
CREATE TABLE evstream.id_filters (
	segment_id int PRIMARY KEY,
	-- how its bits are made, which is the library's
	kind int NOT NULL,
	-- the segment's table when it was read
	relfilenode oid NOT NULL,
	filter bytea NOT NULL
);
ALTER TABLE evstream.id_filters ALTER COLUMN filter SET STORAGE EXTERNAL;
COMMENT ON TABLE evstream.id_filters IS 'Which ids the closed segments may have, so that a consumer need not read them when it starts';

-- ---------------------------------------------------------------------------
-- Fan-out
-- ---------------------------------------------------------------------------

-- ---------------------------------------------------------------------------
-- Operating: health, metrics, seek, rebuild, grants
-- ---------------------------------------------------------------------------

-- The days of another zone that a day of one zone overlaps: as far as two days off,
-- as the clocks of two places are up to 26 hours apart (and were up to 31 before there
-- were zones). AT TIME ZONE takes a name such as "CET" for the abbreviation, which knows
-- no summer time: then it is an hour more at both ends.
CREATE FUNCTION evstream.zone_days(day date, zone text, other text) RETURNS daterange
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE WHEN zone = other THEN daterange(day, day, '[]')
		ELSE daterange(
			evstream.day_of((day::timestamp AT TIME ZONE zone) - slack, other),
			evstream.day_of(((day + 1)::timestamp AT TIME ZONE zone) + slack - interval '1 microsecond', other), '[]') END
	FROM (SELECT CASE WHEN zone <> 'UTC' AND EXISTS (SELECT FROM pg_timezone_abbrevs a WHERE a.abbrev = upper(zone))
		THEN interval '1 hour' ELSE interval '0' END AS slack) s
$$;
COMMENT ON FUNCTION evstream.zone_days(date, text, text) IS 'The days of another time zone that a day of a zone overlaps';
REVOKE ALL ON FUNCTION evstream.zone_days(date, text, text) FROM PUBLIC;

CREATE FUNCTION evstream.day_text(day date) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT to_char(day, CASE WHEN day < '0001-01-01' THEN 'YYYY-MM-DD BC' ELSE 'YYYY-MM-DD' END)
$$;
COMMENT ON FUNCTION evstream.day_text(date) IS 'A day in a message, whatever DateStyle is';
REVOKE ALL ON FUNCTION evstream.day_text(date) FROM PUBLIC;

-- Their partition may have been dropped, detached, emptied, or left out of a dump: then
-- nothing is there of what was received on that day.
CREATE FUNCTION evstream.days_not_stored(from_day date, to_day date) RETURNS TABLE (day date, time_zone text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT u.day, u.time_zone FROM evstream.unstored_days u WHERE u.day BETWEEN from_day AND to_day
	UNION
	SELECT s.day, s.time_zone
	FROM (SELECT DISTINCT d.received_day FROM evstream.stored_days d WHERE d.day BETWEEN from_day AND to_day) r
		JOIN evstream.stored_days s USING (received_day)
	WHERE s.day BETWEEN from_day AND to_day
		AND NOT EXISTS (SELECT FROM evstream.events e
			WHERE e.received_at >= r.received_day::timestamp AT TIME ZONE 'UTC'
				AND e.received_at < (r.received_day + 1)::timestamp AT TIME ZONE 'UTC')
$$;
COMMENT ON FUNCTION evstream.days_not_stored(date, date) IS 'Days with events that are not stored, or no longer';
REVOKE ALL ON FUNCTION evstream.days_not_stored(date, date) FROM PUBLIC;

CREATE OR REPLACE FUNCTION evstream.check_rebuild(from_day date, to_day date, zone text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	setting text := evstream.time_zone_setting();
	days text[];
BEGIN
	IF setting <> zone THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = 'the workers count in another time zone than evstream.time_zone',
			DETAIL = format('They count in "%s", the setting is "%s".', zone, setting),
			HINT = 'Call evstream_restart() first.';
	END IF;
	IF NOT COALESCE(current_setting('evstream.store_events', true), 'on')::boolean THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = 'stats cannot be rebuilt while events are not stored',
			HINT = 'Set evstream.store_events to on; days that were counted without it stay as they are.';
	END IF;

	-- the rows that hold their counts, which have that day, and the days that they are of in this zone
	SELECT array_agg(evstream.day_text(u.day) ORDER BY u.day) INTO days
		FROM (SELECT DISTINCT n.day FROM evstream.days_not_stored(from_day - 2, to_day + 2) n
			WHERE n.day BETWEEN from_day AND to_day
				OR evstream.zone_days(n.day, n.time_zone, zone) && daterange(from_day, to_day, '[]')) u;
	IF days IS NOT NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('%s of the days from %s to %s cannot be rebuilt', cardinality(days),
				evstream.day_text(from_day), evstream.day_text(to_day)),
			DETAIL = format('Events of these days are not stored, or no longer: %s.',
				array_to_string(days[1:20], ', ') || CASE WHEN cardinality(days) > 20 THEN ', ...' ELSE '' END),
			HINT = 'Rebuild the other days. What is kept is decided by evstream.retention and evstream.store_events.';
	END IF;
END
$$;

CREATE OR REPLACE FUNCTION @extschema@.evstream_rebuild(from_day date, to_day date) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	zone text;
	nrows bigint;
	written bigint := 0;
BEGIN
	IF from_day IS NULL OR to_day IS NULL OR NOT isfinite(from_day) OR NOT isfinite(to_day) THEN
		RAISE EXCEPTION USING
			ERRCODE = CASE WHEN from_day IS NULL OR to_day IS NULL THEN 'null_value_not_allowed' ELSE 'invalid_parameter_value' END,
			MESSAGE = 'the days of evstream_rebuild() must be given, and finite';
	END IF;
	IF from_day > to_day THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'from_day of evstream_rebuild() must not be after to_day';
	END IF;
	-- the days that an event can have, so that all others may be asked for
	from_day := LEAST(GREATEST(from_day, '0001-12-30 BC'), '10000-01-03');
	to_day := LEAST(GREATEST(to_day, '0001-12-30 BC'), '10000-01-03');
	-- what was committed while we waited for the locks has to be seen
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'active_sql_transaction',
			MESSAGE = 'evstream_rebuild() must run at isolation level read committed';
	END IF;

	-- workers that were just restarted are about to take the zone
	FOR i IN 1 .. 100 LOOP
		EXIT WHEN NOT EXISTS (SELECT FROM evstream.workers())
			OR EXISTS (SELECT FROM evstream.state s WHERE s.time_zone = evstream.time_zone_setting());
		PERFORM pg_sleep(0.05);
	END LOOP;

	-- no batch counts, and no stored event is dropped, until the end
	LOCK TABLE evstream.daily_counts, evstream.daily_items, evstream.daily_totals IN SHARE ROW EXCLUSIVE MODE;
	LOCK TABLE evstream.events IN ACCESS SHARE MODE;
	SELECT s.time_zone INTO zone FROM evstream.state s FOR UPDATE;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = 'this database is not completely restored',
			HINT = 'When it is, call evstream_resume().';
	END IF;
	PERFORM evstream.check_rebuild(from_day, to_day, zone);

	-- what was counted in another zone is about to be counted on these days
	INSERT INTO evstream.stored_days (received_day, day, time_zone)
		SELECT o.received_day, lower(o.days) + n, zone
		FROM (SELECT d.received_day, evstream.zone_days(d.day, d.time_zone, zone) * daterange(from_day, to_day, '[]') AS days
				FROM evstream.stored_days d
				WHERE d.time_zone <> zone AND d.day BETWEEN from_day - 2 AND to_day + 2) o
			CROSS JOIN LATERAL generate_series(0, upper(o.days) - lower(o.days) - 1) n
		ON CONFLICT DO NOTHING;

	DELETE FROM evstream.daily_counts c WHERE c.day BETWEEN from_day AND to_day;
	INSERT INTO evstream.daily_counts (user_id, day, event_type, event_count, amount_total,
			first_event_at, last_event_at, updated_at)
		SELECT e.user_id, evstream.day_of(e.occurred_at, zone), e.event_type, count(*), trim_scale(sum(e.amount)),
			min(e.occurred_at), max(e.occurred_at), now()
		FROM evstream.events e
		WHERE evstream.day_of(e.occurred_at, zone) BETWEEN from_day AND to_day
			-- else somebody has made it anonymous
			AND e.user_id IS NOT NULL AND e.event_type IS NOT NULL
		GROUP BY 1, 2, 3
		ORDER BY 1, 2, 3;
	GET DIAGNOSTICS nrows = ROW_COUNT;
	written := written + nrows;

	IF COALESCE(current_setting('evstream.item_stats', true), 'on')::boolean THEN
		DELETE FROM evstream.daily_items i WHERE i.day BETWEEN from_day AND to_day;
		INSERT INTO evstream.daily_items (user_id, item_id, day, view_count, click_count, purchase_count,
				event_count, updated_at)
			SELECT e.user_id, e.item_id, evstream.day_of(e.occurred_at, zone),
				count(*) FILTER (WHERE e.event_type = 'view'),
				count(*) FILTER (WHERE e.event_type = 'click'),
				count(*) FILTER (WHERE e.event_type = 'purchase'),
				count(*), now()
			FROM evstream.events e
			WHERE e.item_id IS NOT NULL
				AND evstream.day_of(e.occurred_at, zone) BETWEEN from_day AND to_day
				AND e.user_id IS NOT NULL AND e.event_type IS NOT NULL
			GROUP BY 1, 2, 3
			ORDER BY 1, 2, 3;
		GET DIAGNOSTICS nrows = ROW_COUNT;
		written := written + nrows;
	END IF;

	DELETE FROM evstream.daily_totals t WHERE t.day BETWEEN from_day AND to_day;
	INSERT INTO evstream.daily_totals (day, event_type, writer, event_count, user_count, amount_total, updated_at)
		SELECT c.day, c.event_type, 0, sum(c.event_count), count(*), sum(c.amount_total), now()
		FROM evstream.daily_counts c
		WHERE c.day BETWEEN from_day AND to_day
		GROUP BY 1, 2
		ORDER BY 1, 2;
	GET DIAGNOSTICS nrows = ROW_COUNT;
	written := written + nrows;

	-- after a change of zone: done when all days that can be rebuilt were
	UPDATE evstream.state SET rebuilt = rebuilt + datemultirange(daterange(from_day, to_day, '[]')) WHERE rebuild_needed;
	WITH unstored AS MATERIALIZED (
		SELECT n.day, n.time_zone FROM evstream.state s CROSS JOIN evstream.days_not_stored('-infinity', 'infinity') n
		WHERE s.rebuild_needed)
	UPDATE evstream.state s SET rebuild_needed = false, rebuilt = '{}'
		WHERE s.rebuild_needed AND NOT EXISTS (
			SELECT FROM (SELECT DISTINCT t.day FROM evstream.daily_totals t) t
			WHERE NOT s.rebuilt @> t.day
				AND NOT EXISTS (SELECT FROM unstored u
					WHERE u.day BETWEEN t.day - 2 AND t.day + 2
						AND (u.day = t.day OR evstream.zone_days(u.day, u.time_zone, zone) @> t.day)));
	RETURN written;
END
$$;

-- Says what a forced seek cannot know.
CREATE FUNCTION evstream.warn_of_force() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	known_since timestamptz;
BEGIN
	-- as long as the first segment is there, no id was forgotten
	SELECT min(s.created_at) INTO known_since FROM evstream.id_segments s HAVING min(s.segment_id) > 1;
	IF known_since IS NOT NULL THEN
		RAISE WARNING USING
			MESSAGE = 'records that were consumed before may be counted again',
			DETAIL = format('Ids are known of events that were received since %s; older ones are not recognised.',
				to_char(known_since, 'YYYY-MM-DD HH24:MI:SSOF')),
			HINT = 'Without force, what was consumed before is passed over. How long ids are known is decided by evstream.dedup_window.';
	END IF;
END
$$;
COMMENT ON FUNCTION evstream.warn_of_force() IS 'Warns where evstream_seek() with force may count records again';
REVOKE ALL ON FUNCTION evstream.warn_of_force() FROM PUBLIC;

CREATE OR REPLACE FUNCTION @extschema@.evstream_seek(to_time timestamptz, force boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF to_time IS NULL OR force IS NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'null_value_not_allowed',
			MESSAGE = format('%s of evstream_seek() must not be null',
				CASE WHEN to_time IS NULL THEN 'to_time' ELSE 'force' END);
	END IF;
	IF NOT isfinite(to_time) THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'to_time of evstream_seek() must be finite',
			HINT = 'Use a time before the first record, or one in the future, to go to the start or the end.';
	END IF;
	PERFORM evstream.check_seek(NULL);
	IF force THEN
		PERFORM evstream.warn_of_force();
	END IF;
	INSERT INTO evstream.seeks (to_time, force) VALUES ($1, $2);
	PERFORM evstream.wake_workers();
END
$$;

CREATE OR REPLACE FUNCTION @extschema@.evstream_seek(partition int, log_offset bigint, topic text DEFAULT NULL, force boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	missing text := CASE WHEN $1 IS NULL THEN 'partition' WHEN $2 IS NULL THEN 'log_offset' WHEN $4 IS NULL THEN 'force' END;
BEGIN
	IF missing IS NOT NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'null_value_not_allowed',
			MESSAGE = format('%s of evstream_seek() must not be null', missing);
	END IF;
	IF $1 < 0 OR $2 < 0 THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = format('%s of evstream_seek() must not be negative',
				CASE WHEN $1 < 0 THEN 'partition' ELSE 'log_offset' END);
	END IF;
	PERFORM evstream.check_seek($3);
	-- before the first start nothing is known of the topic
	IF EXISTS (SELECT FROM evstream.logs l JOIN evstream.partitions p USING (log_id)
			WHERE l.topic = COALESCE($3, current_setting('evstream.kafka_topic', true)))
		AND NOT EXISTS (SELECT FROM evstream.logs l JOIN evstream.partitions p USING (log_id)
			WHERE l.topic = COALESCE($3, current_setting('evstream.kafka_topic', true)) AND p.log_partition = $1)
	THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = format('topic "%s" has no partition %s', COALESCE($3, current_setting('evstream.kafka_topic', true)), $1),
			HINT = 'The view evstream_lag lists the partitions; one that was just added is picked up within seconds.';
	END IF;
	IF force THEN
		PERFORM evstream.warn_of_force();
	END IF;
	INSERT INTO evstream.seeks (topic, log_partition, log_offset, force)
		VALUES ($3, $1, $2, $4);
	PERFORM evstream.wake_workers();
END
$$;

CREATE OR REPLACE FUNCTION @extschema@.evstream_take_over() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	here record;
BEGIN
	SELECT c.system_identifier, d.oid INTO STRICT here
		FROM pg_control_system() c, pg_database d
		WHERE d.datname = current_database();
	PERFORM evstream.add_first_rows();
	UPDATE evstream.identity SET
		system_identifier = here.system_identifier,
		database_oid = here.oid,
		-- of two claims the later one counts: it is above the one that stopped our
		-- workers, also where our clock is behind that of its owner
		claim = GREATEST(claim + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
			(SELECT max(substring(p.message FROM '/([0-9]{1,18})\)$')::bigint) + 1
				FROM evstream.problems() p WHERE p.code = 'foreign_mark')),
		claimed_at = now();
	PERFORM evstream.restart_workers();
	RETURN true;
END
$$;

CREATE OR REPLACE FUNCTION @extschema@.evstream_dead_letter_retry(id bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	letter evstream.dead_letters;
	verdict record;
	bad boolean := false;
BEGIN
	SELECT d.* INTO letter FROM evstream.dead_letters d WHERE d.id = $1 FOR UPDATE;
	IF NOT FOUND THEN
		PERFORM evstream.no_dead_letter($1);
	END IF;

	letter.record_timestamp := COALESCE(letter.record_timestamp, letter.received_at);
	-- what crashed a consumer is not for this session to look at, as it may do the same here: a
	-- consumer finds it again, edited or not
	IF letter.reason <> 'crashed' OR letter.record_value IS NULL THEN
		SELECT c.reason, c.detail INTO verdict
			FROM evstream.check_record(letter.record_value, letter.record_timestamp, letter.record_headers) c;
		bad := verdict.reason IS NOT NULL;
	END IF;
	IF bad THEN
		UPDATE evstream.dead_letters d
			SET reason = verdict.reason, detail = verdict.detail, attempts = d.attempts + 1
			WHERE d.id = $1;
		RETURN false;
	END IF;

	INSERT INTO evstream.retries (id, log_id, log_partition, log_offset, record_key, record_value,
			record_timestamp, record_headers, attempts)
		VALUES (letter.id, letter.log_id, letter.log_partition, letter.log_offset, letter.record_key,
			letter.record_value, letter.record_timestamp, letter.record_headers, letter.attempts);
	DELETE FROM evstream.dead_letters d WHERE d.id = $1;
	PERFORM evstream.wake_workers();
	RETURN true;
END
$$;
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

-- Of two extensions that cannot be told apart by system and database, as those of two copies
-- of a data directory, the claim says which one is the later. 1.0 began at 0.
ALTER TABLE evstream.identity ALTER COLUMN claim SET DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
UPDATE evstream.identity i SET claim = DEFAULT
	FROM pg_extension x
	WHERE x.extname = 'evstream' AND x.xmin = i.xmin AND i.claimed_at IS NULL;	-- a new one

-- A schema that was made for the extension may be open to others, whose objects
-- could lie in wait between the tables.
DO $$
DECLARE
	grantee oid;
BEGIN
	FOR grantee IN
		SELECT a.grantee FROM pg_namespace n CROSS JOIN aclexplode(n.nspacl) a
		WHERE n.nspname = 'evstream' AND a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner
	LOOP
		EXECUTE format('REVOKE CREATE ON SCHEMA evstream FROM %s CASCADE', CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE grantee::regrole::text END);
	END LOOP;
END
$$;

-- USAGE of the schema goes with the last privilege where nothing else is in it.
CREATE OR REPLACE FUNCTION @extschema@.evstream_revoke(role regrole, privilege text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	item record;
	extension record;
BEGIN
	PERFORM evstream.check_privilege(role, privilege);
	FOR item IN
		SELECT o.kind, o.object FROM evstream.privilege_objects(privilege) o
		-- what another privilege of the role opens too stays
		WHERE NOT EXISTS (
			SELECT FROM unnest(ARRAY['track', 'read', 'subscribe', 'operate']) other (name)
			WHERE other.name <> evstream_revoke.privilege
				AND evstream.holds_privilege(evstream_revoke.role, other.name)
				AND (o.kind, o.object) IN (SELECT p.kind, p.object FROM evstream.privilege_objects(other.name) p))
	LOOP
		EXECUTE format('REVOKE %s %s FROM %s', item.kind, item.object, role);
	END LOOP;

	SELECT x.oid, x.extnamespace, n.nspname INTO STRICT extension
		FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace WHERE x.extname = 'evstream';
	IF NOT EXISTS (
		SELECT FROM (
			SELECT 'pg_proc'::regclass AS classid, p.oid AS objid, p.proacl AS acl FROM pg_proc p WHERE p.pronamespace = extension.extnamespace
			UNION ALL
			SELECT 'pg_class'::regclass, c.oid, c.relacl FROM pg_class c
			WHERE c.relnamespace = extension.extnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND NOT c.relispartition
		) o
		WHERE EXISTS (SELECT FROM aclexplode(o.acl) a WHERE a.grantee = evstream_revoke.role)
			OR NOT EXISTS (SELECT FROM pg_depend d
				WHERE d.classid = o.classid AND d.objid = o.objid AND d.deptype = 'e'
					AND d.refclassid = 'pg_extension'::regclass AND d.refobjid = extension.oid))
	THEN
		EXECUTE format('REVOKE USAGE ON SCHEMA %I FROM %s', extension.nspname, role);
	END IF;
END
$$;

-- ---------------------------------------------------------------------------
-- Rights; to stay the last section
-- ---------------------------------------------------------------------------

-- What is new belongs to the owner of the extension, whoever updates it, and
-- nothing of it is for PUBLIC, whatever the default privileges are. Of what was there
-- before, also where it was replaced, owner and privileges are an administrator's: a
-- GRANT or REVOKE here would also make them initial ones, which dumps leave out.
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
			AND c.oid IS DISTINCT FROM 'evstream.members_before'::regclass
			AND NOT EXISTS (SELECT FROM evstream.members_before b WHERE b.classid = d.classid AND b.objid = d.objid)
	LOOP
		IF item.is_other THEN
			EXECUTE format('ALTER %s OWNER TO %I', item.object, item.owner);
		END IF;
		EXECUTE format('REVOKE ALL ON %s FROM PUBLIC', item.object);
	END LOOP;
END
$$;

-- A privilege that was granted opens what 1.1 adds to it, too.
SELECT @extschema@.evstream_grant(b.role::regrole, b.privilege) FROM evstream.privileges_before b
	WHERE NOT evstream.holds_privilege(b.role::regrole, b.privilege)
	ORDER BY b.role, b.privilege;
DROP TABLE evstream.privileges_before, evstream.members_before;
