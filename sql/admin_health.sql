-- The shape of health and metrics.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS evstream;
RESET client_min_messages;

SELECT h.key, jsonb_typeof(h.value) FROM jsonb_each(evstream_health()) h ORDER BY 1;
SELECT c.key, (SELECT string_agg(k.key, ' ' ORDER BY k.key) FROM jsonb_object_keys(c.value) k (key) WHERE k.key NOT IN ('status', 'why', 'hint')) AS unknown_keys,
	c.value ->> 'status' IN ('ok', 'degraded', 'down', 'off') AS status
FROM jsonb_each(evstream_health() -> 'components') c ORDER BY 1;
SELECT evstream_health() #> '{components,kafka}' AS kafka, evstream_health() #> '{components,redis}' AS redis;

-- the worst component decides, and what is off does not count
SELECT bool_and(h.status = (SELECT CASE max(array_position(ARRAY['off', 'ok', 'degraded', 'down'], c.value ->> 'status'))
		WHEN 4 THEN 'down' WHEN 3 THEN 'degraded' ELSE 'ok' END
	FROM jsonb_each(h.components) c)) AS worst
FROM jsonb_to_record(evstream_health()) AS h (status text, components jsonb);

-- dead letters within the hour
BEGIN;
DELETE FROM evstream.dead_letters;
SELECT evstream_health() #> '{components,dead_letters}' AS dead_letters;
INSERT INTO evstream.dead_letters (reason, received_at) VALUES ('not_json', now() - interval '61 min');
SELECT evstream_health() #>> '{components,dead_letters,status}' AS status;
INSERT INTO evstream.dead_letters (reason) VALUES ('bad_user_id');
SELECT evstream_health() #> '{components,dead_letters}' AS dead_letters;
ROLLBACK;

-- settings that do not fit the workers
BEGIN;
SET LOCAL evstream.time_zone = 'Asia/Tokyo';
SELECT evstream_health() #>> '{components,workers,hint}' LIKE '%evstream_restart()%' AS said;
ROLLBACK;

-- health in a read-only transaction
BEGIN READ ONLY;
SELECT jsonb_typeof(evstream_health());
SELECT length(evstream_metrics()) > 0 AS ok;
ROLLBACK;

-- metrics: each line is a comment or a sample
SELECT line FROM regexp_split_to_table(evstream_metrics(), E'\n') line
WHERE line !~ '^# (HELP|TYPE) evstream_[a-z_]+ .+$'
	AND line !~ '^evstream_[a-z_]+(\{[a-z_]+="([^"\\]|\\.)*"(,[a-z_]+="([^"\\]|\\.)*")*\})? -?[0-9.]+$' AND line <> '';
SELECT substr(line, 8) AS metric FROM regexp_split_to_table(evstream_metrics(), E'\n') line
WHERE line ~ '^# TYPE evstream_(up|health_status|component_status|outbox_oldest_waiting_seconds) ';
SELECT evstream.metric('m', 'gauge', 'help', '[{"labels": {"topic": "a\"b\\c\nd", "x": "y"}, "value": 1.5}, {"value": 0}, {"value": null}]');
SELECT evstream.metric('m', 'gauge', 'help', '[]') IS NULL AS nothing;
