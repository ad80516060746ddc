-- COPY of the rows (:events_file, :ids_file), and one aggregate.
COPY bench.events FROM :'events_file' (FORMAT binary);
COPY bench.ids FROM :'ids_file' (FORMAT binary);
INSERT INTO bench.daily_counts (user_id, day, event_type, event_count, amount_total, first_event_at, last_event_at, updated_at)
SELECT user_id, (occurred_at AT TIME ZONE 'UTC')::date, event_type, count(*), sum(amount), min(occurred_at), max(occurred_at), now()
FROM bench.events GROUP BY 1, 2, 3;
