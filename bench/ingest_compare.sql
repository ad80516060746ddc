-- How many rows of the summaries are not what the aggregates say.
\set counts 'user_id, day, event_type, event_count, amount_total, first_event_at, last_event_at'
\set items 'user_id, item_id, day, view_count, click_count, purchase_count, event_count'
SELECT (SELECT count(*) FROM (
		(SELECT :counts FROM evstream.daily_counts EXCEPT SELECT :counts FROM bench.daily_counts)
		UNION ALL (SELECT :counts FROM bench.daily_counts EXCEPT SELECT :counts FROM evstream.daily_counts)) d)
	+ (SELECT count(*) FROM (
		(SELECT :items FROM evstream.daily_items EXCEPT SELECT :items FROM bench.daily_items)
		UNION ALL (SELECT :items FROM bench.daily_items EXCEPT SELECT :items FROM evstream.daily_items)) d)
	+ (SELECT count(*) FROM (
		SELECT day, event_type, event_count, user_count, amount_total FROM evstream_daily_totals
		EXCEPT SELECT day, event_type, sum(event_count), count(*), sum(amount_total) FROM bench.daily_counts GROUP BY 1, 2) d);
