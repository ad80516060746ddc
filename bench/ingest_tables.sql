-- Empty copies of the tables that a batch writes to, with the same indexes: one
-- leaf of each.
SELECT inhrelid::regclass AS events FROM pg_inherits
WHERE inhparent = 'evstream.events'::regclass ORDER BY pg_relation_size(inhrelid) DESC LIMIT 1 \gset
SELECT inhrelid::regclass AS ids FROM pg_inherits
WHERE inhparent = 'evstream.ids'::regclass ORDER BY pg_relation_size(inhrelid) DESC LIMIT 1 \gset
SELECT set_config('client_min_messages', 'warning', false) \g /dev/null
DROP SCHEMA IF EXISTS bench CASCADE;
CREATE SCHEMA bench;
CREATE TABLE bench.events (LIKE :events INCLUDING ALL);
CREATE TABLE bench.ids (LIKE :ids INCLUDING ALL);
CREATE TABLE bench.daily_counts (LIKE evstream.daily_counts_default INCLUDING ALL) WITH (fillfactor = 80);
CREATE TABLE bench.daily_items (LIKE evstream.daily_items_default INCLUDING ALL) WITH (fillfactor = 80);
