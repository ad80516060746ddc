\set u random(1, 100000)
\set i random(1, 10000)
INSERT INTO bare VALUES (gen_random_uuid(), 'u-' || :u, 'view', now(), jsonb_build_object('item_id', 'sku-' || :i, 'page', '/catalogue', 'device', 'mobile'));
