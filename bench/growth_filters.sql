-- Waits until maintenance has kept the filters of the segments that growth.sql has made.
DO $$
BEGIN
	FOR i IN 1 .. 1200 LOOP
		IF NOT EXISTS (SELECT FROM evstream.id_segments s WHERE s.closed_at IS NOT NULL
				AND NOT EXISTS (SELECT FROM evstream.id_filters f WHERE f.segment_id = s.segment_id)) THEN
			RETURN;
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.1);
	END LOOP;
	RAISE 'the filters were not kept within 2 minutes';
END
$$;
