# From 1.0 to 1.1: the library serves objects of 1.0, the update in use loses and
# doubles nothing, and both ways to 1.1 lead to the same objects.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $redis = redis_start();
my $node = new_node('main', 'evstream.stream_maxlen' => 1000000);
my $roles = q{SELECT string_agg(role, ' ' ORDER BY role) FROM evstream_workers WHERE pid IS NOT NULL};

# All that the extension has, and what is said of it, as sorted lines. Names of
# owners are left out where all is the extension's owner's.
sub catalogue
{
	my ($db) = @_;
	return $node->safe_psql($db, q{
		SET search_path = pg_catalog;
		WITH members AS (
			SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS object, x.extowner
			FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid
			WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND x.extname = 'evstream'
		), relations AS (
			SELECT m.*, c.* FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
		), lines AS (
			SELECT object, 'is there' AS what FROM members
			UNION ALL SELECT object, format('comment %s: %s', d.objsubid, d.description)
				FROM members m JOIN pg_description d ON d.classoid = m.classid AND d.objoid = m.objid
			UNION ALL SELECT object, format('function %s acl %s owned %s', pg_get_functiondef(p.oid),
					(SELECT string_agg(a::text, ',' ORDER BY a::text) FROM unnest(p.proacl) a), p.proowner = m.extowner)
				FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
			UNION ALL SELECT object, format('relation %s %s options %s identity %s acl %s owned %s partition by %s bound %s', relkind, relpersistence, reloptions,
					relreplident, (SELECT string_agg(a::text, ',' ORDER BY a::text) FROM unnest(relacl) a), relowner = extowner,
					CASE WHEN relkind = 'p' THEN pg_get_partkeydef(oid) END, pg_get_expr(relpartbound, oid))
				FROM relations
			UNION ALL SELECT object, 'view ' || pg_get_viewdef(oid) FROM relations WHERE relkind = 'v'
			UNION ALL SELECT object, format('column %s %s %s null %s default %s identity %s collation %s storage %s acl %s', a.attnum, a.attname,
					format_type(a.atttypid, a.atttypmod), NOT a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attcollation::regcollation,
					a.attstorage, a.attacl)
				FROM relations r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0
					LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
			UNION ALL SELECT object, format('index %s', pg_get_indexdef(i.indexrelid)) FROM relations r JOIN pg_index i ON i.indrelid = r.oid
			UNION ALL SELECT object, format('constraint %s %s', k.conname, pg_get_constraintdef(k.oid)) FROM relations r JOIN pg_constraint k ON k.conrelid = r.oid
			UNION ALL SELECT object, pg_get_triggerdef(t.oid) FROM relations r JOIN pg_trigger t ON t.tgrelid = r.oid
			UNION ALL SELECT object, format('sequence %s %s %s %s', s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqcycle)
				FROM relations r JOIN pg_sequence s ON s.seqrelid = r.oid
			UNION ALL SELECT object, format('schema acl %s', n.nspacl) FROM members m JOIN pg_namespace n ON m.classid = 'pg_namespace'::regclass AND n.oid = m.objid
			UNION ALL SELECT c::regclass::text, format('is dumped, condition "%s"', x.extcondition[i])
				FROM pg_extension x, unnest(x.extconfig) WITH ORDINALITY u (c, i) WHERE x.extname = 'evstream'
			UNION ALL SELECT 'extension', format('version %s relocatable %s', extversion, extrelocatable) FROM pg_extension WHERE extname = 'evstream'
			UNION ALL SELECT object, format('initial acl %s', (SELECT string_agg(regexp_replace(a::text, 'installer|updater', 'owner', 'g'), ',' ORDER BY a::text) FROM unnest(p.initprivs) a))
				FROM members m JOIN pg_init_privs p ON p.classoid = m.classid AND p.objoid = m.objid AND p.objsubid = 0
			UNION ALL SELECT 'rows', format('%s %s', l.log_id, l.kind) FROM evstream.logs l
			UNION ALL SELECT 'rows', format('paused %s restored %s', s.paused, (SELECT count(*) FROM evstream.restored)) FROM evstream.state s
		)
		SELECT object || E'\t' || what FROM lines ORDER BY 1}) . "\n";
}

sub differences
{
	my ($one, $other) = @_;
	my %seen;
	$seen{$_}++ foreach split(/\n/, $one);
	$seen{$_}-- foreach split(/\n/, $other);
	return join("\n", map { ($seen{$_} > 0 ? '- ' : '+ ') . $_ } grep { $seen{$_} != 0 } sort keys %seen);
}

# What a role may do, as the rights on objects of the extension.
sub rights
{
	my ($db, $role) = @_;
	return $node->safe_psql($db, qq{
		SELECT string_agg(x, E'\\n' ORDER BY x) FROM (
			SELECT p.oid::regprocedure || ' ' || a.privilege_type FROM pg_proc p, aclexplode(p.proacl) a WHERE a.grantee = '$role'::regrole
			UNION ALL SELECT c.oid::regclass || ' ' || a.privilege_type FROM pg_class c, aclexplode(c.relacl) a WHERE a.grantee = '$role'::regrole
			UNION ALL SELECT t.attrelid::regclass || '.' || t.attname || ' ' || a.privilege_type FROM pg_attribute t, aclexplode(t.attacl) a WHERE a.grantee = '$role'::regrole
			UNION ALL SELECT n.oid::regnamespace || ' ' || a.privilege_type FROM pg_namespace n, aclexplode(n.nspacl) a WHERE a.grantee = '$role'::regrole
		) r (x)});
}

# ---- Both ways lead to the same ----

$node->safe_psql('postgres', q{CREATE ROLE installer SUPERUSER; CREATE ROLE updater SUPERUSER; CREATE ROLE someone;
	CREATE DATABASE fresh; CREATE DATABASE updated});
for my $schema ('public', 'home')
{
	for my $db ('fresh', 'updated')
	{
		# Default privileges that would open what the scripts make.
		$node->safe_psql($db, qq{CREATE SCHEMA IF NOT EXISTS home;
			ALTER DEFAULT PRIVILEGES FOR ROLE updater GRANT ALL ON TABLES TO PUBLIC;
			ALTER DEFAULT PRIVILEGES FOR ROLE updater GRANT ALL ON FUNCTIONS TO PUBLIC});
	}
	$node->safe_psql('fresh', "SET ROLE installer; CREATE EXTENSION evstream SCHEMA $schema");
	$node->safe_psql('updated', "SET ROLE installer; CREATE EXTENSION evstream VERSION '1.0' SCHEMA $schema");
	isnt(differences(catalogue('fresh'), catalogue('updated')), '', "$schema: 1.0 is another version");
	$node->safe_psql('updated', 'SET ROLE updater; ALTER EXTENSION evstream UPDATE');
	is(differences(catalogue('fresh'), catalogue('updated')), '', "$schema: created, and updated by another role: the same objects");
	is($node->safe_psql('updated', q{SELECT count(*) FROM pg_extension x JOIN pg_depend d ON d.refobjid = x.oid AND d.deptype = 'e'
			LEFT JOIN pg_proc p ON p.oid = d.objid AND d.classid = 'pg_proc'::regclass
			LEFT JOIN pg_class c ON c.oid = d.objid AND d.classid = 'pg_class'::regclass
			CROSS JOIN LATERAL aclexplode(COALESCE(p.proacl, c.relacl)) a
			WHERE x.extname = 'evstream' AND a.grantee = 0}), 0, "$schema: nothing is for PUBLIC, whatever the default privileges are");
	$node->safe_psql($_, 'DROP EXTENSION evstream') foreach ('fresh', 'updated');
}

# ---- What an administrator gave and took himself ----

# Of view, replaced function, function and table; and a function of another owner.
my $given = q{
	SELECT p.proname || ' ' || r.rolname || ' ' || COALESCE(a.grantee::regrole::text, '') FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner
		LEFT JOIN LATERAL aclexplode(p.proacl) a ON a.grantee <> p.proowner
		WHERE p.proname IN ('evstream_rebuild', 'evstream_event_id', 'evstream_wait')
	UNION ALL SELECT c.relname || ' ' || a.grantee::regrole || ' ' || a.privilege_type FROM pg_class c, aclexplode(c.relacl) a
		WHERE c.relname IN ('evstream_daily_totals', 'daily_counts', 'evstream_filters') AND a.grantee <> c.relowner
	ORDER BY 1};
$node->safe_psql('updated', q{SET ROLE installer; CREATE EXTENSION evstream VERSION '1.0' SCHEMA public;
	GRANT SELECT ON evstream_daily_totals, evstream.daily_counts TO PUBLIC;
	GRANT EXECUTE ON FUNCTION evstream_rebuild(date, date), evstream_event_id(text) TO PUBLIC;
	ALTER FUNCTION evstream_wait(interval, boolean) OWNER TO updater;
	SELECT evstream_grant('someone', 'subscribe')});
my $gave = $node->safe_psql('updated', $given);
like($gave, qr/evstream_daily_totals - SELECT.*evstream_event_id installer -.*evstream_rebuild installer -.*evstream_wait updater/s, 'an administrator gave to PUBLIC');
my $dumped = sub { return join("\n", sort grep { /^GRANT / } split(/\n/, (run_command([ 'pg_dump', '--schema-only', '--dbname', $node->connstr('updated') ]))[0])); };
my $dump = $dumped->();
like($dump, qr/GRANT ALL ON FUNCTION public\.evstream_event_id\(text\) TO PUBLIC/, 'a dump has that');
$node->safe_psql('updated', 'SET ROLE updater; ALTER EXTENSION evstream UPDATE');
is($node->safe_psql('updated', $given), $gave, 'and the update leaves all of it');
is($dumped->(), $dump, 'as dumps do');
is($node->safe_psql('updated', q{SELECT count(*) FROM pg_extension x JOIN pg_depend d ON d.refobjid = x.oid AND d.deptype = 'e'
		JOIN pg_proc p ON p.oid = d.objid AND d.classid = 'pg_proc'::regclass CROSS JOIN LATERAL aclexplode(COALESCE(p.proacl, acldefault('f', p.proowner))) a
		WHERE x.extname = 'evstream' AND a.grantee = 0}), 2, 'what is new is not for PUBLIC');
$node->safe_psql('updated', 'DROP EXTENSION evstream');

# ---- The library of 1.1 with objects of 1.0 ----

# The prefix is to be this database's.
$node->safe_psql('postgres', "ALTER DATABASE postgres SET evstream.redis_url = '$redis'");
$node->safe_psql('postgres', q{CREATE EXTENSION evstream VERSION '1.0';
	CREATE ROLE app; CREATE ROLE analyst; CREATE ROLE push; CREATE ROLE oncall; CREATE ROLE part;
	SELECT evstream_grant('app', 'track'), evstream_grant('analyst', 'read'), evstream_grant('push', 'subscribe'),
		evstream_grant('oncall', 'operate'), evstream_grant('oncall', 'read'), evstream_grant('part', 'operate');
	REVOKE SELECT ON evstream_lag FROM part;
	CREATE TABLE mine (n int)});
ok(wait_for_sql($node, 'postgres', $roles, 'consumer maintenance notifier'), '1.0: the workers run');
$node->safe_psql('postgres', q{SELECT evstream_subscribe('vip', '{purchase}'); SELECT evstream_subscribe('all');
	SELECT evstream_track_batch('[{"user_id": "bad"}]', 'dead_letter');
	INSERT INTO mine SELECT i FROM generate_series(1, 100) i;
	SELECT count(evstream_track('mine', CASE WHEN i % 2 = 0 THEN 'purchase' ELSE 'view' END, '{"amount": 1, "item_id": 7}', evstream_event_id('key ' || i)))
		FROM generate_series(1, 100) i});
is($node->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', '1.0: events are counted and sent');
is($node->safe_psql('postgres', q{SELECT purchase_count, view_count, purchase_amount FROM evstream_daily_summary WHERE user_id = 'mine'}), '50|50|50', '1.0: as they were tracked');
is(scalar(redis_stream('evstream:stream:vip')), 50, '1.0: the subscriber has them');
ok(wait_for_sql($node, 'postgres', q{SELECT string_agg(c.value ->> 'why', ' ') || ' | ' || string_agg(c.value ->> 'hint', ' ')
	FROM jsonb_each(evstream_health() -> 'components') c WHERE c.key = 'workers'},
	'the library is of version 1.1, its objects in this database of 1.0 | Run ALTER EXTENSION evstream UPDATE.'), '1.0: health asks for the update');
like($node->safe_psql('postgres', 'SELECT evstream_metrics()'), qr/^evstream_up 1$/m, '1.0: metrics');
is($node->safe_psql('postgres', q{BEGIN; SELECT evstream_pause(); SELECT evstream_resume(); SELECT evstream_restart(); COMMIT;
	SELECT count(*) FROM evstream_backfill('vip', now() - interval '1 hour')}), "\n\n\n50", '1.0: functions of operators and subscribers');

# ---- Updated in use ----

my $before = $node->safe_psql('postgres', q{SELECT mark, origin FROM evstream.identity; SELECT * FROM evstream_filters ORDER BY 1});
$node->safe_psql('postgres', 'SELECT evstream_pause()');
$node->safe_psql('postgres', q{INSERT INTO mine SELECT i FROM generate_series(1, 500) i; SELECT count(evstream_track('mine', 'view')) FROM generate_series(1, 500)});
my $tracker = q{DO $$ BEGIN FOR i IN 1 .. 3000 LOOP
	INSERT INTO mine VALUES (i); PERFORM evstream_track('mine', 'view'); COMMIT; END LOOP; END $$};
my @runs = map { IPC::Run::start([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-c', $tracker ], '<', \undef, '>', '/dev/null', '2>', \my $err) } 1 .. 2;
ok(wait_for_sql($node, 'postgres', 'SELECT count(*) > 700 FROM mine', 't'), 'events come');
my $late = $node->background_psql('postgres', on_error_stop => 1);
$late->query_safe(q{BEGIN; INSERT INTO mine VALUES (0); SELECT evstream_track('mine', 'view')});
$node->safe_psql('postgres', 'SET ROLE updater; BEGIN; ALTER EXTENSION evstream UPDATE; ROLLBACK');
ok(wait_for_sql($node, 'postgres', $roles, 'consumer maintenance notifier'), 'an update that is rolled back: the workers come back');
$node->safe_psql('postgres', 'SET ROLE updater; ALTER EXTENSION evstream UPDATE');
is($node->safe_psql('postgres', q{SELECT extversion FROM pg_extension WHERE extname = 'evstream'}), '1.1', 'updated while events are tracked');
is($node->safe_psql('postgres', q{SELECT paused FROM evstream.state}), 't', 'still paused');
is($node->safe_psql('postgres', q{SELECT mark, origin FROM evstream.identity; SELECT * FROM evstream_filters ORDER BY 1}), $before, 'identity and filters are as they were');
$late->query_safe('COMMIT');
$late->quit;
$node->safe_psql('postgres', 'SELECT evstream_resume()');
ok($_->finish, 'the tracking sessions met no error') foreach @runs;
ok(wait_for_sql($node, 'postgres', $roles, 'consumer maintenance notifier'), 'the workers run');
is($node->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', 'all is counted');
my $total = $node->safe_psql('postgres', 'SELECT count(*) FROM mine');
is($total, 100 + 500 + 6000 + 1, 'of all sessions');
is($node->safe_psql('postgres', q{SELECT event_count FROM evstream_daily_summary WHERE user_id = 'mine'}), $total, 'once');
is($node->safe_psql('postgres', q{SELECT count(*), count(DISTINCT event_id) FROM evstream_events}), "$total|$total", 'stored, once');
is($node->safe_psql('postgres', q{SELECT event_count FROM evstream_daily_item_summary WHERE user_id = 'mine'}), 100, 'items are kept');
is($node->safe_psql('postgres', q{SELECT count(*), min(reason) FROM evstream_dead_letters}), '1|bad_event_type', 'dead letters, too');
is(scalar(redis_stream('evstream:stream:all')), $total, 'each was sent once');
is(scalar(redis_stream('evstream:stream:vip')), 50, 'to whom it matches');
$node->safe_psql('postgres', q{SELECT count(evstream_track('again', 'purchase', event_id => evstream_event_id('key ' || i))) FROM generate_series(1, 100) i});
is($node->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', 'tracked again');
is($node->safe_psql('postgres', q{SELECT count(*) FROM evstream_daily_summary WHERE user_id = 'again'}), 0, 'ids of before are known');
is($node->safe_psql('postgres', q{SELECT evstream_health() #>> '{components,workers,status}'}), 'ok', 'health has no more to ask for');

# ---- Grants ----

$node->safe_psql('postgres', q{
	CREATE ROLE app2; CREATE ROLE analyst2; CREATE ROLE push2; CREATE ROLE oncall2;
	SELECT evstream_grant('app2', 'track'), evstream_grant('analyst2', 'read'), evstream_grant('push2', 'subscribe'),
		evstream_grant('oncall2', 'operate'), evstream_grant('oncall2', 'read')});
for my $role ('app', 'analyst', 'push', 'oncall')
{
	isnt(rights('postgres', $role), '', "$role has rights");
	is(rights('postgres', $role), rights('postgres', $role . '2'), "what $role was granted before has what 1.1 adds");
}
unlike(rights('postgres', 'part'), qr/evstream_lag/, 'what was taken away stays away');
is(rights('postgres', 'someone'), '', 'and others have nothing');

is(log_lines($node, qr/ERROR|PANIC|TRAP|signal 11/), '', 'no error');
$node->stop('fast');
done_testing();
