-- What an event costs with many filters and with few, of which 10 match it in either
-- case, by shape: name, ns with few and with many, the same of matching alone, bytes of
-- a filter and ms of compiling, both of many.
-- Variables: module, the shared object of bench/matcher.c.

SET client_min_messages = warning;
CREATE FUNCTION pg_temp.matcher_cost(events regclass, rounds int, OUT filters bigint, OUT ns float8, OUT alone float8, OUT matches float8, OUT bytes float8, OUT compile_ms float8)
	LANGUAGE c AS :'module', 'evstream_matcher_cost';

-- Filter n of a shape belongs to group n / 10, and an event of a group matches its
-- filters and no other.
CREATE FUNCTION pg_temp.fill(shape text, number int) RETURNS void LANGUAGE sql AS $$
	TRUNCATE evstream.filters;
	INSERT INTO evstream.filters (filter_id, subscriber_id, event_types, user_tiers, min_amount, user_ids, properties, condition_key)
		SELECT n, 'subscriber-' || n, c.event_types, c.user_tiers, c.min_amount, c.user_ids, c.properties, c.condition_key
		FROM generate_series(0, number - 1) n, evstream.filter_condition(
			CASE WHEN shape = 'type' THEN ARRAY['type-' || n / 10] WHEN shape IN ('threshold', 'mixed') THEN ARRAY['purchase'] END,
			CASE WHEN shape = 'tier' THEN ARRAY['tier-' || n / 10] WHEN shape = 'mixed' THEN ARRAY['premium'] END,
			CASE WHEN shape = 'threshold' THEN n + 1 WHEN shape = 'mixed' THEN n % 10 + 1 END,
			CASE WHEN shape IN ('user', 'mixed') THEN ARRAY['user-' || n / 10]
				WHEN shape = 'users' THEN ARRAY['user-' || n / 10, 'nobody-' || n, 'noone-' || n] END,
			CASE WHEN shape = 'properties' THEN jsonb_build_object('item_id', 'sku-' || n / 10)
				WHEN shape = 'nested' THEN jsonb_build_object('shop', 'a', 'page', jsonb_build_object('path', '/' || n / 10)) END) c;
	ANALYZE evstream.filters;
$$;
CREATE TEMPORARY TABLE events (LIKE evstream.events);
CREATE FUNCTION pg_temp.happen(number int) RETURNS void LANGUAGE sql AS $$
	TRUNCATE events;
	INSERT INTO events (event_id, occurred_at, received_at, log_id, log_partition, log_offset, event_type, user_id, user_tier, amount, properties)
		SELECT gen_random_uuid(), now(), now(), 1, 0, n, CASE WHEN shape = 'type' THEN 'type-' || g ELSE 'purchase' END, 'user-' || g,
			CASE WHEN shape = 'tier' THEN 'tier-' || g ELSE 'premium' END, 10,
			jsonb_build_object('item_id', 'sku-' || g, 'shop', 'a', 'count', 3, 'page', jsonb_build_object('path', '/' || g, 'title', 'Some page'))
		FROM generate_series(1, 10000) n, LATERAL (SELECT n * 7919 % (number / 10) AS g, current_setting('bench.shape') AS shape) x;
$$;

CREATE TEMPORARY TABLE costs (shape text, ordinality bigint, number int, filters bigint, ns float8, alone float8, matches float8, bytes float8, compile_ms float8);
DO $$
DECLARE
	s record;
	number int;
BEGIN
	FOR s IN SELECT * FROM unnest('{user,users,type,tier,threshold,properties,nested,mixed}'::text[]) WITH ORDINALITY s (shape, ordinality) LOOP
		PERFORM set_config('bench.shape', s.shape, false);
		FOREACH number IN ARRAY '{100,100000}'::int[] LOOP
			PERFORM pg_temp.fill(s.shape, number), pg_temp.happen(number);
			INSERT INTO costs SELECT s.shape, s.ordinality, number, c.* FROM pg_temp.matcher_cost('events', 20) c;
		END LOOP;
	END LOOP;
	IF EXISTS (SELECT FROM costs c WHERE c.matches <> 10 OR c.filters <> c.number) THEN
		RAISE EXCEPTION 'not 10 matches of an event: %', (SELECT jsonb_agg(c) FROM costs c);
	END IF;
END
$$;
TRUNCATE evstream.filters;
SELECT few.shape, round(few.ns::numeric), round(many.ns::numeric), round(few.alone::numeric), round(many.alone::numeric), round(many.bytes::numeric), round(many.compile_ms::numeric)
FROM costs few JOIN costs many USING (shape)
WHERE few.number = 100 AND many.number = 100000
ORDER BY few.ordinality;
