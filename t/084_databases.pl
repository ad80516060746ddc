# What is done with databases as a whole: encodings, templates, copies, names,
# tablespaces, owners.

use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = kafka_start();
my $redis = redis_start();
my $node = new_node('main', 'evstream.stream_maxlen' => 1000000, max_worker_processes => 40);
my ($rc, $out, $err);

sub workers_of
{
	my ($db) = @_;
	return "SELECT string_agg(replace(backend_type, 'evstream ', ''), ' ' ORDER BY backend_type) FROM pg_stat_activity WHERE datname = '$db' AND backend_type LIKE 'evstream%'";
}

sub track
{
	my ($db, $user, $count) = @_;
	return $node->safe_psql($db, "SELECT count(evstream_track('$user', 'view')) FROM generate_series(1, $count)");
}

sub counted
{
	my ($db, $expected, $name) = @_;
	ok(wait_for_sql($node, $db, q{SELECT evstream_wait('60 s')}, 't', 90), "$name: waited");
	is($node->safe_psql($db, q{SELECT string_agg(user_id || '=' || n, ' ' ORDER BY user_id) FROM (
		SELECT user_id, sum(event_count) AS n FROM evstream_daily_summary GROUP BY user_id) s}), $expected, $name);
	return;
}

# ---- Encodings ----

for my $encoding ('LATIN1', 'SQL_ASCII')
{
	$node->safe_psql('postgres', "CREATE DATABASE other_encoding TEMPLATE template0 ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'");
	($rc, $out, $err) = $node->psql('other_encoding', 'CREATE EXTENSION evstream');
	like($err, qr/ERROR:  evstream needs a database with encoding UTF8\nDETAIL:  The encoding of this database is $encoding\.\nHINT:  Create a database/, "$encoding is refused");
	is($node->safe_psql('other_encoding', q{SELECT count(*) FROM pg_namespace WHERE nspname = 'evstream'}), 0, "$encoding: nothing is left");
	$node->safe_psql('postgres', 'DROP DATABASE other_encoding');
}

# ---- The extension in a template ----

$node->safe_psql('template1', q{CREATE EXTENSION evstream; SELECT evstream_track('template', 'view')});
$node->safe_psql('postgres', 'CREATE DATABASE child');
ok(wait_for_sql($node, 'postgres', workers_of('child'), 'consumer maintenance'), 'workers in what was made from a template with the extension');
counted('child', 'template=1', 'an event that waited in the template');
is($node->safe_psql('postgres', workers_of('template1')), '', 'no worker in the template itself');
is($node->safe_psql('child', q{SELECT evstream_health() ->> 'status'}), 'ok', 'health of the child');
$node->safe_psql('postgres', 'CREATE DATABASE sibling');
counted('sibling', 'template=1', 'and of another one');
is($node->safe_psql('template1', 'SELECT count(*) FROM evstream_events'), 0, 'in the template it waits');
$node->safe_psql('template1', 'DROP EXTENSION evstream');
$node->safe_psql('postgres', 'DROP DATABASE sibling');

# A database in use becomes a template, and is one no more.
$node->safe_psql('postgres', 'ALTER DATABASE child IS_TEMPLATE true ALLOW_CONNECTIONS false');
ok(wait_for_sql($node, 'postgres', workers_of('child'), ''), 'workers leave what has become a template');
$node->safe_psql('postgres', 'CREATE DATABASE grandchild TEMPLATE child');
counted('grandchild', 'template=1', 'made from a template that allows no connections');
$node->safe_psql('postgres', 'ALTER DATABASE child IS_TEMPLATE false ALLOW_CONNECTIONS true');
track('child', 'child', 1);
counted('child', 'child=1 template=1', 'no template any more');
$node->safe_psql('postgres', "DROP DATABASE $_") foreach ('child', 'grandchild');

# ---- Renamed in use, with Kafka and Redis ----

$node->safe_psql('postgres', 'CREATE DATABASE shop');
$node->append_conf('postgresql.conf', "evstream.kafka_brokers = '$kafka'\nevstream.redis_url = '$redis'\n");
$node->reload;
$node->safe_psql('shop', q{CREATE EXTENSION evstream; SELECT evstream_subscribe('all')});
ok(wait_for_sql($node, 'postgres', workers_of('shop'), 'consumer maintenance notifier relay'), 'workers with Kafka and Redis');
track('shop', 'before', 100);
counted('shop', 'before=100', 'before the change of name');
$node->safe_psql('shop', q{SELECT evstream_pause()});
track('shop', 'waiting', 50);
$node->safe_psql('postgres', 'ALTER DATABASE shop RENAME TO store');
track('store', 'renamed', 25);
$node->safe_psql('store', q{SELECT evstream_resume()});
counted('store', 'before=100 renamed=25 waiting=50', 'under the new name');
is(scalar(redis_stream('evstream:stream:all')), 175, 'each was sent once');
my $mark = $node->safe_psql('store', 'SELECT mark FROM evstream.identity');
ok((grep { $_->[3] =~ /\Q$mark\E/ } group_offsets('evstream-store')) > 0, 'the group of the new name has its mark');

# ---- A copy of a database in use steals neither group nor prefix ----

$node->append_conf('postgresql.conf', "evstream.kafka_group = 'shared'\n");
$node->reload;
counted('store', 'before=100 renamed=25 waiting=50', 'with a group that is named');
$node->safe_psql('store', q{SELECT evstream_pause()});
track('store', 'paused', 10);
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE store');
$node->safe_psql($_, q{SELECT evstream_resume()}) foreach ('copy', 'store');
counted('store', 'before=100 paused=10 renamed=25 waiting=50', 'the original goes on');
ok(wait_for_sql($node, 'copy', qq{SELECT bool_and(evstream_health() #>> ARRAY['components', c, 'why'] ~ 'has not taken over its (Kafka group|Redis prefix)'
		AND evstream_health() #>> ARRAY['components', c, 'hint'] ~ 'evstream_take_over') FROM unnest(ARRAY['kafka', 'redis']) c}, 't'), 'the copy says that it has to take over')
	or diag($node->safe_psql('copy', 'SELECT evstream_health()'));
track('copy', 'copy', 5);
is($node->safe_psql('copy', q{SELECT evstream_wait('1 s')}), 'f', 'and waits with it');
track('store', 'later', 5);
counted('store', 'before=100 later=5 paused=10 renamed=25 waiting=50', 'the original is not disturbed');
is(scalar(redis_stream('evstream:stream:all')), 190, 'nor are its streams');
is($node->safe_psql('store', q{SELECT evstream_health() ->> 'status'}), 'ok', 'health of the original');

is($node->safe_psql('copy', 'SELECT evstream_take_over()'), 't', 'the copy takes over');
counted('copy', 'before=100 copy=5 later=5 paused=10 renamed=25 waiting=50', 'what both had waiting is counted once, and all else');
ok(wait_for_sql($node, 'store', q{SELECT evstream_health() #>> '{components,kafka,why}' ~ 'belongs to another database'}, 't'), 'the original stops');
$node->safe_psql('postgres', 'DROP DATABASE store');
track('copy', 'copy', 5);
counted('copy', 'before=100 copy=10 later=5 paused=10 renamed=25 waiting=50', 'the original is dropped');
my %seen;
$seen{ $_->[1] =~ /"event_id": ?"([^"]+)"/ ? $1 : 'none' }++ foreach redis_stream('evstream:stream:all');
is(scalar(keys %seen), 200, 'the streams have all');

# ---- Another tablespace ----

my $place = abs_path(scratch_dir()) . '/space';
mkdir $place;
$node->safe_psql('postgres', "CREATE TABLESPACE space LOCATION '$place'");
$node->safe_psql('postgres', 'ALTER DATABASE copy SET TABLESPACE space');
track('copy', 'moved', 3);
counted('copy', 'before=100 copy=10 later=5 moved=3 paused=10 renamed=25 waiting=50', 'in another tablespace');
$node->safe_psql('copy', q{DO $$ DECLARE rel record; BEGIN
	FOR rel IN SELECT c.oid::regclass AS name FROM pg_class c WHERE relnamespace = 'evstream'::regnamespace AND relkind = 'r' LOOP
		EXECUTE format('ALTER TABLE %s SET TABLESPACE pg_default', rel.name);
	END LOOP; END $$});
track('copy', 'moved', 3);
counted('copy', 'before=100 copy=10 later=5 moved=6 paused=10 renamed=25 waiting=50', 'tables in yet another one');

# ---- Schema and owner ----

($rc, $out, $err) = $node->psql('copy', 'CREATE SCHEMA elsewhere; ALTER EXTENSION evstream SET SCHEMA elsewhere');
like($err, qr/ERROR:  extension "evstream" does not support SET SCHEMA/, 'SET SCHEMA is refused');
my $role = $node->safe_psql('copy', 'SELECT current_user');
$node->safe_psql('copy', q{CREATE ROLE dba SUPERUSER; CREATE ROLE keeper; CREATE ROLE app LOGIN; SELECT evstream_grant('app', 'track'), evstream_grant('app', 'operate')});
$node->safe_psql('postgres', 'CREATE DATABASE owned');
# The objects of the bootstrap superuser cannot be reassigned.
$node->safe_psql('owned', q{SET ROLE dba; CREATE EXTENSION evstream; SELECT evstream_grant('app', 'track')});
ok(wait_for_sql($node, 'owned', q{SELECT count(*) > 0 FROM pg_inherits WHERE inhparent = 'evstream.events'::regclass}, 't'), 'leaves are there');
is($node->safe_psql('owned', q{SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'evstream'::regnamespace}), 'dba', 'they belong to whom the extension does');
# Workers that go on meanwhile would make leaves that it does not see, and with the rights of before.
my $running = q{SELECT count(*) FROM pg_stat_activity WHERE datname = 'owned' AND backend_type LIKE 'evstream%'};
my $session = $node->background_psql('owned', on_error_stop => 1);
$session->query_safe('BEGIN; REASSIGN OWNED BY app TO keeper');
cmp_ok($node->safe_psql('postgres', $running), '>', 0, 'REASSIGN OWNED by somebody else does not stop the workers');
$session->query_safe('REASSIGN OWNED BY dba TO keeper');
is($node->safe_psql('postgres', $running), 0, 'while the owner is changed, no worker runs');
$session->query_safe('COMMIT');
$session->quit;
is($node->safe_psql('owned', q{SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'evstream'::regnamespace}), 'keeper', 'and now to another role');
$node->safe_psql('owned', q{DO $$ DECLARE leaf regclass; BEGIN
	FOR leaf IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'evstream.events'::regclass LOOP EXECUTE format('DROP TABLE %s', leaf); END LOOP; END $$;
	ALTER DATABASE owned SET evstream.kafka_brokers = ''; ALTER DATABASE owned SET evstream.redis_url = ''; SELECT evstream_restart()});
$node->safe_psql('owned', q{SET ROLE app; SELECT evstream_track('owned', 'view')});
counted('owned', 'owned=1', 'REASSIGN OWNED, to a role that is no superuser');
is($node->safe_psql('owned', q{SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'evstream'::regnamespace}), 'keeper', 'new leaves belong to it');
is($node->safe_psql('owned', q{SELECT evstream_pause(); SELECT evstream_resume(); SELECT evstream_take_over(); SELECT evstream_subscribe('s') > 0;
	SELECT evstream_health() ->> 'status' IN ('ok', 'degraded')}), "\n\nt\nt\nt", 'functions work as that role');

is(log_lines($node, qr/PANIC|TRAP|signal 11|deadlock/), '', 'no crash, no deadlock');
$node->stop('fast');
done_testing();
