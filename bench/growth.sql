-- :rows events of earlier in the day, their ids in closed segments of 2 million, and a
-- million users in the stats. The workers are off, and have made the leaves of today.
SELECT set_config('bench.rows', :'rows', false) \g /dev/null
SELECT inhrelid::regclass AS events FROM pg_inherits
WHERE inhparent = 'evstream.events'::regclass ORDER BY pg_relation_size(inhrelid) DESC LIMIT 1 \gset

DO $$
DECLARE
	wanted bigint := current_setting('bench.rows');
	size constant bigint := 2000000;
	segment int;
BEGIN
	FOR i IN 1 .. (wanted + size - 1) / size LOOP
		segment := 1000 + i;
		INSERT INTO evstream.id_segments (segment_id, closed_at, last_day)
		VALUES (segment, clock_timestamp(), (clock_timestamp() AT TIME ZONE 'UTC')::date);
		EXECUTE format('CREATE TABLE evstream.ids_%s (LIKE evstream.ids)', segment);
		EXECUTE format('INSERT INTO evstream.ids_%s SELECT %s, gen_random_uuid() FROM generate_series(1, %s)',
			segment, segment, least(size, wanted - size * (i - 1)));
		EXECUTE format('CREATE UNIQUE INDEX ON evstream.ids_%s (event_id)', segment);
		EXECUTE format('ALTER TABLE evstream.ids ATTACH PARTITION evstream.ids_%s FOR VALUES IN (%s)', segment, segment);
	END LOOP;
END
$$;

-- in a log of their own
INSERT INTO :events (event_id, user_id, event_type, occurred_at, received_at, properties, log_id, log_partition, log_offset)
SELECT gen_random_uuid(), 'u-' || n % 1000000, 'view', now(), e.received_at, '{}', 1, 1, n
FROM generate_series(1, :rows) n CROSS JOIN (SELECT received_at FROM :events LIMIT 1) e;

INSERT INTO evstream.daily_counts (user_id, day, event_type, event_count, first_event_at, last_event_at, updated_at)
SELECT 'u-' || n, (now() AT TIME ZONE 'UTC')::date - 1, 'view', 1, now() - interval '1 day', now() - interval '1 day', now()
FROM generate_series(1, 1000000) n;

-- so that autovacuum finds nothing to do
VACUUM (FREEZE, ANALYZE) evstream.events, evstream.ids, evstream.daily_counts;
CHECKPOINT;
