\set b random(1, 100)
SELECT evstream_track_batch(events) FROM batches WHERE n = :b;
