/* evstream--1.0.sql: the objects of the extension */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION evstream" to load this file. \quit

SET LOCAL search_path = pg_catalog, pg_temp;

-- ---------------------------------------------------------------------------
-- Where it is installed
-- ---------------------------------------------------------------------------

DO $$
DECLARE
	owner_oid oid;
BEGIN
	IF current_setting('server_encoding') <> 'UTF8' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'feature_not_supported',
			MESSAGE = 'evstream needs a database with encoding UTF8',
			DETAIL = pg_catalog.format('The encoding of this database is %s.', current_setting('server_encoding')),
			HINT = 'Create a database with ENCODING ''UTF8'' TEMPLATE template0.';
	END IF;

	-- A schema made by somebody else could hold objects that lie in wait.
	SELECT n.nspowner INTO owner_oid FROM pg_catalog.pg_namespace n WHERE n.nspname = 'evstream';
	IF NOT FOUND THEN
		CREATE SCHEMA evstream;
	ELSIF '@extschema@' <> 'evstream' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'duplicate_schema',
			MESSAGE = 'schema "evstream" already exists',
			HINT = 'The extension keeps its tables in a schema of that name: drop or rename it, or install with CREATE EXTENSION evstream SCHEMA evstream.';
	ELSIF owner_oid <> (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = current_user) THEN
		RAISE EXCEPTION USING
			ERRCODE = 'insufficient_privilege',
			MESSAGE = 'schema "evstream" belongs to another role',
			HINT = 'Drop it, or make the role that installs the extension its owner.';
	END IF;
END
$$;

REVOKE ALL ON SCHEMA evstream FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Who this database is, and its state
-- ---------------------------------------------------------------------------

-- One row. origin is the mark of the outbox in relayed records; a new one is
-- made when the database finds itself on another system.
CREATE TABLE evstream.identity (
	singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
	mark uuid NOT NULL,
	origin uuid NOT NULL,
	-- whom the group and the prefix belong to; evstream_take_over() sets it
	system_identifier bigint NOT NULL,
	database_oid oid NOT NULL,
	-- whose transaction ids are in the outbox and its ticks, and the tick
	-- below which they mean nothing
	outbox_system bigint NOT NULL,
	outbox_database oid NOT NULL,
	outbox_base bigint NOT NULL DEFAULT 0,
	-- milliseconds at the last take-over; of two owners the later one counts
	claim bigint NOT NULL DEFAULT 0,
	claimed_at timestamptz
);
COMMENT ON TABLE evstream.identity IS 'Which database this is: its mark on the Kafka group and the Redis prefix';

-- One row.
CREATE TABLE evstream.state (
	singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
	paused boolean NOT NULL DEFAULT false,
	paused_at timestamptz,
	-- the zone whose days are in the stats, as the workers took it at their start
	time_zone text NOT NULL DEFAULT 'UTC',
	-- the zone has changed, and not all stats were rebuilt since
	rebuild_needed boolean NOT NULL DEFAULT false,
	rebuilt datemultirange NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE evstream.state IS 'Paused or not, and the zone of the days in the stats';

-- Not dumped: a row says that this database was made by a restore, and has
-- not been resumed since.
CREATE TABLE evstream.restored (
	singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
	restored_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE evstream.restored IS 'A row: restored from a dump and not yet resumed';

-- ---------------------------------------------------------------------------
-- Outbox
-- ---------------------------------------------------------------------------

CREATE SEQUENCE evstream.outbox_id_seq;

CREATE TABLE evstream.outbox_0 (
	id bigint NOT NULL,
	xid xid8 NOT NULL,
	event_id uuid NOT NULL,
	user_id text COLLATE "C" NOT NULL,
	tracked_at timestamptz NOT NULL,
	traceparent text COLLATE "C",
	value text COLLATE "C" NOT NULL
);
CREATE TABLE evstream.outbox_1 (LIKE evstream.outbox_0);
CREATE TABLE evstream.outbox_2 (LIKE evstream.outbox_0);
CREATE INDEX outbox_0_xid_id_idx ON evstream.outbox_0 (xid, id);
CREATE INDEX outbox_1_xid_id_idx ON evstream.outbox_1 (xid, id);
CREATE INDEX outbox_2_xid_id_idx ON evstream.outbox_2 (xid, id);
COMMENT ON TABLE evstream.outbox_0 IS 'Tracked events, one of three tables in rotation';
COMMENT ON TABLE evstream.outbox_1 IS 'Tracked events, one of three tables in rotation';
COMMENT ON TABLE evstream.outbox_2 IS 'Tracked events, one of three tables in rotation';

-- One row: the table that is written to.
CREATE TABLE evstream.outbox_current (
	singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
	current smallint NOT NULL CHECK (current BETWEEN 0 AND 2),
	rotated_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE evstream.outbox_current IS 'Which outbox table is written to';

CREATE TABLE evstream.ticks (
	tick bigint PRIMARY KEY,
	snapshot pg_snapshot NOT NULL,
	made_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE evstream.ticks IS 'Snapshots between which the outbox is read';

-- The relay's position: the row of the highest seq. Rows are only added and
-- removed, as one updated row would become slow under an old snapshot.
CREATE TABLE evstream.relay_log (
	seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	tick bigint NOT NULL,
	xid xid8 NOT NULL,
	id bigint NOT NULL,
	log_id int NOT NULL,
	next_offsets bigint[] NOT NULL,
	at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE evstream.relay_log IS 'What the relay has delivered, and to which offsets';

-- Stretches of the outbox that the embedded log has read (from, to].
CREATE TABLE evstream.local_ranges (
	range_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	origin uuid NOT NULL,
	from_tick bigint NOT NULL,
	from_xid xid8 NOT NULL,
	from_id bigint NOT NULL,
	-- null: still being read
	to_tick bigint,
	to_xid xid8,
	to_id bigint
);
COMMENT ON TABLE evstream.local_ranges IS 'Stretches of the outbox that were read without Kafka';

-- ---------------------------------------------------------------------------
-- Logs, positions, batches
-- ---------------------------------------------------------------------------

-- 1 is the embedded log, 2 the log of retried dead letters; a topic gets a new
-- number each time it is made again.
CREATE TABLE evstream.logs (
	log_id int PRIMARY KEY,
	kind text COLLATE "C" NOT NULL CHECK (kind IN ('embedded', 'retry', 'kafka')),
	cluster_id text COLLATE "C",
	topic text COLLATE "C",
	incarnation int NOT NULL DEFAULT 1,
	-- how many partitions it had when it was first consumed
	first_partitions int,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	UNIQUE (cluster_id, topic, incarnation)
);
COMMENT ON TABLE evstream.logs IS 'Incarnations of topics, and the local logs';

CREATE TABLE evstream.partitions (
	log_id int NOT NULL,
	log_partition int NOT NULL,
	generation int NOT NULL,
	start_offset bigint NOT NULL,
	forced boolean NOT NULL DEFAULT false,
	seek_id bigint NOT NULL DEFAULT 0,
	-- ranges of batches that are no longer in batch_log
	consumed int8multirange NOT NULL DEFAULT '{}',
	PRIMARY KEY (log_id, log_partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE evstream.partitions IS 'Where each partition began, and what of it was consumed';

-- The position of a partition is to_offset of the last row of its generation.
CREATE TABLE evstream.batch_log (
	log_id int NOT NULL,
	log_partition int NOT NULL,
	generation int NOT NULL,
	from_offset bigint NOT NULL,
	to_offset bigint NOT NULL CHECK (to_offset > from_offset),
	-- the last record: to know the topic again
	last_offset bigint NOT NULL,
	last_timestamp bigint,
	last_crc bigint,
	last_received_at timestamptz,
	snapshot pg_snapshot NOT NULL DEFAULT pg_catalog.pg_current_snapshot(),
	-- embedded log: the position in the outbox behind the batch
	tick bigint,
	xid xid8,
	id bigint,
	PRIMARY KEY (log_id, log_partition, generation, from_offset)
);
COMMENT ON TABLE evstream.batch_log IS 'Batches: position and fence of each partition';

CREATE TABLE evstream.seeks (
	seek_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	topic text COLLATE "C",
	log_partition int,
	to_time timestamptz,
	log_offset bigint,
	force boolean NOT NULL,
	requested_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	-- when the consumers had looked at all topics after it: it is not for later ones
	settled_at timestamptz,
	CHECK ((to_time IS NULL) <> (log_offset IS NULL))
);
COMMENT ON TABLE evstream.seeks IS 'Moves that were asked for by evstream_seek()';

-- ---------------------------------------------------------------------------
-- Ids within the dedup window
-- ---------------------------------------------------------------------------

CREATE TABLE evstream.ids (
	segment_id int NOT NULL,
	event_id uuid NOT NULL
) PARTITION BY LIST (segment_id);
COMMENT ON TABLE evstream.ids IS 'Ids of events within the dedup window, in segments';

CREATE TABLE evstream.id_segments (
	segment_id int PRIMARY KEY,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	-- null: the one that is written to
	closed_at timestamptz,
	-- UTC day of the last batch that may have written to it
	last_day date
);
COMMENT ON TABLE evstream.id_segments IS 'Segments of evstream.ids';

CREATE TABLE evstream.received_days (
	day date PRIMARY KEY
);
COMMENT ON TABLE evstream.received_days IS 'UTC days on which events were received';

-- ---------------------------------------------------------------------------
-- Stored events and stats
--
-- Partitioned tables have no indexes of their own, only their leaves have: an
-- index of the parent would make one on the leaf when pg_dump's output attaches
-- it, and the dumped one would then fail. So ON CONFLICT is for leaves.
-- ---------------------------------------------------------------------------

CREATE TABLE evstream.events (
	event_id uuid NOT NULL,
	user_id text COLLATE "C" NOT NULL,
	event_type text COLLATE "C" NOT NULL,
	occurred_at timestamptz NOT NULL,
	received_at timestamptz NOT NULL,
	item_id text COLLATE "C",
	amount numeric,
	user_tier text COLLATE "C",
	properties jsonb NOT NULL,
	log_id int NOT NULL,
	log_partition int NOT NULL,
	log_offset bigint NOT NULL,
	traceparent text COLLATE "C"
) PARTITION BY RANGE (received_at);
COMMENT ON TABLE evstream.events IS 'Stored events, partitioned by the UTC day they were received';

CREATE TABLE evstream.daily_counts (
	user_id text COLLATE "C" NOT NULL,
	day date NOT NULL,
	event_type text COLLATE "C" NOT NULL,
	event_count bigint NOT NULL,
	amount_total numeric,
	first_event_at timestamptz NOT NULL,
	last_event_at timestamptz NOT NULL,
	updated_at timestamptz NOT NULL
) PARTITION BY RANGE (day);
CREATE TABLE evstream.daily_counts_default PARTITION OF evstream.daily_counts (
	PRIMARY KEY (user_id, day, event_type)
) DEFAULT WITH (fillfactor = 80);
COMMENT ON TABLE evstream.daily_counts IS 'Events by user, day and type; days in evstream.time_zone';

CREATE TABLE evstream.daily_items (
	user_id text COLLATE "C" NOT NULL,
	item_id text COLLATE "C" NOT NULL,
	day date NOT NULL,
	view_count bigint NOT NULL,
	click_count bigint NOT NULL,
	purchase_count bigint NOT NULL,
	event_count bigint NOT NULL,
	updated_at timestamptz NOT NULL
) PARTITION BY RANGE (day);
CREATE TABLE evstream.daily_items_default PARTITION OF evstream.daily_items (
	PRIMARY KEY (user_id, item_id, day)
) DEFAULT WITH (fillfactor = 80);
COMMENT ON TABLE evstream.daily_items IS 'Events by user, item and day';

-- By writer, so that consumers do not wait for each other on the few rows.
CREATE TABLE evstream.daily_totals (
	day date NOT NULL,
	event_type text COLLATE "C" NOT NULL,
	writer smallint NOT NULL,
	event_count bigint NOT NULL,
	user_count bigint NOT NULL,
	amount_total numeric,
	updated_at timestamptz NOT NULL,
	PRIMARY KEY (day, event_type, writer)
) WITH (fillfactor = 50);
COMMENT ON TABLE evstream.daily_totals IS 'Events and different users by day and type, by writer';

-- Days of events that were counted and are not, or no longer, stored.
CREATE TABLE evstream.unstored_days (
	day date NOT NULL,
	time_zone text COLLATE "C" NOT NULL,
	PRIMARY KEY (day, time_zone)
);
COMMENT ON TABLE evstream.unstored_days IS 'Days whose stats cannot be rebuilt from stored events';

-- ---------------------------------------------------------------------------
-- Dead letters
-- ---------------------------------------------------------------------------

CREATE TABLE evstream.dead_letters (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	reason text COLLATE "C" NOT NULL,
	detail text,
	log_id int,
	log_partition int,
	log_offset bigint,
	record_key bytea,
	record_value bytea,
	record_timestamp timestamptz,
	-- array of [name, value in base64 or null]
	record_headers jsonb,
	received_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	attempts int NOT NULL DEFAULT 1
);
CREATE INDEX dead_letters_received_at_idx ON evstream.dead_letters (received_at);
COMMENT ON TABLE evstream.dead_letters IS 'Records that are no good event, with the reason';

-- Dead letters on their way through the pipeline again; the consumer removes
-- them in the transaction that counts them.
CREATE TABLE evstream.retries (
	id bigint PRIMARY KEY,
	log_id int,
	log_partition int,
	log_offset bigint,
	record_key bytea,
	record_value bytea NOT NULL,
	record_timestamp timestamptz NOT NULL,
	record_headers jsonb,
	attempts int NOT NULL
);
COMMENT ON TABLE evstream.retries IS 'Dead letters on their way through the pipeline again';

-- ---------------------------------------------------------------------------
-- Subscribers' filters, and how far the notifier has sent
-- ---------------------------------------------------------------------------

-- Versions: a change ends one and makes another of the same filter_id, as a
-- batch is matched with those that its snapshot sees.
CREATE TABLE evstream.filters (
	version_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	filter_id bigint NOT NULL,
	subscriber_id text COLLATE "C" NOT NULL,
	event_types text[] COLLATE "C",
	user_tiers text[] COLLATE "C",
	min_amount numeric,
	user_ids text[] COLLATE "C",
	properties jsonb,
	-- a hash of the condition: equal ones of a subscriber are one filter
	condition_key bigint NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	made_xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
	-- null: it holds
	ended_xid xid8
);
CREATE SEQUENCE evstream.filter_id_seq;
CREATE INDEX filters_made_xid_idx ON evstream.filters (made_xid);
CREATE INDEX filters_ended_xid_idx ON evstream.filters (ended_xid) WHERE ended_xid IS NOT NULL;
CREATE UNIQUE INDEX filters_filter_id_idx ON evstream.filters (filter_id) WHERE ended_xid IS NULL;
CREATE UNIQUE INDEX filters_subscriber_id_idx ON evstream.filters (subscriber_id, condition_key) WHERE ended_xid IS NULL;
COMMENT ON TABLE evstream.filters IS 'Versions of the subscribers'' filters';

-- Subscribers whose last filter has gone: their streams expire.
CREATE TABLE evstream.former_subscribers (
	subscriber_id text COLLATE "C" PRIMARY KEY,
	ended_xid xid8 NOT NULL,
	ended_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	-- when the notifier let the stream expire; null: not yet
	expires_at timestamptz
);
COMMENT ON TABLE evstream.former_subscribers IS 'Subscribers without filters, whose streams expire';

-- A mirror of the cursors in Redis, a bit behind them.
CREATE TABLE evstream.notifier_cursors (
	log_id int NOT NULL,
	log_partition int NOT NULL,
	-- of the last event that was sent; null: there was none
	received_at timestamptz,
	event_id uuid,
	-- batches up to here have been sent, those without events among them
	passed_at timestamptz NOT NULL,
	PRIMARY KEY (log_id, log_partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE evstream.notifier_cursors IS 'How far each partition was sent to Redis';

-- One row.
CREATE TABLE evstream.notifier_state (
	singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
	-- milliseconds; epochs of streams are above it where they begin anew
	epoch bigint NOT NULL DEFAULT 0,
	-- whose transaction ids are in evstream.filters
	filters_system bigint NOT NULL,
	filters_database oid NOT NULL
);
COMMENT ON TABLE evstream.notifier_state IS 'Epochs of streams, and whose transaction ids the filters carry';

-- ---------------------------------------------------------------------------
-- First rows; pg_dump's output brings its own
-- ---------------------------------------------------------------------------

DO $$
BEGIN
	IF current_setting('row_security') = 'off' THEN
		INSERT INTO evstream.restored DEFAULT VALUES;
	ELSE
		INSERT INTO evstream.identity (mark, origin, system_identifier, database_oid, outbox_system, outbox_database)
			SELECT pg_catalog.gen_random_uuid(), pg_catalog.gen_random_uuid(), c.system_identifier, d.oid, c.system_identifier, d.oid
			FROM pg_catalog.pg_control_system() c, pg_catalog.pg_database d
			WHERE d.datname = pg_catalog.current_database();
		INSERT INTO evstream.state DEFAULT VALUES;
		INSERT INTO evstream.notifier_state (filters_system, filters_database)
			SELECT i.system_identifier, i.database_oid FROM evstream.identity i;
		INSERT INTO evstream.outbox_current (current) VALUES (0);
		INSERT INTO evstream.logs (log_id, kind) VALUES (1, 'embedded'), (2, 'retry');
		INSERT INTO evstream.partitions (log_id, log_partition, generation, start_offset)
			VALUES (1, 0, 0, 0), (2, 0, 0, 0);
	END IF;
END
$$;

-- One command each, as all of them update the same row.
DO $$
DECLARE
	rel regclass;
BEGIN
	FOR rel IN
		SELECT c.oid FROM pg_catalog.pg_class c
		WHERE c.relnamespace = 'evstream'::regnamespace
			AND c.relkind IN ('r', 'S')
			AND c.relname <> 'restored'
		ORDER BY c.oid
	LOOP
		PERFORM pg_catalog.pg_extension_config_dump(rel, '');
	END LOOP;
END
$$;

-- ---------------------------------------------------------------------------
-- Tracking
-- ---------------------------------------------------------------------------

CREATE FUNCTION @extschema@.evstream_track(user_id text, event_type text, properties jsonb DEFAULT '{}', event_id uuid DEFAULT NULL, occurred_at timestamptz DEFAULT NULL)
RETURNS uuid
LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'evstream_track';
COMMENT ON FUNCTION @extschema@.evstream_track(text, text, jsonb, uuid, timestamptz) IS 'Track an event of a user as part of this transaction; returns its id';

CREATE FUNCTION @extschema@.evstream_track(user_id bigint, event_type text, properties jsonb DEFAULT '{}', event_id uuid DEFAULT NULL, occurred_at timestamptz DEFAULT NULL)
RETURNS uuid
LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'evstream_track_bigint';
COMMENT ON FUNCTION @extschema@.evstream_track(bigint, text, jsonb, uuid, timestamptz) IS 'Track an event of a user as part of this transaction; returns its id';

CREATE FUNCTION @extschema@.evstream_track_batch(events jsonb, on_error text DEFAULT 'raise')
RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'evstream_track_batch';
COMMENT ON FUNCTION @extschema@.evstream_track_batch(jsonb, text) IS 'Track an array of events; on_error is raise or dead_letter; returns how many were tracked';

CREATE FUNCTION @extschema@.evstream_event_id(text)
RETURNS uuid
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'evstream_event_id';
COMMENT ON FUNCTION @extschema@.evstream_event_id(text) IS 'The id that a text key becomes: a UUID itself, other text its UUIDv5';

CREATE FUNCTION @extschema@.evstream_wait(timeout interval DEFAULT '10 s', fan_out boolean DEFAULT true)
RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'evstream_wait';
COMMENT ON FUNCTION @extschema@.evstream_wait(interval, boolean) IS 'Wait until every event committed before the call is counted; false at the timeout';

CREATE FUNCTION evstream.check_record(record_value bytea, record_timestamp timestamptz, record_headers jsonb, OUT reason text, OUT detail text)
RETURNS record
LANGUAGE c STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'evstream_check_record';
COMMENT ON FUNCTION evstream.check_record(bytea, timestamptz, jsonb) IS 'Why a record is no good event; null if it is one';

CREATE FUNCTION evstream.day_of(at timestamptz, zone text) RETURNS date
LANGUAGE c STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'evstream_day_of';
COMMENT ON FUNCTION evstream.day_of(timestamptz, text) IS 'The day of an event in a time zone, as the consumers count it';

CREATE FUNCTION evstream.outbox_oldest_waiting()
RETURNS interval
LANGUAGE c STABLE PARALLEL RESTRICTED SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'evstream_outbox_oldest_waiting';
COMMENT ON FUNCTION evstream.outbox_oldest_waiting() IS 'Age of the oldest tracked event that is not stored yet; null if there is none';

-- ---------------------------------------------------------------------------
-- Workers and counters in shared memory
-- ---------------------------------------------------------------------------

-- All of these speak of the current database, and give nothing where the
-- library is not in shared_preload_libraries.

CREATE FUNCTION evstream.workers(
	OUT pid int, OUT role text, OUT worker_index int, OUT state text, OUT started_at timestamptz,
	OUT events bigint, OUT batches bigint, OUT errors bigint, OUT restarts bigint,
	OUT last_error text, OUT last_error_at timestamptz)
	RETURNS SETOF record
	LANGUAGE c STRICT VOLATILE PARALLEL RESTRICTED
	SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'evstream_status_workers';
COMMENT ON FUNCTION evstream.workers() IS 'Workers of this database; pid is null while one is to be started again';

CREATE FUNCTION evstream.lag(
	OUT topic text, OUT log_partition int, OUT "position" bigint, OUT end_offset bigint,
	OUT lag bigint, OUT lag_seconds double precision, OUT owner_pid int, OUT log_id int)
	RETURNS SETOF record
	LANGUAGE c STRICT VOLATILE PARALLEL RESTRICTED
	SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'evstream_status_lag';
COMMENT ON FUNCTION evstream.lag() IS 'Partitions that are followed, as last seen by their owners';

CREATE FUNCTION evstream.problems(
	OUT component text, OUT level text, OUT code text, OUT message text, OUT hint text,
	OUT role text, OUT pid int, OUT since timestamptz)
	RETURNS SETOF record
	LANGUAGE c STRICT VOLATILE PARALLEL RESTRICTED
	SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'evstream_status_problems';
COMMENT ON FUNCTION evstream.problems() IS 'Standing problems that workers have told of';

CREATE FUNCTION evstream.supervision(
	OUT preloaded boolean, OUT launcher_pid int, OUT known boolean, OUT enabled boolean,
	OUT wanted_workers int, OUT running_workers int, OUT no_free_slots boolean,
	OUT held_by_pid int, OUT restart_in_seconds double precision)
	RETURNS record
	LANGUAGE c STRICT VOLATILE PARALLEL RESTRICTED
	SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'evstream_status_supervision';
COMMENT ON FUNCTION evstream.supervision() IS 'What the launcher knows of this database';

CREATE FUNCTION evstream.restart_workers() RETURNS void
	LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'evstream_restart_workers';
COMMENT ON FUNCTION evstream.restart_workers() IS 'At commit, the workers of this database start again';

CREATE FUNCTION evstream.wake_workers(role text DEFAULT NULL) RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'evstream_wake_workers';
COMMENT ON FUNCTION evstream.wake_workers(text) IS 'At commit, the workers of a role, or all of them, look for work';

REVOKE ALL ON FUNCTION evstream.workers(), evstream.lag(), evstream.problems(),
	evstream.supervision(), evstream.restart_workers(), evstream.wake_workers(text) FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Views
-- ---------------------------------------------------------------------------

CREATE VIEW @extschema@.evstream_daily_summary AS
	SELECT c.user_id,
		c.day,
		COALESCE(sum(c.event_count) FILTER (WHERE c.event_type = 'view'), 0)::bigint AS view_count,
		COALESCE(sum(c.event_count) FILTER (WHERE c.event_type = 'click'), 0)::bigint AS click_count,
		COALESCE(sum(c.event_count) FILTER (WHERE c.event_type = 'purchase'), 0)::bigint AS purchase_count,
		COALESCE(sum(c.event_count) FILTER (WHERE c.event_type = 'login'), 0)::bigint AS login_count,
		sum(c.event_count)::bigint AS event_count,
		sum(c.amount_total) FILTER (WHERE c.event_type = 'purchase') AS purchase_amount,
		min(c.first_event_at) AS first_event_at,
		max(c.last_event_at) AS last_event_at,
		max(c.updated_at) AS updated_at
	FROM evstream.daily_counts c
	GROUP BY c.user_id, c.day;
COMMENT ON VIEW @extschema@.evstream_daily_summary IS 'Events of each user and day: views, clicks, purchases, logins, and all types together';
COMMENT ON COLUMN @extschema@.evstream_daily_summary.day IS 'Day of the events in evstream.time_zone';
COMMENT ON COLUMN @extschema@.evstream_daily_summary.event_count IS 'Events of every type';
COMMENT ON COLUMN @extschema@.evstream_daily_summary.purchase_amount IS 'Sum of the amounts of purchases; null where none had an amount';

CREATE VIEW @extschema@.evstream_daily_counts AS
	SELECT c.user_id, c.day, c.event_type, c.event_count, c.amount_total,
		c.first_event_at, c.last_event_at, c.updated_at
	FROM evstream.daily_counts c;
COMMENT ON VIEW @extschema@.evstream_daily_counts IS 'Events of each user, day and type';
COMMENT ON COLUMN @extschema@.evstream_daily_counts.day IS 'Day of the events in evstream.time_zone';
COMMENT ON COLUMN @extschema@.evstream_daily_counts.amount_total IS 'Sum of the amounts; null where no event had one';

CREATE VIEW @extschema@.evstream_daily_item_summary AS
	SELECT i.user_id, i.item_id, i.day, i.view_count, i.click_count, i.purchase_count,
		i.event_count, i.updated_at
	FROM evstream.daily_items i;
COMMENT ON VIEW @extschema@.evstream_daily_item_summary IS 'Events of each user, item and day';
COMMENT ON COLUMN @extschema@.evstream_daily_item_summary.day IS 'Day of the events in evstream.time_zone';
COMMENT ON COLUMN @extschema@.evstream_daily_item_summary.event_count IS 'Events of every type';

CREATE VIEW @extschema@.evstream_daily_totals AS
	SELECT t.day,
		t.event_type,
		sum(t.event_count)::bigint AS event_count,
		sum(t.user_count)::bigint AS user_count,
		sum(t.amount_total) AS amount_total,
		max(t.updated_at) AS updated_at
	FROM evstream.daily_totals t
	GROUP BY t.day, t.event_type;
COMMENT ON VIEW @extschema@.evstream_daily_totals IS 'Events and different users of each day and type';
COMMENT ON COLUMN @extschema@.evstream_daily_totals.day IS 'Day of the events in evstream.time_zone';
COMMENT ON COLUMN @extschema@.evstream_daily_totals.user_count IS 'Different users with an event of this type on this day';

CREATE VIEW @extschema@.evstream_events AS
	SELECT e.event_id, e.user_id, e.event_type, e.occurred_at, e.received_at,
		e.item_id, e.amount, e.user_tier, e.properties,
		l.topic, e.log_partition, e.log_offset, e.traceparent
	FROM evstream.events e
		LEFT JOIN evstream.logs l ON l.log_id = e.log_id;
COMMENT ON VIEW @extschema@.evstream_events IS 'Stored events, as far back as evstream.retention';
COMMENT ON COLUMN @extschema@.evstream_events.topic IS 'Kafka topic it was read from; null for one that did not come through Kafka';

CREATE VIEW @extschema@.evstream_dead_letters AS
	SELECT d.id, d.reason, d.detail, l.topic, d.log_partition, d.log_offset,
		d.record_key, d.record_value, d.record_timestamp, d.record_headers,
		d.received_at, d.attempts
	FROM evstream.dead_letters d
		LEFT JOIN evstream.logs l ON l.log_id = d.log_id;
COMMENT ON VIEW @extschema@.evstream_dead_letters IS 'Records that are no good event, with the reason; record_value can be updated before evstream_dead_letter_retry()';
COMMENT ON COLUMN @extschema@.evstream_dead_letters.topic IS 'Kafka topic it was read from; null for one that did not come through Kafka';
COMMENT ON COLUMN @extschema@.evstream_dead_letters.record_headers IS 'Array of [name, value in base64 or null]';

CREATE FUNCTION evstream.edit_dead_letter() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF pg_catalog.to_jsonb(NEW) - 'record_value' <> pg_catalog.to_jsonb(OLD) - 'record_value' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = 'only column "record_value" of view "evstream_dead_letters" can be updated';
	END IF;
	UPDATE evstream.dead_letters d SET record_value = NEW.record_value WHERE d.id = OLD.id;
	IF NOT FOUND THEN
		RETURN NULL;
	END IF;
	RETURN NEW;
END
$$;
COMMENT ON FUNCTION evstream.edit_dead_letter() IS 'Lets a dead letter''s value be edited through the view';

CREATE TRIGGER edit INSTEAD OF UPDATE ON @extschema@.evstream_dead_letters
	FOR EACH ROW EXECUTE FUNCTION evstream.edit_dead_letter();

CREATE VIEW @extschema@.evstream_workers AS
	SELECT w.pid, w.role, w.state, w.started_at, w.events, w.batches, w.errors,
		w.restarts, w.last_error, w.last_error_at
	FROM evstream.workers() w;
COMMENT ON VIEW @extschema@.evstream_workers IS 'Workers of this database, with their counters since the server''s start';

CREATE VIEW @extschema@.evstream_lag AS
	SELECT l.topic, l.log_partition, l.position, l.end_offset, l.lag, l.lag_seconds, l.owner_pid
	FROM evstream.lag() l;
COMMENT ON VIEW @extschema@.evstream_lag IS 'How far consumption is behind, by partition, as the consumers last saw it';

-- ---------------------------------------------------------------------------
-- Subscribers
-- ---------------------------------------------------------------------------

CREATE VIEW @extschema@.evstream_filters AS
	SELECT f.filter_id, f.subscriber_id, f.event_types, f.user_tiers, f.min_amount, f.user_ids,
		f.properties, f.created_at, f.updated_at
	FROM evstream.filters f
	WHERE f.ended_xid IS NULL;
COMMENT ON VIEW @extschema@.evstream_filters IS 'Filters that hold now; null in a column: any';

CREATE FUNCTION evstream.lock_subscriber(subscriber_id text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'evstream_lock_subscriber';
COMMENT ON FUNCTION evstream.lock_subscriber(text) IS 'Checks the id, and keeps others from changing the filters of this subscriber until the end of the transaction';

CREATE FUNCTION evstream.filters_changed() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'evstream_filters_changed';
COMMENT ON FUNCTION evstream.filters_changed() IS 'To be called in each transaction that changes filters, so that matchers hear of it';

CREATE FUNCTION evstream.filter_condition(INOUT event_types text[], INOUT user_tiers text[], INOUT min_amount numeric, INOUT user_ids text[], INOUT properties jsonb, OUT condition_key bigint)
RETURNS record
LANGUAGE c IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'evstream_filter_condition';
COMMENT ON FUNCTION evstream.filter_condition(text[], text[], numeric, text[], jsonb) IS 'Checks a condition and gives it as it is kept: lists in order and without repeats';

CREATE FUNCTION evstream.match(event_type text, user_id text, user_tier text, amount numeric, properties jsonb, snapshot pg_snapshot DEFAULT NULL)
RETURNS SETOF text
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'evstream_match';
COMMENT ON FUNCTION evstream.match(text, text, text, numeric, jsonb, pg_snapshot) IS 'Subscribers with a filter that matches such an event now, or did in that snapshot, by a matcher like the notifier''s';

-- Within evstream.lock_subscriber(). A snapshot that is older than the lock may
-- show filters that have gone: then the row is written in any case, and whoever
-- reads it looks whether there are filters.
CREATE FUNCTION evstream.note_former_subscriber(subscriber_id text) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
	INSERT INTO evstream.former_subscribers (subscriber_id, ended_xid)
		SELECT $1, pg_current_xact_id()
		WHERE NOT EXISTS (SELECT FROM evstream.filters f WHERE f.subscriber_id = $1 AND f.ended_xid IS NULL)
			OR current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted')
		ON CONFLICT ON CONSTRAINT former_subscribers_pkey
			DO UPDATE SET ended_xid = excluded.ended_xid, ended_at = excluded.ended_at, expires_at = NULL
$$;
COMMENT ON FUNCTION evstream.note_former_subscriber(text) IS 'Writes the row that lets a stream expire, where a subscriber has no filter any more';

-- Locks the subscriber that has this filter, if there is one.
CREATE FUNCTION evstream.lock_filter(filter_id bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF $1 IS NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'null_value_not_allowed',
			MESSAGE = 'filter_id must not be null';
	END IF;
	PERFORM evstream.lock_subscriber(f.subscriber_id) FROM evstream.filters f
		WHERE f.filter_id = $1 AND f.ended_xid IS NULL;
END
$$;
COMMENT ON FUNCTION evstream.lock_filter(bigint) IS 'Keeps others from changing the filters of the subscriber that this one belongs to';

CREATE FUNCTION @extschema@.evstream_subscribe(subscriber_id text, event_types text[] DEFAULT NULL, user_tiers text[] DEFAULT NULL, min_amount numeric DEFAULT NULL, user_ids text[] DEFAULT NULL, properties jsonb DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	condition record;
	result bigint;
BEGIN
	PERFORM evstream.lock_subscriber($1);
	SELECT * INTO condition FROM evstream.filter_condition($2, $3, $4, $5, $6);
	SELECT f.filter_id INTO result FROM evstream.filters f
		WHERE f.subscriber_id = $1 AND f.condition_key = condition.condition_key AND f.ended_xid IS NULL;
	IF FOUND THEN
		RETURN result;
	END IF;

	-- a conflict with one that an older snapshot does not show is an error of serialization
	INSERT INTO evstream.filters AS f (filter_id, subscriber_id, event_types, user_tiers, min_amount, user_ids, properties, condition_key)
		VALUES (nextval('evstream.filter_id_seq'), $1, condition.event_types, condition.user_tiers, condition.min_amount,
			condition.user_ids, condition.properties, condition.condition_key)
		ON CONFLICT DO NOTHING
		RETURNING f.filter_id INTO STRICT result;
	DELETE FROM evstream.former_subscribers s WHERE s.subscriber_id = $1;
	PERFORM evstream.filters_changed();
	RETURN result;
END
$$;
COMMENT ON FUNCTION @extschema@.evstream_subscribe(text, text[], text[], numeric, text[], jsonb) IS 'Adds a filter to a subscriber; null: any; returns its id, or that of an equal one';

CREATE FUNCTION @extschema@.evstream_filter_update(filter_id bigint, event_types text[] DEFAULT NULL, user_tiers text[] DEFAULT NULL, min_amount numeric DEFAULT NULL, user_ids text[] DEFAULT NULL, properties jsonb DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	condition record;
	old record;
	equal bigint;
BEGIN
	SELECT * INTO condition FROM evstream.filter_condition($2, $3, $4, $5, $6);
	PERFORM evstream.lock_filter($1);
	SELECT f.version_id, f.subscriber_id, f.condition_key, f.created_at INTO old FROM evstream.filters f
		WHERE f.filter_id = $1 AND f.ended_xid IS NULL;
	IF NOT FOUND THEN
		RETURN false;
	END IF;
	IF old.condition_key = condition.condition_key THEN
		UPDATE evstream.filters f SET updated_at = now() WHERE f.version_id = old.version_id;
		RETURN true;
	END IF;
	SELECT f.filter_id INTO equal FROM evstream.filters f
		WHERE f.subscriber_id = old.subscriber_id AND f.condition_key = condition.condition_key AND f.ended_xid IS NULL;
	IF FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = 'unique_violation',
			MESSAGE = format('subscriber "%s" has an equal filter already', old.subscriber_id),
			DETAIL = format('Filter %s has the same condition.', equal),
			HINT = 'Remove one of the two with evstream_filter_remove().';
	END IF;

	UPDATE evstream.filters f SET ended_xid = pg_current_xact_id() WHERE f.version_id = old.version_id;
	INSERT INTO evstream.filters (filter_id, subscriber_id, event_types, user_tiers, min_amount, user_ids, properties, condition_key, created_at)
		VALUES ($1, old.subscriber_id, condition.event_types, condition.user_tiers, condition.min_amount,
			condition.user_ids, condition.properties, condition.condition_key, old.created_at);
	PERFORM evstream.filters_changed();
	RETURN true;
END
$$;
COMMENT ON FUNCTION @extschema@.evstream_filter_update(bigint, text[], text[], numeric, text[], jsonb) IS 'Replaces a filter; false: there is none of that id';

CREATE FUNCTION @extschema@.evstream_filter_remove(filter_id bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	subscriber text;
BEGIN
	PERFORM evstream.lock_filter($1);
	UPDATE evstream.filters f SET ended_xid = pg_current_xact_id()
		WHERE f.filter_id = $1 AND f.ended_xid IS NULL
		RETURNING f.subscriber_id INTO subscriber;
	IF NOT FOUND THEN
		RETURN false;
	END IF;
	PERFORM evstream.note_former_subscriber(subscriber);
	PERFORM evstream.filters_changed();
	RETURN true;
END
$$;
COMMENT ON FUNCTION @extschema@.evstream_filter_remove(bigint) IS 'Removes a filter; false: there is none of that id';

CREATE FUNCTION @extschema@.evstream_unsubscribe(subscriber_id text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	removed bigint;
BEGIN
	PERFORM evstream.lock_subscriber($1);
	UPDATE evstream.filters f SET ended_xid = pg_current_xact_id()
		WHERE f.subscriber_id = $1 AND f.ended_xid IS NULL;
	GET DIAGNOSTICS removed = ROW_COUNT;
	IF removed > 0 THEN
		PERFORM evstream.note_former_subscriber($1);
		PERFORM evstream.filters_changed();
	END IF;
	RETURN removed;
END
$$;
COMMENT ON FUNCTION @extschema@.evstream_unsubscribe(text) IS 'Removes all filters of a subscriber; returns how many there were';

CREATE FUNCTION @extschema@.evstream_backfill(subscriber_id text, since timestamptz, max_rows int DEFAULT 1000, after_event_id uuid DEFAULT NULL)
RETURNS TABLE (event_id uuid, user_id text, event_type text, occurred_at timestamptz, received_at timestamptz,
	item_id text, amount numeric, user_tier text, properties jsonb, topic text, log_partition int, log_offset bigint, traceparent text)
LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'evstream_backfill';
COMMENT ON FUNCTION @extschema@.evstream_backfill(text, timestamptz, int, uuid) IS 'Stored events from a time on that the filters of a subscriber match, in the order in which they were received';

-- ---------------------------------------------------------------------------
-- Operating
-- ---------------------------------------------------------------------------

-- What the install script writes, where a dump brought none of it.
CREATE FUNCTION evstream.add_first_rows() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	INSERT INTO evstream.identity (mark, origin, system_identifier, database_oid, outbox_system, outbox_database)
		SELECT gen_random_uuid(), gen_random_uuid(), c.system_identifier, d.oid, c.system_identifier, d.oid
		FROM pg_control_system() c, pg_database d
		WHERE d.datname = current_database()
		ON CONFLICT DO NOTHING;
	INSERT INTO evstream.state DEFAULT VALUES ON CONFLICT DO NOTHING;
	INSERT INTO evstream.notifier_state (filters_system, filters_database)
		SELECT i.system_identifier, i.database_oid FROM evstream.identity i
		ON CONFLICT DO NOTHING;
	INSERT INTO evstream.outbox_current (current) VALUES (0) ON CONFLICT DO NOTHING;
	INSERT INTO evstream.logs (log_id, kind) VALUES (1, 'embedded'), (2, 'retry') ON CONFLICT DO NOTHING;
	INSERT INTO evstream.partitions (log_id, log_partition, generation, start_offset)
		VALUES (1, 0, 0, 0), (2, 0, 0, 0) ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION evstream.add_first_rows() IS 'Adds the rows that are always there, where they are missing';

CREATE FUNCTION @extschema@.evstream_pause() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	UPDATE evstream.state SET paused = true, paused_at = now() WHERE NOT paused;
	PERFORM evstream.wake_workers();
END
$$;
COMMENT ON FUNCTION @extschema@.evstream_pause() IS 'Stops consumption after the batch in hand, also across restarts, until evstream_resume()';

CREATE FUNCTION @extschema@.evstream_resume() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	DELETE FROM evstream.restored;
	IF FOUND THEN
		PERFORM evstream.add_first_rows();
	END IF;
	UPDATE evstream.state SET paused = false, paused_at = NULL WHERE paused;
	PERFORM evstream.wake_workers();
END
$$;
COMMENT ON FUNCTION @extschema@.evstream_resume() IS 'Consumption goes on, after evstream_pause() or a restore';

CREATE FUNCTION @extschema@.evstream_restart() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM evstream.restart_workers();
END
$$;
COMMENT ON FUNCTION @extschema@.evstream_restart() IS 'This database''s workers start again, with the settings of ALTER DATABASE ... SET';

-- As the workers have it: a session that is older than ALTER DATABASE ... SET
-- still shows the setting of before.
CREATE FUNCTION evstream.uses_kafka() RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT COALESCE(bool_or(w.role = 'relay'), COALESCE(current_setting('evstream.kafka_brokers', true), '') <> '')
	FROM evstream.workers() w
$$;
COMMENT ON FUNCTION evstream.uses_kafka() IS 'Whether events go through Kafka, as the workers have it';

-- Raises unless offsets can be sought: with Kafka, in a topic that is followed.
CREATE FUNCTION evstream.check_seek(topic text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	-- one may seek before the first start with Kafka, too
	IF NOT evstream.uses_kafka() AND COALESCE(current_setting('evstream.kafka_brokers', true), '') = '' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = 'the embedded log has no offsets to seek',
			DETAIL = 'evstream.kafka_brokers is empty, so events are read from the outbox, each of them once.',
			HINT = 'Use evstream_rebuild() to compute stats again, or set evstream.kafka_brokers to read from Kafka.';
	END IF;
	IF check_seek.topic IS NOT NULL
		AND check_seek.topic <> COALESCE(current_setting('evstream.kafka_topic', true), '')
		AND check_seek.topic NOT IN (
			SELECT btrim(t) FROM regexp_split_to_table(
				COALESCE(current_setting('evstream.kafka_read_topics', true), ''), ',') AS t)
		AND NOT EXISTS (SELECT FROM evstream.logs l WHERE l.topic = check_seek.topic)
	THEN
		RAISE EXCEPTION USING
			ERRCODE = 'undefined_object',
			MESSAGE = format('topic "%s" is not read by this database', check_seek.topic),
			HINT = 'The topics are those of evstream.kafka_topic and evstream.kafka_read_topics.';
	END IF;
END
$$;
COMMENT ON FUNCTION evstream.check_seek(text) IS 'Raises an error where evstream_seek() makes no sense';

CREATE FUNCTION @extschema@.evstream_seek(to_time timestamptz, force boolean DEFAULT false) RETURNS void
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
	INSERT INTO evstream.seeks (to_time, force) VALUES ($1, $2);
	PERFORM evstream.wake_workers();
END
$$;
COMMENT ON FUNCTION @extschema@.evstream_seek(timestamptz, boolean) IS 'Moves the consumers, in all topics, to the first records of that time or later';

CREATE FUNCTION @extschema@.evstream_seek(partition int, log_offset bigint, topic text DEFAULT NULL, force boolean DEFAULT false) RETURNS void
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
	INSERT INTO evstream.seeks (topic, log_partition, log_offset, force)
		VALUES ($3, $1, $2, $4);
	PERFORM evstream.wake_workers();
END
$$;
COMMENT ON FUNCTION @extschema@.evstream_seek(int, bigint, text, boolean) IS 'Moves the consumer of one partition to an offset; topic null: evstream.kafka_topic';

CREATE FUNCTION @extschema@.evstream_take_over() RETURNS boolean
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
		-- of two that hold the same mark, the later claim counts
		claim = GREATEST(claim + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint),
		claimed_at = now();
	PERFORM evstream.restart_workers();
	RETURN true;
END
$$;
COMMENT ON FUNCTION @extschema@.evstream_take_over() IS 'Makes this database the owner of its Kafka group and Redis prefix; a former owner stops';

CREATE FUNCTION evstream.no_dead_letter(id bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	RAISE EXCEPTION USING
		ERRCODE = 'no_data_found',
		MESSAGE = format('dead letter %s does not exist', COALESCE(id::text, 'null')),
		HINT = 'The view evstream_dead_letters has those that wait; one may have been retried, discarded or dropped after evstream.dead_letter_retention.';
END
$$;
COMMENT ON FUNCTION evstream.no_dead_letter(bigint) IS 'Raises the error for an unknown dead letter';

CREATE FUNCTION @extschema@.evstream_dead_letter_retry(id bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	letter evstream.dead_letters;
	verdict record;
BEGIN
	SELECT d.* INTO letter FROM evstream.dead_letters d WHERE d.id = $1 FOR UPDATE;
	IF NOT FOUND THEN
		PERFORM evstream.no_dead_letter($1);
	END IF;

	letter.record_timestamp := COALESCE(letter.record_timestamp, letter.received_at);
	SELECT c.reason, c.detail INTO verdict
		FROM evstream.check_record(letter.record_value, letter.record_timestamp, letter.record_headers) c;
	IF verdict.reason IS NOT NULL THEN
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
COMMENT ON FUNCTION @extschema@.evstream_dead_letter_retry(bigint) IS 'Sends a dead letter through the pipeline again; false: it is still no good event';

CREATE FUNCTION @extschema@.evstream_dead_letter_discard(id bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	DELETE FROM evstream.dead_letters d WHERE d.id = $1;
	RETURN FOUND;
END
$$;
COMMENT ON FUNCTION @extschema@.evstream_dead_letter_discard(bigint) IS 'Drops a dead letter; false: there was none of this id';

-- The zone that the workers are to count in.  A session that is older than
-- ALTER DATABASE ... SET still shows the setting of before.
CREATE FUNCTION evstream.time_zone_setting() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT COALESCE(
		(SELECT substr(c, length('evstream.time_zone=') + 1)
			FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) c
			WHERE d.datname = current_database() AND s.setrole = 0 AND c LIKE 'evstream.time\_zone=%'),
		current_setting('evstream.time_zone', true),
		'UTC')
$$;
COMMENT ON FUNCTION evstream.time_zone_setting() IS 'The setting evstream.time_zone of this database, as it is now';

-- Raises unless the stats of these days can be computed from stored events.
CREATE FUNCTION evstream.check_rebuild(from_day date, to_day date, zone text) RETURNS void
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

	-- a day of another zone lies within two of this one
	SELECT array_agg(DISTINCT to_char(u.day, 'YYYY-MM-DD') ORDER BY to_char(u.day, 'YYYY-MM-DD')) INTO days
		FROM evstream.unstored_days u
		WHERE u.day BETWEEN from_day - (u.time_zone <> zone)::int AND to_day + (u.time_zone <> zone)::int;
	IF days IS NOT NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('%s of the days from %s to %s cannot be rebuilt', cardinality(days),
				to_char(from_day, 'YYYY-MM-DD'), to_char(to_day, 'YYYY-MM-DD')),
			DETAIL = format('Events of these days are not stored, or no longer: %s.',
				array_to_string(days[1:20], ', ') || CASE WHEN cardinality(days) > 20 THEN ', ...' ELSE '' END),
			HINT = 'Rebuild the other days. What is kept is decided by evstream.retention and evstream.store_events.';
	END IF;
END
$$;
COMMENT ON FUNCTION evstream.check_rebuild(date, date, text) IS 'Raises an error where evstream_rebuild() would lose counts';

CREATE FUNCTION @extschema@.evstream_rebuild(from_day date, to_day date) RETURNS bigint
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

	DELETE FROM evstream.daily_counts c WHERE c.day BETWEEN from_day AND to_day;
	INSERT INTO evstream.daily_counts (user_id, day, event_type, event_count, amount_total,
			first_event_at, last_event_at, updated_at)
		SELECT e.user_id, evstream.day_of(e.occurred_at, zone), e.event_type, count(*), trim_scale(sum(e.amount)),
			min(e.occurred_at), max(e.occurred_at), now()
		FROM evstream.events e
		WHERE evstream.day_of(e.occurred_at, zone) BETWEEN from_day AND to_day
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
	UPDATE evstream.state s SET rebuild_needed = false, rebuilt = '{}'
		WHERE s.rebuild_needed AND NOT EXISTS (
			SELECT FROM (SELECT DISTINCT t.day FROM evstream.daily_totals t) t
			WHERE NOT s.rebuilt @> t.day
				AND NOT EXISTS (SELECT FROM evstream.unstored_days u
					WHERE t.day BETWEEN u.day - (u.time_zone <> zone)::int AND u.day + (u.time_zone <> zone)::int));
	RETURN written;
END
$$;
COMMENT ON FUNCTION @extschema@.evstream_rebuild(date, date) IS 'Computes the stats of these days again from the stored events; gives the number of rows written';

CREATE FUNCTION evstream.dead_letter_count() RETURNS bigint
LANGUAGE C SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'evstream_dead_letter_count';
COMMENT ON FUNCTION evstream.dead_letter_count() IS 'About how many dead letters there are, without counting; null: not known';

-- What is wrong with the workers, or why they do not run.
CREATE FUNCTION evstream.health_of_workers() RETURNS TABLE (level text, why text, hint text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	seen record;
	state evstream.state;
	consumers int;
	failure text;
BEGIN
	IF pg_is_in_recovery() THEN
		RETURN QUERY VALUES ('off', 'this server is a standby: the workers run on its primary', NULL);
		RETURN;
	END IF;

	SELECT * INTO seen FROM evstream.supervision();
	SELECT count(w.pid) FILTER (WHERE w.role = 'consumer'),
			max(format('the %s failed with: %s', w.role, w.last_error)) FILTER (WHERE w.pid IS NULL AND w.last_error IS NOT NULL)
		INTO consumers, failure
		FROM evstream.workers() w;

	IF NOT seen.preloaded THEN
		RETURN QUERY VALUES ('down', 'evstream is not among shared_preload_libraries, so no worker runs; tracked events wait',
			'Add evstream to shared_preload_libraries and restart the server.');
	ELSIF seen.launcher_pid IS NULL THEN
		RETURN QUERY VALUES ('down', 'the launcher of the workers is not running; tracked events wait',
			'If this lasts, look into the server log; max_worker_processes must leave room for the launcher.');
	ELSIF seen.known AND NOT seen.enabled THEN
		RETURN QUERY VALUES ('down', 'evstream.enabled is off, so no worker runs; tracked events wait',
			'Set evstream.enabled to on and reload the configuration, or call evstream_restart() where it was set for this database.');
	ELSIF seen.held_by_pid IS NOT NULL THEN
		RETURN QUERY VALUES ('degraded', format('the process with PID %s keeps the workers from starting until its transaction ends', seen.held_by_pid),
			'It drops, alters or copies the extension or the database.');
	ELSIF seen.no_free_slots THEN
		RETURN QUERY SELECT CASE WHEN consumers = 0 THEN 'down' ELSE 'degraded' END,
			CASE WHEN seen.known THEN format('%s of %s workers run: there is no free worker process', seen.running_workers, seen.wanted_workers)
				ELSE 'no worker runs: there is no free worker process' END,
			format('Set max_worker_processes higher than %s and restart the server.', current_setting('max_worker_processes'));
	ELSIF NOT seen.known THEN
		RETURN QUERY VALUES ('degraded', 'the launcher has not looked into this database yet',
			'If this lasts, look into the server log.');
	ELSIF seen.running_workers < seen.wanted_workers THEN
		RETURN QUERY SELECT CASE WHEN consumers = 0 AND seen.restart_in_seconds IS NOT NULL THEN 'down' ELSE 'degraded' END,
			concat_ws('; ', format('%s of %s workers run', seen.running_workers, seen.wanted_workers), failure),
			'If this lasts, look at evstream_workers and into the server log.';
	END IF;

	IF EXISTS (SELECT FROM evstream.restored) THEN
		RETURN QUERY VALUES ('degraded', 'this database was restored from a dump and is paused since',
			'Look whether it is complete, then call evstream_resume().');
		RETURN;
	END IF;
	SELECT * INTO state FROM evstream.state;
	IF state.paused THEN
		RETURN QUERY SELECT 'degraded', format('consumption is paused since %s', to_char(state.paused_at, 'YYYY-MM-DD HH24:MI:SSOF')),
			'Call evstream_resume().';
	END IF;
	IF state.rebuild_needed THEN
		RETURN QUERY SELECT 'degraded', format('evstream.time_zone has changed to "%s", and days before are still those of another zone', state.time_zone),
			'Call evstream_rebuild(from_day, to_day) for the days with stats.';
	ELSIF state.time_zone <> current_setting('evstream.time_zone', true) THEN
		RETURN QUERY SELECT 'degraded', format('the workers count in time zone "%s", evstream.time_zone is "%s"',
				state.time_zone, current_setting('evstream.time_zone', true)),
			'Call evstream_restart(), then evstream_rebuild(from_day, to_day) for the days with stats.';
	END IF;
END
$$;
COMMENT ON FUNCTION evstream.health_of_workers() IS 'What evstream_health() says of the workers';

CREATE FUNCTION evstream.health_findings() RETURNS TABLE (component text, level text, why text, hint text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	waiting interval := evstream.outbox_oldest_waiting();
	newest record;
	versions record;
BEGIN
	RETURN QUERY SELECT 'workers', w.level, w.why, w.hint FROM evstream.health_of_workers() w;

	SELECT x.extversion AS installed, a.default_version AS available INTO versions
		FROM pg_extension x JOIN pg_available_extensions a ON a.name = x.extname
		WHERE x.extname = 'evstream';
	IF versions.installed <> versions.available THEN
		RETURN QUERY SELECT 'workers', 'degraded', format('the library is of version %s, its objects in this database of %s', versions.available, versions.installed),
			'Run ALTER EXTENSION evstream UPDATE.';
	END IF;

	IF NOT evstream.uses_kafka() THEN
		IF COALESCE(current_setting('evstream.kafka_brokers', true), '') = '' THEN
			RETURN QUERY VALUES ('kafka', 'off', 'evstream.kafka_brokers is empty: events go through the embedded log', NULL);
		ELSE
			RETURN QUERY VALUES ('kafka', 'off', 'the workers go by another evstream.kafka_brokers than this session: events go through the embedded log',
				'Call evstream_restart() where the setting was changed since, or connect again.');
		END IF;
	END IF;
	IF COALESCE(current_setting('evstream.redis_url', true), '') = '' THEN
		RETURN QUERY VALUES ('redis', 'off', 'evstream.redis_url is empty: there is no fan-out', NULL);
	ELSIF NOT EXISTS (SELECT FROM evstream.workers() w WHERE w.pid IS NOT NULL AND w.role = 'notifier') THEN
		RETURN QUERY VALUES ('redis', 'degraded', 'no notifier runs', 'See the component workers, and evstream_workers.');
	ELSE
		RETURN QUERY SELECT 'redis', 'degraded', format('events that were stored %s ago are not in Redis yet', date_trunc('second', now() - b.oldest)),
			'If nothing else is said of Redis, the notifier is behind: fewer or narrower filters make it faster.'
			FROM (SELECT min(l.last_received_at) AS oldest
				FROM evstream.batch_log l LEFT JOIN evstream.notifier_cursors c USING (log_id, log_partition)
				WHERE l.last_received_at > COALESCE(c.passed_at, '-infinity')) b
			WHERE b.oldest < now() - interval '60 s';
		IF NOT current_setting('evstream.store_events')::boolean THEN
			RETURN QUERY VALUES ('redis', 'degraded', 'evstream.store_events is off: events that are not stored are not sent to Redis',
				'Turn evstream.store_events on.');
		END IF;
	END IF;

	RETURN QUERY SELECT p.component, p.level, p.message, p.hint
		FROM evstream.problems() p;

	IF waiting > interval '60 s' THEN
		RETURN QUERY SELECT 'outbox', 'degraded', format('the oldest waiting event was tracked %s ago', date_trunc('second', waiting)),
			'See the other components, evstream_workers and evstream_lag.';
	END IF;

	SELECT d.received_at, d.reason INTO newest FROM evstream.dead_letters d ORDER BY d.received_at DESC LIMIT 1;
	IF newest.received_at > now() - interval '1 hour' THEN
		RETURN QUERY SELECT 'dead_letters', 'degraded', format('a dead letter came in within the hour, the last one with reason %s', newest.reason),
			'Look at evstream_dead_letters, then call evstream_dead_letter_retry(id) or evstream_dead_letter_discard(id).';
	END IF;
END
$$;
COMMENT ON FUNCTION evstream.health_findings() IS 'All that is not well, by component';

CREATE FUNCTION @extschema@.evstream_health() RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
	WITH levels (level, rank) AS (
		VALUES ('off', 0), ('ok', 1), ('degraded', 2), ('down', 3)
	), findings AS (
		-- what several workers say alike is said once
		SELECT DISTINCT f.component, l.rank, f.why, f.hint
		FROM evstream.health_findings() f JOIN levels l USING (level)
	), components AS (
		SELECT c.component,
			COALESCE(max(f.rank), 1) AS rank,
			string_agg(f.why, '; ' ORDER BY f.rank DESC, f.why) AS why,
			(SELECT string_agg(h.hint, ' ' ORDER BY h.rank DESC, h.hint) FROM (
				SELECT g.hint, max(g.rank) AS rank FROM findings g WHERE g.component = c.component GROUP BY g.hint) h) AS hint
		FROM (VALUES ('workers'), ('kafka'), ('redis'), ('outbox'), ('dead_letters')) c (component)
			LEFT JOIN findings f USING (component)
		GROUP BY c.component
	)
	SELECT jsonb_build_object(
		'status', (SELECT l.level FROM levels l WHERE l.rank = GREATEST(max(c.rank), 1)),
		'components', jsonb_object_agg(c.component, jsonb_strip_nulls(jsonb_build_object(
			'status', (SELECT l.level FROM levels l WHERE l.rank = c.rank),
			'why', c.why,
			'hint', c.hint))))
	FROM components c
$$;
COMMENT ON FUNCTION @extschema@.evstream_health() IS 'Whether counting goes on: status, and why not with the call or setting that mends it, by component';

-- One metric with its samples: {"labels": {...}, "value": ...}, or null for none.
CREATE FUNCTION evstream.metric(name text, type text, help text, samples jsonb) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format(E'# HELP %1$s %2$s\n# TYPE %1$s %3$s\n', name, help, type)
		|| string_agg(format(E'%s%s %s\n', name,
			(SELECT '{' || string_agg(format('%s="%s"', l.key,
					replace(replace(replace(l.value, E'\\', E'\\\\'), '"', E'\\"'), E'\n', E'\\n')), ',' ORDER BY l.key) || '}'
				FROM jsonb_each_text(s.value -> 'labels') l),
			s.value ->> 'value'), '' ORDER BY s.ordinality)
	FROM jsonb_array_elements(samples) WITH ORDINALITY s
	WHERE s.value ->> 'value' IS NOT NULL
$$;
COMMENT ON FUNCTION evstream.metric(text, text, text, jsonb) IS 'One metric in the Prometheus text format';

CREATE FUNCTION @extschema@.evstream_metrics() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	health jsonb := @extschema@.evstream_health();
	counters jsonb;
	lags jsonb;
	statuses jsonb;
	result text;
BEGIN
	SELECT jsonb_object_agg(m.name, m.samples) INTO counters
	FROM (
		SELECT c.name, jsonb_agg(jsonb_build_object('labels', jsonb_build_object('role', w.role), 'value', c.value) ORDER BY w.role) AS samples
		FROM (
			SELECT v.role, count(v.pid) AS running, sum(v.events) AS events, sum(v.batches) AS batches,
				sum(v.errors) AS errors, sum(v.restarts) AS restarts
			FROM @extschema@.evstream_workers v GROUP BY v.role
		) w CROSS JOIN LATERAL (VALUES ('running', w.running), ('events', w.events), ('batches', w.batches),
			('errors', w.errors), ('restarts', w.restarts)) c (name, value)
		GROUP BY c.name
	) m;
	SELECT jsonb_object_agg(m.name, m.samples) INTO lags
	FROM (
		SELECT c.name, jsonb_agg(jsonb_build_object(
				'labels', jsonb_build_object('topic', COALESCE(l.topic, ''), 'partition', l.log_partition::text),
				'value', c.value) ORDER BY l.topic, l.log_partition) AS samples
		FROM @extschema@.evstream_lag l
			CROSS JOIN LATERAL (VALUES ('records', l.lag::numeric), ('seconds', round(l.lag_seconds::numeric, 3))) c (name, value)
		GROUP BY c.name
	) m;
	SELECT jsonb_agg(jsonb_build_object(
			'labels', jsonb_build_object('component', c.key),
			'value', CASE c.value ->> 'status' WHEN 'off' THEN -1 WHEN 'ok' THEN 0 WHEN 'degraded' THEN 1 ELSE 2 END) ORDER BY c.key)
		INTO statuses
		FROM jsonb_each(health -> 'components') c;

	SELECT string_agg(evstream.metric('evstream_' || m.name, m.type, m.help, m.samples), '' ORDER BY m.ordinality) INTO result
	FROM ROWS FROM (jsonb_to_recordset(jsonb_build_array(
		jsonb_build_object('name', 'up', 'type', 'gauge', 'help', 'Whether events are counted: 0 where health is down',
			'samples', jsonb_build_array(jsonb_build_object('value', (health ->> 'status' <> 'down')::int))),
		jsonb_build_object('name', 'health_status', 'type', 'gauge', 'help', 'Health as a whole: 0 ok, 1 degraded, 2 down',
			'samples', jsonb_build_array(jsonb_build_object('value', CASE health ->> 'status' WHEN 'ok' THEN 0 WHEN 'degraded' THEN 1 ELSE 2 END))),
		jsonb_build_object('name', 'component_status', 'type', 'gauge', 'help', 'Health by component: -1 off, 0 ok, 1 degraded, 2 down', 'samples', statuses),
		jsonb_build_object('name', 'workers', 'type', 'gauge', 'help', 'Workers that run, by role', 'samples', counters -> 'running'),
		jsonb_build_object('name', 'events_total', 'type', 'counter', 'help', 'Events taken by workers, by role', 'samples', counters -> 'events'),
		jsonb_build_object('name', 'batches_total', 'type', 'counter', 'help', 'Batches taken by workers, by role', 'samples', counters -> 'batches'),
		jsonb_build_object('name', 'errors_total', 'type', 'counter', 'help', 'Errors of workers, by role', 'samples', counters -> 'errors'),
		jsonb_build_object('name', 'restarts_total', 'type', 'counter', 'help', 'Restarts of workers, by role', 'samples', counters -> 'restarts'),
		jsonb_build_object('name', 'lag_records', 'type', 'gauge', 'help', 'Records not consumed yet; topic is empty for the embedded log', 'samples', lags -> 'records'),
		jsonb_build_object('name', 'lag_seconds', 'type', 'gauge', 'help', 'Age of the last consumed record where there are more', 'samples', lags -> 'seconds'),
		jsonb_build_object('name', 'outbox_oldest_waiting_seconds', 'type', 'gauge', 'help', 'Age of the oldest tracked event that is not counted yet',
			'samples', jsonb_build_array(jsonb_build_object('value', COALESCE(round(extract(epoch FROM evstream.outbox_oldest_waiting()), 3), 0)))),
		jsonb_build_object('name', 'dead_letters', 'type', 'gauge', 'help', 'Dead letters, about',
			'samples', jsonb_build_array(jsonb_build_object('value', evstream.dead_letter_count())))
	)) AS (name text, type text, help text, samples jsonb)) WITH ORDINALITY AS m (name, type, help, samples, ordinality)
	WHERE m.samples IS NOT NULL;
	RETURN result;
END
$$;
COMMENT ON FUNCTION @extschema@.evstream_metrics() IS 'Counters and gauges in the Prometheus text format';

-- ---------------------------------------------------------------------------
-- Rights
-- ---------------------------------------------------------------------------

-- What each privilege opens.
CREATE FUNCTION evstream.privilege_objects(privilege text) RETURNS TABLE (kind text, object text)
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT o.kind, o.object
	FROM (VALUES
		('track', 'EXECUTE ON FUNCTION', '@extschema@.evstream_track(text,text,jsonb,uuid,timestamptz)'),
		('track', 'EXECUTE ON FUNCTION', '@extschema@.evstream_track(bigint,text,jsonb,uuid,timestamptz)'),
		('track', 'EXECUTE ON FUNCTION', '@extschema@.evstream_track_batch(jsonb,text)'),
		('track', 'EXECUTE ON FUNCTION', '@extschema@.evstream_event_id(text)'),
		('track', 'EXECUTE ON FUNCTION', '@extschema@.evstream_wait(interval,boolean)'),
		('read', 'SELECT ON', '@extschema@.evstream_daily_summary'),
		('read', 'SELECT ON', '@extschema@.evstream_daily_counts'),
		('read', 'SELECT ON', '@extschema@.evstream_daily_item_summary'),
		('read', 'SELECT ON', '@extschema@.evstream_daily_totals'),
		('read', 'SELECT ON', '@extschema@.evstream_events'),
		('read', 'EXECUTE ON FUNCTION', '@extschema@.evstream_wait(interval,boolean)'),
		('subscribe', 'EXECUTE ON FUNCTION', '@extschema@.evstream_subscribe(text,text[],text[],numeric,text[],jsonb)'),
		('subscribe', 'EXECUTE ON FUNCTION', '@extschema@.evstream_filter_update(bigint,text[],text[],numeric,text[],jsonb)'),
		('subscribe', 'EXECUTE ON FUNCTION', '@extschema@.evstream_filter_remove(bigint)'),
		('subscribe', 'EXECUTE ON FUNCTION', '@extschema@.evstream_unsubscribe(text)'),
		('subscribe', 'EXECUTE ON FUNCTION', '@extschema@.evstream_backfill(text,timestamptz,int,uuid)'),
		('subscribe', 'SELECT ON', '@extschema@.evstream_filters'),
		('operate', 'EXECUTE ON FUNCTION', '@extschema@.evstream_pause()'),
		('operate', 'EXECUTE ON FUNCTION', '@extschema@.evstream_resume()'),
		('operate', 'EXECUTE ON FUNCTION', '@extschema@.evstream_restart()'),
		('operate', 'EXECUTE ON FUNCTION', '@extschema@.evstream_seek(timestamptz,boolean)'),
		('operate', 'EXECUTE ON FUNCTION', '@extschema@.evstream_seek(int,bigint,text,boolean)'),
		('operate', 'EXECUTE ON FUNCTION', '@extschema@.evstream_take_over()'),
		('operate', 'EXECUTE ON FUNCTION', '@extschema@.evstream_rebuild(date,date)'),
		('operate', 'SELECT ON', '@extschema@.evstream_dead_letters'),
		('operate', 'UPDATE (record_value) ON', '@extschema@.evstream_dead_letters'),
		('operate', 'EXECUTE ON FUNCTION', '@extschema@.evstream_dead_letter_retry(bigint)'),
		('operate', 'EXECUTE ON FUNCTION', '@extschema@.evstream_dead_letter_discard(bigint)'),
		('operate', 'EXECUTE ON FUNCTION', '@extschema@.evstream_health()'),
		('operate', 'EXECUTE ON FUNCTION', '@extschema@.evstream_metrics()'),
		('operate', 'SELECT ON', '@extschema@.evstream_workers'),
		('operate', 'SELECT ON', '@extschema@.evstream_lag'),
		('operate', 'EXECUTE ON FUNCTION', 'evstream.workers()'),
		('operate', 'EXECUTE ON FUNCTION', 'evstream.lag()')
	) o (privilege, kind, object)
	WHERE o.privilege = $1
$$;
COMMENT ON FUNCTION evstream.privilege_objects(text) IS 'What each privilege of evstream_grant() opens';

-- Raises unless both are given and the privilege exists.
CREATE FUNCTION evstream.check_privilege(role regrole, privilege text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = role) THEN
		RAISE EXCEPTION USING
			ERRCODE = CASE WHEN role IS NULL THEN 'null_value_not_allowed' ELSE 'undefined_object' END,
			MESSAGE = CASE WHEN role IS NULL THEN 'role must not be null' ELSE format('role %s does not exist', role) END;
	END IF;
	IF NOT EXISTS (SELECT FROM evstream.privilege_objects(privilege)) THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = format('unknown privilege: %s', COALESCE(quote_literal(privilege), 'null')),
			HINT = 'The privileges are track, read, subscribe and operate.';
	END IF;
END
$$;
COMMENT ON FUNCTION evstream.check_privilege(regrole, text) IS 'Raises an error for arguments that evstream_grant() does not know';

CREATE FUNCTION @extschema@.evstream_grant(role regrole, privilege text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	item record;
	home name := (SELECT n.nspname FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace WHERE x.extname = 'evstream');
BEGIN
	PERFORM evstream.check_privilege(role, privilege);
	IF NOT has_schema_privilege(role, home::text, 'USAGE') THEN
		EXECUTE format('GRANT USAGE ON SCHEMA %I TO %s', home, role);
	END IF;
	FOR item IN SELECT o.kind, o.object FROM evstream.privilege_objects(privilege) o LOOP
		EXECUTE format('GRANT %s %s TO %s', item.kind, item.object, role);
	END LOOP;
END
$$;
COMMENT ON FUNCTION @extschema@.evstream_grant(regrole, text) IS 'Gives a role the privilege track, read, subscribe or operate';

CREATE FUNCTION evstream.holds_privilege(role regrole, privilege text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT bool_and(EXISTS (SELECT FROM aclexplode(acl.items) a WHERE a.grantee = role))
	FROM evstream.privilege_objects(privilege) o
		CROSS JOIN LATERAL (SELECT CASE
			WHEN o.kind = 'EXECUTE ON FUNCTION' THEN (SELECT p.proacl FROM pg_proc p WHERE p.oid = o.object::regprocedure)
			WHEN o.kind = 'SELECT ON' THEN (SELECT c.relacl FROM pg_class c WHERE c.oid = o.object::regclass)
			ELSE (SELECT t.attacl FROM pg_attribute t WHERE t.attrelid = o.object::regclass AND t.attname = 'record_value')
			END AS items) acl
$$;
COMMENT ON FUNCTION evstream.holds_privilege(regrole, text) IS 'Whether all that a privilege opens was granted to the role itself';

CREATE FUNCTION @extschema@.evstream_revoke(role regrole, privilege text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	item record;
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
END
$$;
COMMENT ON FUNCTION @extschema@.evstream_revoke(regrole, text) IS 'Takes a privilege of evstream_grant() back';

-- Nothing is for PUBLIC, whatever the default privileges are.
DO $$
DECLARE
	item record;
BEGIN
	FOR item IN
		SELECT d.classid, d.objid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid
		WHERE d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.deptype = 'e' AND x.extname = 'evstream'
	LOOP
		IF item.classid = 'pg_catalog.pg_proc'::regclass THEN
			EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', item.objid::regprocedure);
		ELSIF item.classid = 'pg_catalog.pg_class'::regclass THEN
			EXECUTE format('REVOKE ALL ON TABLE %s FROM PUBLIC', item.objid::regclass);
		END IF;
	END LOOP;
END
$$;

DO $$
BEGIN
	IF NOT has_schema_privilege('pg_monitor', (SELECT x.extnamespace FROM pg_catalog.pg_extension x WHERE x.extname = 'evstream'), 'USAGE') THEN
		GRANT USAGE ON SCHEMA @extschema@ TO pg_monitor;
	END IF;
END
$$;
GRANT EXECUTE ON FUNCTION @extschema@.evstream_health(), @extschema@.evstream_metrics() TO pg_monitor;
GRANT SELECT ON @extschema@.evstream_workers, @extschema@.evstream_lag TO pg_monitor;
GRANT EXECUTE ON FUNCTION evstream.workers(), evstream.lag() TO pg_monitor;
