-- The aggregate by item, of what ingest_copy.sql has copied.
INSERT INTO bench.daily_items (user_id, item_id, day, view_count, click_count, purchase_count, event_count, updated_at)
SELECT user_id, item_id, (occurred_at AT TIME ZONE 'UTC')::date, count(*) FILTER (WHERE event_type = 'view'),
	count(*) FILTER (WHERE event_type = 'click'), count(*) FILTER (WHERE event_type = 'purchase'), count(*), now()
FROM bench.events WHERE item_id IS NOT NULL GROUP BY 1, 2, 3;
