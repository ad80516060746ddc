\set u random(1, 100000)
\set i random(1, 10000)
SELECT evstream_track('u-' || :u, 'view', jsonb_build_object('item_id', 'sku-' || :i, 'page', '/catalogue', 'device', 'mobile'));
