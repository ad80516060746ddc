-- Waits until :events are counted; prints the time then, as seconds since 1970.
SELECT set_config('bench.events', :'events', false) \g /dev/null
DO $$
DECLARE
	start timestamptz := clock_timestamp();
	wanted bigint := current_setting('bench.events');
	counted bigint;
BEGIN
	LOOP
		SELECT sum(event_count) INTO counted FROM evstream.daily_totals;
		EXIT WHEN counted >= wanted;
		IF clock_timestamp() > start + interval '15 min' THEN
			RAISE 'only % of % events after 15 minutes', counted, wanted;
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.02);
	END LOOP;
	PERFORM set_config('bench.at', extract(epoch FROM clock_timestamp())::text, false);
END
$$;
SELECT current_setting('bench.at');
