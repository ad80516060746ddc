\set b random(1, 100)
INSERT INTO bare SELECT gen_random_uuid(), e ->> 'user_id', e ->> 'event_type', (e ->> 'occurred_at')::timestamptz, e -> 'properties' FROM batches, jsonb_array_elements(events) e WHERE n = :b;
