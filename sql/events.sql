-- Shapes of events, and what they become.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS evstream;
RESET client_min_messages;
SET TimeZone = 'UTC';
SET DateStyle = 'ISO';

CREATE TEMPORARY TABLE shapes (n int GENERATED ALWAYS AS IDENTITY, event jsonb);
-- What the view has of the shapes' events, in their order; the time of tracking is "now".
CREATE TEMPORARY TABLE mark AS SELECT now() AS since;
CREATE TEMPORARY VIEW result AS
	SELECT e.user_id, e.event_type,
		CASE WHEN e.occurred_at BETWEEN m.since AND clock_timestamp() THEN 'now' ELSE e.occurred_at::text END AS occurred_at,
		e.item_id, e.amount, e.user_tier, e.properties, e.event_id, e.traceparent, e.log_offset
	FROM evstream_events e, mark m
	WHERE e.received_at > m.since;
-- Tracks all shapes in one call and waits until they are stored.
CREATE FUNCTION pg_temp.track_shapes() RETURNS bigint LANGUAGE sql AS $$
	UPDATE mark SET since = clock_timestamp();
	SELECT evstream_track_batch((SELECT jsonb_agg(s.event ORDER BY s.n) FROM shapes s), 'dead_letter');
$$;

-- Four producers.
INSERT INTO shapes (event) VALUES
	('{"event": "login", "user_id": "web-1"}'),
	('{"eventId": "0190f5c2-7a0e-7cc1-b2a4-8d2f2f0c9a11", "userId": "shop-1", "eventType": "purchase", "userTier": "premium", "amount": 99.5, "timestamp": "2026-01-02T03:04:05Z"}'),
	('{"user_id": 17, "action": "click", "page": "/home", "device": "mobile", "timestamp": 1767323045}'),
	('{"user_id": "feed-1", "activity_type": "view", "item_id": "sku-7", "timestamp": "2026-01-02T03:04:05.678901"}');
SELECT pg_temp.track_shapes();
SELECT evstream_wait('60 s');
SELECT user_id, event_type, occurred_at, item_id, amount, user_tier, properties,
	CASE WHEN substr(event_id::text, 15, 1) = '7' AND user_id <> 'shop-1' THEN 'made' ELSE event_id::text END AS event_id
FROM result ORDER BY log_offset;

-- Every alias alone.
TRUNCATE shapes;
INSERT INTO shapes (event)
SELECT jsonb_build_object('user_id', 'u ' || a.name, 'event_type', 't ' || a.name)
	- CASE WHEN a.field IN ('user_id', 'event_type') THEN a.field ELSE '' END
	|| jsonb_build_object(a.name, CASE a.field WHEN 'user_id' THEN 'u ' || a.name WHEN 'event_type' THEN 't ' || a.name
		WHEN 'event_id' THEN 'order-4711 ' || a.name WHEN 'occurred_at' THEN '2026-01-02T00:00:00Z' WHEN 'amount' THEN '1' ELSE 'x ' || a.name END)
FROM (VALUES (1, 'user_id', '{user_id,userId,distinct_id,anonymousId}'::text[]),
	(2, 'event_type', '{event_type,eventType,activity_type,action,event,type}'),
	(3, 'event_id', '{event_id,eventId,message_id,messageId,uuid,idempotency_key}'),
	(4, 'occurred_at', '{occurred_at,timestamp,originalTimestamp,event_time,ts,created_at}'),
	(5, 'item_id', '{item_id,itemId,product_id}'),
	(6, 'amount', '{amount}'),
	(7, 'user_tier', '{user_tier,userTier}'),
	(8, 'other', '{UserId,USER_ID,event_ID,Amount,tier,item,time}')) f (n, field, names)
	CROSS JOIN LATERAL (SELECT f.field, name, ordinality FROM unnest(f.names) WITH ORDINALITY t (name, ordinality)) a
ORDER BY f.n, a.ordinality;
SELECT pg_temp.track_shapes();
SELECT evstream_wait('60 s');
SELECT user_id, event_type, occurred_at, item_id, amount, user_tier, properties,
	(SELECT s.event ->> k.name FROM shapes s, unnest('{event_id,eventId,message_id,messageId,uuid,idempotency_key}'::text[]) k (name)
		WHERE evstream_event_id(s.event ->> k.name) = r.event_id) AS id_of
FROM result r ORDER BY log_offset;

-- The first present alias wins, null counts as absent, what is not used stays in properties.
TRUNCATE shapes;
INSERT INTO shapes (event) VALUES
	('{"anonymousId": "4", "distinct_id": "3", "userId": "2", "user_id": "1", "event_type": "all users"}'),
	('{"anonymousId": "4", "distinct_id": null, "userId": null, "user_id": null, "event_type": "nulls"}'),
	('{"user_id": "u", "type": "6", "event": "5", "action": "4", "activity_type": "3", "eventType": "2", "event_type": "1"}'),
	('{"user_id": "u", "event": "times", "created_at": "2026-01-06", "ts": "x", "event_time": 0, "originalTimestamp": {}, "timestamp": "2026-01-02T00:00:00Z", "occurred_at": "2026-01-01T00:00:00Z"}'),
	('{"user_id": "u", "event": "ids", "idempotency_key": "6", "uuid": "5", "messageId": "4", "message_id": "3", "eventId": 2, "event_id": "order-4711 x"}'),
	('{"user_id": "u", "event": "items", "item_id": null, "itemId": 5, "product_id": "p"}'),
	('{"user_id": "u", "event": "null fields", "occurred_at": null, "amount": null, "user_tier": null, "properties": null, "event_id": null, "traceparent": null, "note": null}');
SELECT pg_temp.track_shapes();
SELECT evstream_wait('60 s');
SELECT user_id, event_type, occurred_at, item_id, amount, user_tier, properties, event_id = evstream_event_id('order-4711 x') AS as_given
FROM result ORDER BY log_offset;

-- item_id, amount and user_tier: at the top level, in properties, of another type.
TRUNCATE shapes;
INSERT INTO shapes (event) VALUES
	('{"user_id": "u", "event": "top", "item_id": "i", "amount": 1, "user_tier": "t"}'),
	('{"user_id": "u", "event": "inside", "properties": {"item_id": "i", "amount": 1, "user_tier": "t"}}'),
	('{"user_id": "u", "event": "aliases inside", "properties": {"product_id": "p", "userTier": "t"}}'),
	('{"user_id": "u", "event": "both", "item_id": "top", "amount": 1, "userTier": "top", "properties": {"item_id": "inner", "amount": 2, "user_tier": "inner"}}'),
	('{"user_id": "u", "event": "null at top", "item_id": null, "amount": null, "user_tier": null, "properties": {"item_id": "i", "amount": 2, "user_tier": "t"}}'),
	('{"user_id": "u", "event": "null inside", "properties": {"item_id": null, "amount": null, "user_tier": null}}'),
	('{"user_id": "u", "event": "other types", "item_id": 1.5, "user_tier": 3}'),
	('{"user_id": "u", "event": "other types inside", "properties": {"item_id": ["i"], "amount": "much", "user_tier": {"t": 1}}}'),
	('{"user_id": "u", "event": "bad at top, good inside", "item_id": true, "user_tier": 3, "properties": {"item_id": "i", "user_tier": "t"}}'),
	('{"user_id": "u", "event": "integers", "item_id": 9007199254740993, "properties": {"amount": -0.10}}'),
	('{"user_id": "u", "event": "empty", "item_id": "", "user_tier": ""}'),
	('{"user_id": "u", "event": "same key", "page": "top", "properties": {"page": "inner", "deep": {"item_id": "no"}}}'),
	('{"user_id": "u", "event": "user fields inside", "properties": {"user_id": "inner", "event_type": "inner", "event_id": "inner", "timestamp": "inner"}}');
SELECT pg_temp.track_shapes();
SELECT evstream_wait('60 s');
SELECT event_type, item_id, amount, user_tier, properties FROM result ORDER BY log_offset;
TRUNCATE shapes;
INSERT INTO shapes (event) VALUES
	(jsonb_build_object('user_id', 'u', 'event', 'item of 255', 'item_id', repeat('ü', 255))),
	(jsonb_build_object('user_id', 'u', 'event', 'item of 256', 'item_id', repeat('ü', 256)));
SELECT pg_temp.track_shapes();
SELECT evstream_wait('60 s');
SELECT event_type, length(item_id) AS item, length(properties ->> 'item_id') AS property FROM result ORDER BY log_offset;

-- Users, amounts and times: what is taken, and the reason of what is not.
CREATE FUNCTION pg_temp.track_cases(field text, cases jsonb[]) RETURNS bigint LANGUAGE sql AS $$
	TRUNCATE shapes;
	INSERT INTO shapes (event)
	SELECT '{"user_id": "u", "event": "case"}' || jsonb_build_object('nth', c.n, 'given', c.given::text, field, c.given)
	FROM unnest(cases) WITH ORDINALITY c (given, n);
	SELECT pg_temp.track_shapes();
$$;
CREATE TEMPORARY VIEW outcome AS
	SELECT (r.properties ->> 'nth')::int AS nth, r.properties ->> 'given' AS given, r.user_id, r.amount, r.occurred_at, r.event_id, NULL AS refused, NULL AS detail
	FROM result r
	UNION ALL
	SELECT (v.value ->> 'nth')::int, v.value ->> 'given', NULL, NULL, NULL, NULL, d.reason, d.detail
	FROM evstream_dead_letters d, mark m, LATERAL (SELECT convert_from(d.record_value, 'UTF8')::jsonb AS value) v
	WHERE d.received_at > m.since;
SELECT pg_temp.track_cases('user_id', ARRAY['0', '-17', '12345678901234567890123', '"  "', '"ü"', '"a\"b\\c\n"', '"\u0001"', '1.0', '1e2', '1.5', '""', 'false', '[]', 'null']::jsonb[]);
SELECT evstream_wait('60 s');
SELECT given, user_id, refused, detail FROM outcome ORDER BY nth;
SELECT pg_temp.track_cases('amount', ARRAY['1', '"1"', '12.340', '"-12.340"', '-0', '0.0', '1e3', '"1E-3"', '"1e+3"',
	'99999999999999999999.9999999999', '"-99999999999999999999.9999999999"', '0.0000000001', '0.00000000004', '0.00000000005', '99999999999999999999.99999999999', '100000000000000000000',
	'null', '"+1"', '" 1"', '"1 "', '".5"', '"1."', '"01"', '"0x10"', '"1,5"', '"NaN"', '"Infinity"', '""', '"1_000"', 'true', '[1]', '{}']::jsonb[]);
SELECT evstream_wait('60 s');
SELECT given, amount, refused FROM outcome ORDER BY nth;
SELECT pg_temp.track_cases('timestamp', ARRAY['"2026-01-02T03:04:05Z"', '"2026-01-02T03:04:05"', '"2026-01-02 03:04:05"', '"2026-01-02t03:04:05z"', '"2026-01-02T03:04:05.5Z"', '"2026-01-02T03:04:05.123456789Z"',
	'"2026-01-02T03:04:05.999999999Z"', '"2026-01-01T23:30:00-01:30"', '"2026-01-02T00:30:00+05:45"', '"2026-01-02T00:30:00+0545"', '"2026-01-02T00:30:00+05"', '"2024-02-29T00:00:00Z"', '"2016-12-31T23:59:60Z"',
	'"0001-01-01T00:00:00Z"', '0', '1767323045', '1767323045.5', '1767323045123', '1767323045123.25', '-86400', '100000000000', '1.767323045e9', '-62135596800',
	'null', '"2026-01-02"', '"2026-01-02T03:04Z"', '"2025-02-29T00:00:00Z"', '"2026-13-01T00:00:00Z"', '"2026-01-02T24:00:00Z"', '"2026-01-02T03:04:05+16:00"', '"2026-01-02T03:04:05 Europe/Berlin"', '"1767323045"',
	'"yesterday"', '""', '"0000-01-01T00:00:00Z"', '"9999-12-31T23:59:59Z"', '"2026-01-02T03:04:05,5Z"', '-62135596801', '4e9', '4e12', '1e20', 'true', '{}']::jsonb[]);
SELECT evstream_wait('60 s');
SELECT given, occurred_at, refused FROM outcome ORDER BY nth;
SELECT pg_temp.track_cases('event_id', ARRAY['"0190F5C2-7A0E-7CC1-B2A4-8D2F2F0C9A12"', '"order-4711 y"', '"ü"', 'null', to_jsonb(repeat('ü', 255)), to_jsonb(repeat('x', 256)), '""', '17', 'true', '[]']::jsonb[]);
SELECT evstream_wait('60 s');
SELECT left(given, 40) AS given, event_id = evstream_event_id(given::jsonb #>> '{}') AS as_given, refused FROM outcome ORDER BY nth;

-- An id counts once: within a call, and across calls, whatever else is in the event.
TRUNCATE shapes;
INSERT INTO shapes (event) VALUES
	('{"user_id": "first", "event": "once", "event_id": "order-4711 z", "timestamp": "2026-01-02T00:00:00Z"}'),
	('{"user_id": "second", "event": "once", "messageId": "order-4711 z"}'),
	('{"user_id": "second", "event": "once", "event_id": "0190f5c2-7a0e-7cc1-b2a4-8d2f2f0c9a13"}'),
	('{"user_id": "third", "event": "once", "event_id": "0190F5C2-7A0E-7CC1-B2A4-8D2F2F0C9A13"}');
SELECT pg_temp.track_shapes();
SELECT evstream_wait('60 s');
SELECT user_id, event_type, occurred_at FROM result ORDER BY log_offset;
UPDATE shapes SET event = event || '{"user_id": "again", "timestamp": "2026-01-05T00:00:00Z"}';
SELECT pg_temp.track_shapes();
SELECT evstream_track('again', 'once', event_id => evstream_event_id('order-4711 z')) = evstream_event_id('order-4711 z') AS given;
SELECT evstream_wait('60 s');
SELECT count(*) FROM result;
SELECT user_id, event_type, event_count FROM evstream_daily_counts WHERE event_type = 'once' ORDER BY user_id;

-- Where they were read from: the embedded log.
SELECT DISTINCT topic, log_partition FROM evstream_events WHERE event_type = 'case';
SELECT count(*) = count(DISTINCT log_offset) AS offsets FROM evstream_events WHERE event_type = 'case';
