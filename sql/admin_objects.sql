-- What the extension has, as its users see it.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS evstream;
RESET client_min_messages;

-- the views
SELECT c.relname AS view, a.attname AS "column", format_type(a.atttypid, a.atttypmod) AS type
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relkind = 'v' AND c.relname LIKE 'evstream\_%' AND a.attnum > 0
ORDER BY c.relname, a.attnum;

-- the functions for users
SELECT p.proname || '(' || pg_get_function_arguments(p.oid) || ')' AS function, format_type(p.prorettype, NULL) AS result
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE p.proname LIKE 'evstream\_%' AND n.nspname = 'public'
ORDER BY 1;

-- all functions and tables have a comment
CREATE TEMPORARY VIEW members AS
	SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS object
	FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid
	WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND x.extname = 'evstream';
SELECT m.object FROM members m
WHERE (m.classid = 'pg_proc'::regclass
		OR m.classid = 'pg_class'::regclass AND (SELECT c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition FROM pg_class c WHERE c.oid = m.objid))
	AND obj_description(m.objid, m.classid::regclass::name) IS NULL
ORDER BY 1;

-- no function looks for names where its caller says (evstream_track looks for none)
SELECT m.object FROM members m JOIN pg_proc p ON p.oid = m.objid
WHERE m.classid = 'pg_proc'::regclass
	AND NOT COALESCE(p.proconfig @> ARRAY['search_path=pg_catalog, pg_temp'], false)
	AND p.proname <> 'evstream_track'
ORDER BY 1;

-- PUBLIC has nothing
SELECT m.object, a.privilege_type FROM members m
	LEFT JOIN pg_proc p ON p.oid = m.objid AND m.classid = 'pg_proc'::regclass
	LEFT JOIN pg_class c ON c.oid = m.objid AND m.classid = 'pg_class'::regclass
	CROSS JOIN LATERAL aclexplode(CASE
		WHEN p.oid IS NOT NULL THEN COALESCE(p.proacl, acldefault('f', p.proowner))
		WHEN c.oid IS NOT NULL THEN COALESCE(c.relacl, acldefault('r', c.relowner)) END) a
WHERE a.grantee = 0
ORDER BY 1, 2;
SELECT has_schema_privilege('pg_read_all_settings', 'evstream', 'USAGE');

-- pg_dump takes all tables and sequences, but for the mark of a restore, and what is made anew
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = 'evstream'::regnamespace AND c.relkind IN ('r', 'S')
	AND EXISTS (SELECT FROM members m WHERE m.classid = 'pg_class'::regclass AND m.objid = c.oid)
	AND NOT c.oid = ANY ((SELECT x.extconfig FROM pg_extension x WHERE x.extname = 'evstream')::oid[])
ORDER BY 1;

-- an index of a partitioned table would make pg_dump's output fail
SELECT i.indexrelid::regclass FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
WHERE c.relkind = 'p' AND c.relnamespace = 'evstream'::regnamespace;
