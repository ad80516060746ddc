-- Hostile bytes through the whole pipeline: what the parser accepts, the tables take.
-- Names begin with y (JSON, to be accepted), n (none, to be refused) or i (either,
-- and here is which).
\set SHOW_CONTEXT never
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS evstream;
CREATE EXTENSION evstream;
RESET client_min_messages;
SET TimeZone = 'UTC';
SET DateStyle = 'ISO';

CREATE PROCEDURE pg_temp.wait_until(condition text) LANGUAGE plpgsql AS $$
DECLARE
	holds boolean;
	until timestamptz := clock_timestamp() + interval '300 s';
BEGIN
	LOOP
		EXECUTE 'SELECT ' || condition INTO holds;
		EXIT WHEN holds;
		IF clock_timestamp() > until THEN
			RAISE EXCEPTION 'waited in vain for: %', condition;
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.02);
	END LOOP;
END
$$;

-- The value of a property, as bytes; {} is where it goes in.
CREATE TEMPORARY TABLE cases (id int GENERATED ALWAYS AS IDENTITY, name text UNIQUE, v bytea);
CREATE FUNCTION pg_temp.add(name text, v text) RETURNS void LANGUAGE sql AS $$
	INSERT INTO cases (name, v) VALUES (name, convert_to(v, 'UTF8'))
$$;
INSERT INTO cases (name, v) SELECT name, convert_to(v, 'UTF8') FROM (VALUES
	-- arrays and objects
	('y_array_empty', '[]'), ('y_array_spaces', '[ ]'), ('y_array_mixed', '[1, "a", null, true, {}, []]'), ('y_array_newlines', E'[\n1\r\n,\t2]'),
	('n_array_comma', '[1,]'), ('n_array_comma_first', '[,1]'), ('n_array_two_commas', '[1,,2]'), ('n_array_colon', '[1:2]'), ('n_array_open', '[1'),
	('n_array_closed_twice', '[1]]'), ('n_array_wrong_end', '[1}'), ('n_array_words', '[a, b]'), ('n_array_number_space_number', '[1 2]'), ('n_array_star', '[*]'),
	('y_object_empty', '{}'), ('y_object_empty_key', '{"": 0}'), ('y_object_escaped_key', '{"a\u00e9\"": 1}'), ('y_object_keys_twice', '{"a": 1, "a": 2}'),
	('y_object_keys_equal_by_escape', '{"a": 1, "\u0061": 2}'), ('y_object_long_key', '{"' || repeat('k', 100000) || '": 1}'),
	('n_object_comma', '{"a": 1,}'), ('n_object_no_colon', '{"a" 1}'), ('n_object_no_value', '{"a":}'), ('n_object_key_number', '{1: 1}'),
	('n_object_key_bare', '{a: 1}'), ('n_object_single_quotes', '{''a'': 1}'), ('n_object_two_colons', '{"a"::1}'), ('n_object_open', '{"a": 1'), ('n_object_comment', '{"a": 1 /* c */}'),
	-- numbers
	('y_number_0', '0'), ('y_number_minus_0', '-0'), ('y_number_minus_0_exponent', '-0e1'), ('y_number_exponent', '1E+2'), ('y_number_small', '1e-400'), ('y_number_large', '1e400'),
	('y_number_digits', repeat('9', 1000)), ('y_number_fraction', '0.' || repeat('1', 1000)), ('y_number_zeros', '1.' || repeat('0', 1000)),
	('i_number_beyond_numeric', '1e131072'), ('i_number_far_beyond', '1e999999999999999999999'), ('i_number_far_below', '1e-999999999999'), ('i_number_zero_far_beyond', '0e999999'), ('i_number_many_digits', repeat('9', 140000)),
	('n_number_plus', '+1'), ('n_number_01', '01'), ('n_number_minus_01', '-01'), ('n_number_point_first', '.5'), ('n_number_point_last', '1.'), ('n_number_exponent_empty', '1e'),
	('n_number_exponent_sign', '1e+'), ('n_number_exponent_fraction', '1e1.5'), ('n_number_hex', '0x1'), ('n_number_nan', 'NaN'), ('n_number_infinity', 'Infinity'), ('n_number_minus_infinity', '-Infinity'),
	('n_number_minus', '-'), ('n_number_underscore', '1_000'), ('n_number_letter', '1a'), ('n_number_two_minus', '--1'), ('n_number_wide_digit', '１'),
	-- strings
	('y_string_empty', '""'), ('y_string_escapes', '"\"\\\/\b\f\n\r\t"'), ('y_string_pair', '"\ud83d\ude00"'), ('y_string_utf8', '"€𝄞"'), ('y_string_noncharacter', '"\uffff\ufdd0"'), ('y_string_del', E'"\x7f"'),
	('y_string_slash', '"/"'), ('y_string_last_character', '"\udbff\udfff"'), ('y_string_bom_inside', '"\ufeff"'),
	('n_string_control', E'"a\x01"'), ('n_string_tab', E'"a\tb"'), ('n_string_newline', E'"a\nb"'), ('n_string_open', '"a'), ('n_string_single_quotes', '''a'''), ('n_string_escape_x', '"\x41"'), ('n_string_escape_0', '"\0"'),
	('n_string_escape_u_short', '"\u12"'), ('n_string_escape_u_letter', '"\u12G4"'), ('n_string_escape_U', '"\U00000041"'), ('n_string_backslash_last', '"\'), ('n_string_bare', 'abc'),
	('i_string_lone_high', '"\ud800"'), ('i_string_lone_low', '"\udc00"'), ('i_string_reversed', '"\ude00\ud83d"'), ('i_string_high_and_letter', '"\ud83dx"'), ('i_string_high_high_low', '"\ud83d\ud83d\ude00"'), ('i_string_nul', '"\u0000"'),
	-- words and structure
	('y_true', 'true'), ('y_false', 'false'), ('y_null', 'null'), ('n_word_short', 'tru'), ('n_word_long', 'nulll'), ('n_word_case', 'TRUE'), ('n_nothing', ''), ('n_two_values', '1 2'), ('n_comment', '1 // one'),
	('n_form_feed', E'\f1'), ('n_nbsp', U&'\00A01'), ('n_semicolon', '1;'),
	('y_depth_97', repeat('[', 97) || repeat(']', 97)), ('y_depth_98', repeat('{"a":', 97) || '[]' || repeat('}', 97)),
	('i_depth_99', repeat('[', 99) || repeat(']', 99)), ('i_depth_10000', repeat('[', 10000) || repeat(']', 10000)), ('i_depth_10000_objects', repeat('{"a":', 10000) || '1' || repeat('}', 10000)), ('i_depth_100000_open', repeat('[', 100000)),
	('y_many_keys', (SELECT '{' || string_agg(format('"k%s":%s', n, n), ',') || '}' FROM generate_series(1, 50000) n)),
	('y_one_key_often', (SELECT '{' || string_agg(format('"k":%s', n), ',') || '}' FROM generate_series(1, 50000) n)),
	('y_many_elements', '[' || repeat('0,', 200000) || '0]'), ('y_many_arrays', '[' || repeat('[],', 100000) || '[]]')
) c (name, v);
-- bytes that are no text
INSERT INTO cases (name, v) VALUES
	('i_bytes_ff', '\x22ff22'), ('i_bytes_overlong', '\x22c08022'), ('i_bytes_surrogate', '\x22eda08022'), ('i_bytes_too_high', '\x22f490808022'), ('i_bytes_cut', '\x22e28222'), ('i_bytes_continuation', '\x228022'),
	('i_bytes_nul', '\x22610022'), ('n_bytes_outside', '\xff'), ('n_bytes_nul_outside', '\x3100'), ('n_bytes_utf16', '\x22006100'), ('n_bytes_bom', '\xefbbbf31');

INSERT INTO evstream.retries (id, record_key, record_value, record_timestamp, attempts)
	SELECT 1000 + id, convert_to(name, 'UTF8'), convert_to(format('{"user_id": %s, "event_type": "t", "properties": {"v": ', to_json(name)), 'UTF8') || v || '\x7d7d', '2026-01-01', 1 FROM cases;
SELECT evstream.wake_workers();
CALL pg_temp.wait_until('count(*) = 0 FROM evstream.retries');
SELECT count(*), (SELECT count(*) FROM evstream_events) + (SELECT count(*) FROM evstream_dead_letters) AS all_of_them FROM cases;
-- each as its name says
CREATE TEMPORARY VIEW results AS
	SELECT c.id, c.name, COALESCE(d.reason, CASE WHEN e.user_id IS NOT NULL THEN 'accepted' END) AS result, d.detail, c.v, e.properties
	FROM cases c LEFT JOIN evstream_dead_letters d ON convert_from(d.record_key, 'UTF8') = c.name LEFT JOIN evstream_events e ON e.user_id = c.name;
SELECT name, result FROM results WHERE name LIKE 'y%' AND result IS DISTINCT FROM 'accepted' OR name LIKE 'n%' AND result IS DISTINCT FROM 'not_json' ORDER BY id;
SELECT name, result, detail FROM results WHERE name LIKE 'i%' ORDER BY id;
-- stored as jsonb has it
SELECT name FROM results WHERE CASE WHEN result = 'accepted' THEN properties IS DISTINCT FROM jsonb_build_object('v', convert_from(v, 'UTF8')::jsonb) END ORDER BY id;
SELECT sum(event_count) = (SELECT count(*) FROM results WHERE result = 'accepted') AS counted FROM evstream_daily_totals;
-- the last one counts
SELECT name, left(properties::text, 40) AS properties FROM results WHERE name LIKE 'y\_%twice' OR name LIKE 'y\_%by\_escape' OR name = 'y_one_key_often' ORDER BY id;

-- Values of 64 MB, the largest that the setting allows.
CREATE TEMPORARY TABLE old_workers AS SELECT w.pid FROM evstream_workers w;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET evstream.max_event_bytes = ''64MB''', current_database()); END $$;
SELECT evstream_restart();
CALL pg_temp.wait_until('count(w.pid) = 2 AND NOT bool_or(w.pid IN (SELECT o.pid FROM old_workers o)) FROM evstream_workers w');
INSERT INTO evstream.retries (id, record_key, record_value, record_timestamp, attempts)
	SELECT 5000 + n, NULL, convert_to(head || repeat(unit, (64 * 1024 * 1024 - length(head) - length(tail)) / length(unit) - more) || tail, 'UTF8'), '2026-01-01', 1
	FROM (VALUES (1, '{"user_id": "large string", "event_type": "t", "x": "', 'x', '"}', 0), (2, '{"user_id": "large array", "event_type": "t", "x": [0', ',[]', ']}', 0),
		(3, '{"user_id": "too large", "event_type": "t", "x": "', 'x', '"}', -1)) v (n, head, unit, tail, more);
SELECT evstream.wake_workers();
CALL pg_temp.wait_until('count(*) = 0 FROM evstream.retries WHERE id > 5000');
SELECT user_id, length(properties::text) FROM evstream_events WHERE user_id LIKE 'large%' ORDER BY 1;
SELECT reason, left(detail, 120) AS detail FROM evstream_dead_letters WHERE record_key IS NULL ORDER BY id;
SELECT count(*) AS crashed FROM evstream_dead_letters WHERE reason = 'crashed';

DROP VIEW results;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET evstream.max_event_bytes', current_database()); END $$;
DROP EXTENSION evstream;
