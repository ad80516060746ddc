-- :events events of 100 users by turns.
SELECT sum(evstream_track_batch(b.events)) FROM (
	SELECT jsonb_agg(jsonb_build_object('user_id', 'u-' || n % 100, 'event_type', 'view',
		'properties', jsonb_build_object('item_id', 'sku-' || n % 1000, 'page', '/catalogue', 'device', 'mobile'))) AS events
	FROM generate_series(1, :events) n GROUP BY n / 1000) b \g /dev/null
