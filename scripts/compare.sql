-- What the views say against the truth that evgen wrote: one line for each row that
-- is on one side only, at most 20 for each view; nothing where they agree.
--
--   psql -X -A -t -q -v ON_ERROR_STOP=1 -v prefix=/path/of/truth -f compare.sql
--
-- The days of the truth are UTC days (evstream.time_zone = 'UTC').

SET client_min_messages = warning;
SET TimeZone = 'UTC';

CREATE TEMP TABLE truth_counts (user_id text, day date, event_type text, event_count bigint, amount_total numeric, first_event_at timestamptz, last_event_at timestamptz);
CREATE TEMP TABLE truth_items (user_id text, item_id text, day date, view_count bigint, click_count bigint, purchase_count bigint, event_count bigint);
CREATE TEMP TABLE truth_totals (day date, event_type text, event_count bigint, user_count bigint, amount_total numeric);
CREATE TEMP TABLE truth_dead (reason text, count bigint);

-- \copy itself takes no variables, a variable may hold the whole command.
\set file :prefix '.counts.csv'
\set command '\\copy truth_counts FROM ' :'file' ' WITH (FORMAT csv, HEADER)'
:command
\set file :prefix '.items.csv'
\set command '\\copy truth_items FROM ' :'file' ' WITH (FORMAT csv, HEADER)'
:command
\set file :prefix '.totals.csv'
\set command '\\copy truth_totals FROM ' :'file' ' WITH (FORMAT csv, HEADER)'
:command
\set file :prefix '.dead.csv'
\set command '\\copy truth_dead FROM ' :'file' ' WITH (FORMAT csv, HEADER)'
:command

ANALYZE truth_counts, truth_items;

CREATE TEMP VIEW truth_summary AS
SELECT user_id, day,
	coalesce(sum(event_count) FILTER (WHERE event_type = 'view'), 0)::bigint AS view_count,
	coalesce(sum(event_count) FILTER (WHERE event_type = 'click'), 0)::bigint AS click_count,
	coalesce(sum(event_count) FILTER (WHERE event_type = 'purchase'), 0)::bigint AS purchase_count,
	coalesce(sum(event_count) FILTER (WHERE event_type = 'login'), 0)::bigint AS login_count,
	sum(event_count)::bigint AS event_count,
	coalesce(sum(amount_total) FILTER (WHERE event_type = 'purchase'), 0) AS purchase_amount,
	min(first_event_at) AS first_event_at, max(last_event_at) AS last_event_at
FROM truth_counts GROUP BY user_id, day;

-- The truth writes 0 where no event had an amount, the views null.
CREATE TEMP VIEW seen_counts AS
SELECT user_id, day, event_type, event_count::bigint, coalesce(amount_total, 0) AS amount_total, first_event_at, last_event_at FROM evstream_daily_counts;
CREATE TEMP VIEW seen_items AS
SELECT user_id, item_id, day, view_count::bigint, click_count::bigint, purchase_count::bigint, event_count::bigint FROM evstream_daily_item_summary;
CREATE TEMP VIEW seen_totals AS
SELECT day, event_type, event_count::bigint, user_count::bigint, coalesce(amount_total, 0) AS amount_total FROM evstream_daily_totals;
CREATE TEMP VIEW seen_dead AS
SELECT reason, count(*) AS count FROM evstream_dead_letters GROUP BY reason;
CREATE TEMP VIEW seen_summary AS
SELECT user_id, day, view_count::bigint, click_count::bigint, purchase_count::bigint, login_count::bigint, event_count::bigint,
	coalesce(purchase_amount, 0) AS purchase_amount, first_event_at, last_event_at FROM evstream_daily_summary;

WITH difference (what, side, line) AS (
	(SELECT 'counts', 'expected', t::text FROM (TABLE truth_counts EXCEPT TABLE seen_counts) t)
	UNION ALL (SELECT 'counts', 'found', t::text FROM (TABLE seen_counts EXCEPT TABLE truth_counts) t)
	UNION ALL (SELECT 'items', 'expected', t::text FROM (TABLE truth_items EXCEPT TABLE seen_items) t)
	UNION ALL (SELECT 'items', 'found', t::text FROM (TABLE seen_items EXCEPT TABLE truth_items) t)
	UNION ALL (SELECT 'totals', 'expected', t::text FROM (TABLE truth_totals EXCEPT TABLE seen_totals) t)
	UNION ALL (SELECT 'totals', 'found', t::text FROM (TABLE seen_totals EXCEPT TABLE truth_totals) t)
	UNION ALL (SELECT 'dead letters', 'expected', t::text FROM (TABLE truth_dead EXCEPT TABLE seen_dead) t)
	UNION ALL (SELECT 'dead letters', 'found', t::text FROM (TABLE seen_dead EXCEPT TABLE truth_dead) t)
	UNION ALL (SELECT 'summary', 'expected', t::text FROM (TABLE truth_summary EXCEPT TABLE seen_summary) t)
	UNION ALL (SELECT 'summary', 'found', t::text FROM (TABLE seen_summary EXCEPT TABLE truth_summary) t)
), numbered AS (
	SELECT *, row_number() OVER (PARTITION BY what ORDER BY line COLLATE "C", side) AS n, count(*) OVER (PARTITION BY what) AS total
	FROM difference
)
SELECT CASE WHEN n <= 20 THEN format('%s: %s %s', what, side, line) ELSE format('%s: and %s rows more', what, total - 20) END
FROM numbered WHERE n <= 21 ORDER BY what, n;
