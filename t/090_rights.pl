# Who may do what: each object of the extension and each role, as the catalogue has it,
# so that an object that is new shows here; the same in each schema.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');
my %roles = (
	none => 'ev_none',
	track => '"ev; track"', # no name breaks a GRANT out of its words
	read => '"current_user"',
	subscribe => '"ev ""subscribe"""',
	operate => q{"ev'operate"},
	monitor => 'ev_monitor');

sub sql { return $node->safe_psql(@_); }

sub fails
{
	my ($database, $sql, $expected, $name) = @_;
	my ($out, $err) = ('', '');
	my $rc = $node->psql($database, $sql, stdout => \$out, stderr => \$err);
	isnt($rc, 0, $name);
	like($err, $expected, "$name: why");
	return;
}

sql('postgres', "CREATE ROLE $_") foreach values %roles;
sql('postgres', 'GRANT pg_monitor TO ev_monitor; CREATE ROLE owner LOGIN; CREATE ROLE attacker LOGIN');

# ---- The matrix ----

# Objects: the members, and the leaves, which are none. Where the schema of the public
# ones has another name it is "home" here; in SCHEMA evstream the two are one.
my $views = <<'END';
CREATE TEMPORARY VIEW home AS SELECT x.oid AS extension, x.extnamespace AS oid FROM pg_extension x WHERE x.extname = 'evstream';
CREATE TEMPORARY VIEW objects AS
	SELECT d.classid, d.objid FROM pg_depend d, home
	WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass AND d.refobjid = home.extension
	UNION
	SELECT 'pg_class'::regclass, c.oid FROM pg_class c WHERE c.relnamespace = 'evstream'::regnamespace
	UNION
	SELECT 'pg_namespace'::regclass, n.oid FROM pg_namespace n, home WHERE n.nspname = 'evstream' OR n.oid = home.oid;
CREATE TEMPORARY VIEW matrix AS
	SELECT CASE WHEN s.object LIKE 'evstream\_%' OR s.schema = home.oid AND s.schema <> 'evstream'::regnamespace THEN 'home' ELSE 'evstream' END
			|| '.' || s.object AS object, s.privilege, s.role
	FROM home, (
		SELECT format('%s(%s)', p.proname, oidvectortypes(p.proargtypes)) AS object, 'execute' AS privilege, p.pronamespace AS schema,
			r.role, has_function_privilege(r.name, p.oid, 'EXECUTE') AS opens
		FROM roles r, objects m JOIN pg_proc p ON p.oid = m.objid WHERE m.classid = 'pg_proc'::regclass
		UNION ALL
		SELECT c.relname, lower(v.privilege), c.relnamespace, r.role, has_table_privilege(r.name, c.oid, v.privilege)
			OR v.privilege IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') AND has_any_column_privilege(r.name, c.oid, v.privilege)
		FROM roles r, objects m JOIN pg_class c ON c.oid = m.objid
			CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) v (privilege)
		WHERE m.classid = 'pg_class'::regclass AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
		UNION ALL
		SELECT c.relname, lower(v.privilege), c.relnamespace, r.role, has_sequence_privilege(r.name, c.oid, v.privilege)
		FROM roles r, objects m JOIN pg_class c ON c.oid = m.objid CROSS JOIN unnest(ARRAY['SELECT', 'USAGE', 'UPDATE']) v (privilege)
		WHERE m.classid = 'pg_class'::regclass AND c.relkind = 'S'
		UNION ALL
		SELECT 'schema', lower(v.privilege), n.oid, r.role, has_schema_privilege(r.name, n.oid, v.privilege)
		FROM roles r, objects m JOIN pg_namespace n ON n.oid = m.objid CROSS JOIN unnest(ARRAY['USAGE', 'CREATE']) v (privilege)
		WHERE m.classid = 'pg_namespace'::regclass
	) s
	WHERE s.opens;
-- kinds of members that the matrix does not know, and what is given to PUBLIC or with the right to give it on
CREATE TEMPORARY VIEW others AS
	SELECT pg_describe_object(m.classid, m.objid, 0) AS what FROM objects m
	WHERE m.classid NOT IN ('pg_proc'::regclass, 'pg_class'::regclass, 'pg_namespace'::regclass)
		AND NOT (m.classid = 'pg_type'::regclass AND EXISTS (SELECT FROM pg_type t JOIN pg_type r ON r.oid IN (t.oid, t.typelem) JOIN pg_class c ON c.oid = r.typrelid WHERE t.oid = m.objid))
	UNION ALL
	SELECT format('%s: %s to %s', pg_describe_object(m.classid, m.objid, 0), a.privilege_type, a.grantee::regrole)
	FROM objects m CROSS JOIN LATERAL aclexplode(COALESCE(
		(SELECT COALESCE(p.proacl, acldefault('f', p.proowner)) FROM pg_proc p WHERE p.oid = m.objid AND m.classid = 'pg_proc'::regclass),
		(SELECT COALESCE(c.relacl, acldefault('r', c.relowner)) FROM pg_class c WHERE c.oid = m.objid AND m.classid = 'pg_class'::regclass),
		(SELECT n.nspacl FROM pg_namespace n WHERE n.oid = m.objid AND m.classid = 'pg_namespace'::regclass AND n.nspname <> 'public'))) a
	WHERE (a.is_grantable AND a.grantee <> a.grantor) OR a.grantee = 0;
END
my $role_view = 'CREATE TEMPORARY VIEW roles AS SELECT * FROM (VALUES '
  . join(', ', map { my $n = $roles{$_}; $n =~ s/^"|"$//g; $n =~ s/""/"/g; $n =~ s/'/''/g; "('$_', '$n'::name)" } sort keys %roles)
  . ') r (role, name);';

sub matrix
{
	my ($database) = @_;
	return sql($database, "$role_view $views SELECT object || ' ' || privilege || ': ' || string_agg(role, ' ' ORDER BY role) AS line FROM matrix GROUP BY object, privilege ORDER BY (object || ' ' || privilege) COLLATE \"C\"");
}

sub others { return sql($_[0], "$role_view $views SELECT * FROM others ORDER BY 1"); }

my $track_arguments = 'text, jsonb, uuid, timestamp with time zone';
my $filter_arguments = 'text[], text[], numeric, text[], jsonb';
my $expected = join("\n", sort split(/\n/, <<"END"));
home.evstream_track(text, $track_arguments) execute: track
home.evstream_track(bigint, $track_arguments) execute: track
home.evstream_track_batch(jsonb, text) execute: track
home.evstream_event_id(text) execute: track
home.evstream_wait(interval, boolean) execute: read track
home.evstream_daily_summary select: read
home.evstream_daily_counts select: read
home.evstream_daily_item_summary select: read
home.evstream_daily_totals select: read
home.evstream_events select: read
home.evstream_subscribe(text, $filter_arguments) execute: subscribe
home.evstream_filter_update(bigint, $filter_arguments) execute: subscribe
home.evstream_filter_remove(bigint) execute: subscribe
home.evstream_unsubscribe(text) execute: subscribe
home.evstream_backfill(text, timestamp with time zone, integer, uuid) execute: subscribe
home.evstream_filters select: subscribe
home.evstream_pause() execute: operate
home.evstream_resume() execute: operate
home.evstream_restart() execute: operate
home.evstream_seek(timestamp with time zone, boolean) execute: operate
home.evstream_seek(integer, bigint, text, boolean) execute: operate
home.evstream_take_over() execute: operate
home.evstream_rebuild(date, date) execute: operate
home.evstream_dead_letters select: operate
home.evstream_dead_letters update: operate
home.evstream_dead_letter_retry(bigint) execute: operate
home.evstream_dead_letter_discard(bigint) execute: operate
home.evstream_health() execute: monitor operate
home.evstream_metrics() execute: monitor operate
home.evstream_workers select: monitor operate
home.evstream_lag select: monitor operate
evstream.workers() execute: monitor operate
evstream.lag() execute: monitor operate
END

# Whoever can do nothing with it can still have it revoked again, and can be dropped.
my %homes = (public => 'postgres', evstream => 'own', 'Odd Schema' => 'odd');
foreach my $schema (sort keys %homes)
{
	my $db = $homes{$schema};
	if ($db ne 'postgres')
	{
		sql('postgres', "CREATE DATABASE $db");
		sql($db, qq{CREATE SCHEMA "$schema"});
	}
	# what an administrator makes ready for others is not meant for ours
	sql($db, "ALTER DEFAULT PRIVILEGES GRANT ALL ON $_ TO PUBLIC") foreach qw(FUNCTIONS TABLES SEQUENCES);
	sql($db, qq{CREATE EXTENSION evstream SCHEMA "$schema"});
	is(sql($db, qq{SELECT "$schema".evstream_track('u', 'view') IS NOT NULL; SELECT "$schema".evstream_wait('60 s')}), "t\nt", "$schema: it works");
	ok(wait_for_sql($node, $db, q{SELECT count(*) > 3 FROM pg_class WHERE relname ~ '^(events|daily_counts)_\d+$' AND relnamespace = 'evstream'::regnamespace}, 't'),
		"$schema: there are leaves");
	my $before = matrix($db);
	my $usage = $schema eq 'public' ? 'home.schema usage: monitor none operate read subscribe track' : $schema eq 'evstream' ? 'evstream.schema usage: monitor' : 'home.schema usage: monitor';
	is($before, join("\n", sort($usage, map { s/ operate$//r } grep { /monitor/ } split(/\n/, $expected))), "$schema: before any grant");

	my $grants = sub { sql($db, "SELECT " . join(', ', map { (my $r = $roles{$_}) =~ s/'/''/g; qq{"$schema".evstream_$_[0]('$r', '$_')} } qw(track read subscribe operate))); };
	$grants->('grant');
	$usage =~ s/: monitor$/: monitor operate read subscribe track/;
	is(matrix($db), join("\n", sort($usage, split(/\n/, $expected))), "$schema: with the four grants");
	is(others($db), '', "$schema: nothing else, nothing for PUBLIC, nothing to be given on");
	is(sql($db, q{SELECT count(*) FROM pg_proc p WHERE p.prosecdef AND p.proname !~ '^evstream_|^(edit_dead_letter|outbox_oldest_waiting)$' AND p.pronamespace = 'evstream'::regnamespace}),
		'0', "$schema: what runs with the owner's rights is what users call");

	$grants->('revoke');
	is(matrix($db), $before, "$schema: and all of them taken back");
}
foreach my $role (map { $roles{$_} } qw(track read subscribe operate))
{
	is((sql('postgres', "BEGIN; DROP ROLE $role; ROLLBACK; SELECT 'dropped'")), 'dropped', "$role can be dropped");
}

$node->stop;
done_testing();
