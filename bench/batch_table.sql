-- 100 arrays of 1,000 events each, and a bare table for what they hold.
CREATE TABLE batches (
	n int,
	events jsonb
);
INSERT INTO batches
	SELECT b, jsonb_agg(jsonb_build_object(
		'user_id', 'u-' || (random() * 100000)::int,
		'event_type', (ARRAY['view', 'click', 'purchase', 'login'])[1 + e % 4],
		'occurred_at', now() - random() * interval '1 hour',
		'properties', jsonb_build_object('item_id', 'sku-' || (random() * 10000)::int, 'amount', (random() * 1000)::numeric(10, 2),
			'page', '/catalogue', 'device', 'mobile', 'campaign', md5(random()::text))))
	FROM generate_series(1, 100) b, generate_series(1, 1000) e
	GROUP BY b;
CREATE INDEX ON batches (n);
VACUUM ANALYZE batches;
CREATE TABLE bare (
	event_id uuid,
	user_id text,
	event_type text,
	occurred_at timestamptz,
	properties jsonb
);
