-- Events stored, ids, events counted by user, and in the totals.
SELECT (SELECT count(*) FROM evstream.events),
	(SELECT count(*) FROM evstream.ids),
	(SELECT sum(event_count) FROM evstream.daily_counts),
	(SELECT sum(event_count) FROM evstream.daily_totals);
