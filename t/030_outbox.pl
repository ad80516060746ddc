# The outbox and the embedded log: without workers, on a standby, with late
# transactions among many, through crashes, and out of a dump.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Users and how many of their events are counted, "a=1,b=2".
my $counts = q{SELECT string_agg(user_id || '=' || n, ',' ORDER BY user_id)
	FROM (SELECT user_id, sum(event_count) AS n FROM evstream_daily_summary GROUP BY user_id) s};
my $health = q{SELECT (h ->> 'status') || ': ' || (h #>> '{components,workers,why}') || ' | ' || (h #>> '{components,workers,hint}') FROM evstream_health() h};

sub counted
{
	my ($node, $expected, $name) = @_;
	is($node->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', "$name: waited");
	is($node->safe_psql('postgres', $counts), $expected, $name);
	return;
}

# ---- Not preloaded ----

my $node = new_node('main', preload => 0, streaming => 1, extension => 1);
is($node->safe_psql('postgres', q{SELECT evstream_track('early', 'view') IS NOT NULL}), 't',
	'not preloaded: tracking works');
is($node->safe_psql('postgres', q{SET evstream.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
	SELECT evstream_track_batch('[{"user_id": "early", "event": "view"}, {"user_id": 1}]', 'dead_letter')}), 1,
	'also in batches, with a trace context');
is($node->safe_psql('postgres', q{SELECT evstream_wait('100 ms')}), 'f', 'events wait');
is($node->safe_psql('postgres', $health),
	'down: evstream is not among shared_preload_libraries, so no worker runs; tracked events wait'
	. ' | Add evstream to shared_preload_libraries and restart the server.', 'health says why, and what to do');
my ($rc, $out, $err) = $node->psql('postgres', q{SELECT evstream_track(NULL, 'view')});
like($err, qr/invalid event: bad_user_id/, 'faults are found');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'evstream'\n");
# not restart, which would start it without what check-asan has before it
$node->stop;
$node->start;
counted($node, 'early=2', 'preloaded: events that waited are counted');
is($node->safe_psql('postgres', q{SELECT count(*) FROM evstream_events WHERE traceparent LIKE '00-4bf9%'}), 1, 'with the trace context');

# ---- enabled = off ----

$node->append_conf('postgresql.conf', "evstream.enabled = off\n");
$node->reload;
ok(wait_for_sql($node, 'postgres', $health,
	'down: evstream.enabled is off, so no worker runs; tracked events wait | Set evstream.enabled to on and reload the configuration,'
	. ' or call evstream_restart() where it was set for this database.'), 'enabled = off: health says so');
$node->safe_psql('postgres', q{SELECT evstream_track('off', 'view')});
is($node->safe_psql('postgres', q{SELECT evstream_wait('100 ms')}), 'f', 'tracked events wait');
$node->append_conf('postgresql.conf', "evstream.enabled = on\n");
$node->reload;
counted($node, 'early=2,off=1', 'enabled = on: counted');

# ---- A standby ----

$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
is($standby->safe_psql('postgres', $counts), 'early=2,off=1', 'standby: the views can be read');
for my $call (q{evstream_track('u', 'view')}, q{evstream_track(1, 'view')}, q{evstream_track_batch('[]')})
{
	($rc, $out, $err) = $standby->psql('postgres', "SELECT $call");
	like($err, qr/ERROR:  cannot execute evstream_track(_batch)?\(\) in a read-only transaction/, "standby: $call is refused");
}
($rc, $out, $err) = $standby->psql('postgres', 'SELECT evstream_wait()');
like($err, qr/ERROR:  cannot execute evstream_wait\(\) during recovery\nHINT:  Call it on the primary\./, 'standby: evstream_wait() is refused');
is($standby->safe_psql('postgres', q{SELECT h #>> '{components,workers,why}' FROM evstream_health() h}),
	'this server is a standby: the workers run on its primary', 'standby: health says so');
is($standby->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'evstream (con|mai)'}), 0,
	'standby: no worker runs');
is(count_log($standby, qr/ERROR:/), 4, 'standby: nothing else fails');
$node->safe_psql('postgres', q{SELECT evstream_track('promoted', 'view')});
$node->wait_for_catchup($standby);
$standby->promote;
counted($standby, 'early=2,off=1,promoted=1', 'promoted: the workers start, and go on where the primary was');
$standby->safe_psql('postgres', q{SELECT evstream_track('promoted', 'view')});
counted($standby, 'early=2,off=1,promoted=2', 'promoted: new events are counted');
$standby->stop('immediate');

# ---- Late transactions among 100,000 ----

$node->safe_psql('postgres', 'DROP EXTENSION evstream; CREATE EXTENSION evstream');
my @late = map { $node->background_psql('postgres') } 1 .. 3;
$late[$_]->query_safe("BEGIN; SELECT evstream_track('late$_', 'view')") for 0 .. 1;
$late[2]->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM evstream_daily_counts');
$node->safe_psql('postgres', q{SET synchronous_commit = off;
	DO $$ BEGIN FOR i IN 1 .. 100000 LOOP PERFORM evstream_track('other', 'view'); COMMIT; END LOOP; END $$});
counted($node, 'other=100000', 'others are counted while some transactions are open');
# What was read stays in the outbox as long as they hold their snapshots, and costs nothing.
my $look = q{EXPLAIN (ANALYZE, BUFFERS, COSTS off, TIMING off, SUMMARY off) SELECT evstream_wait('60 s')};
my ($buffers) = $node->safe_psql('postgres', "SELECT evstream_wait('60 s'); $look") =~ /^\s*Buffers: shared hit=(\d+)/m;
cmp_ok($buffers, '<', 200, 'a look at the outbox reads what is new, and not what was read');
cmp_ok($node->safe_psql('postgres', q{SELECT sum(pg_relation_size('evstream.outbox_' || n)) FROM generate_series(0, 2) n}), '>', 10_000_000,
	'of which there is much');
$late[2]->query_safe(q{SELECT evstream_track('late2', 'view')});
$late[0]->query_safe('COMMIT');
$late[1]->query_safe('ROLLBACK');
$late[2]->query_safe('COMMIT');
counted($node, 'late0=1,late2=1,other=100000', 'the late ones too, and not what was rolled back');
$_->quit for @late;
ok(wait_for_sql($node, 'postgres', q{SELECT sum(pg_relation_size('evstream.outbox_' || n)) FROM generate_series(0, 2) n}, 0),
	'the outbox is emptied');

# ---- Crashes: what was committed is counted, once ----

$node->safe_psql('postgres', q{DROP EXTENSION evstream; CREATE EXTENSION evstream; CREATE TABLE mine (n int)});
my $tracker = q{DO $$ BEGIN FOR i IN 1 .. 1000000 LOOP
	INSERT INTO mine VALUES (i); PERFORM evstream_track('mine', 'view'); COMMIT; END LOOP; END $$};
for my $crash ('consumer', 'server', 'consumer')
{
	my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM mine');
	my $run = IPC::Run::start([ 'psql', '-X', '-q', '-d', $node->connstr('postgres'), '-c', $tracker ], '>', '/dev/null', '2>', '/dev/null');
	ok(wait_for_sql($node, 'postgres',
		"SELECT count(*) > $before + 2000 AND (SELECT sum(event_count) > $before + 500 FROM evstream_daily_summary) FROM mine", 't'),
		"events come and are counted before the end of the $crash");
	if ($crash eq 'consumer')
	{
		kill('KILL', $node->safe_psql('postgres', q{SELECT pid FROM evstream_workers WHERE role = 'consumer'}));
		$run->finish;
	}
	else
	{
		$node->stop('immediate');
		$run->finish;
		$node->start;
	}
	ok(wait_for_sql($node, 'postgres', q{SELECT evstream_wait('60 s')}, 't'), "all is counted after the end of the $crash");
	is($node->safe_psql('postgres', 'SELECT (SELECT sum(event_count) FROM evstream_daily_summary) - count(*) FROM mine'), 0,
		'what was committed is counted, once');
	is($node->safe_psql('postgres', 'SELECT (SELECT count(*) FROM evstream_events) - count(*) FROM mine'), 0, 'and stored, once');
	is($node->safe_psql('postgres', 'SELECT sum(user_count) FROM evstream_daily_totals'), 1, 'of one user');
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM evstream_dead_letters'), 0, 'none of it is a dead letter');

# ---- A dump, with events waiting ----

$node->safe_psql('postgres', q{DROP TABLE mine; DROP EXTENSION evstream; CREATE EXTENSION evstream;
	SELECT evstream_track('dumped', 'view', event_id => evstream_event_id('one'))});
counted($node, 'dumped=1', 'before the dump');
$node->safe_psql('postgres', 'SELECT evstream_pause()');
$node->safe_psql('postgres', q{SELECT evstream_track('waiting', 'view', event_id => evstream_event_id('two'))});
$node->safe_psql('postgres', q{SELECT evstream_track_batch('[{"user_id": "bad"}]', 'dead_letter')});
my $dump = scratch_dir() . '/dump.sql';
$node->command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', $dump ], 'pg_dump');
$node->safe_psql('postgres', q{SELECT evstream_resume()});
counted($node, 'dumped=1,waiting=1', 'where the dump came from, all is counted');

# Into another server, whose xids are behind those of the dump, and into another
# database of this one, whose xids are ahead of them.
my $other = new_node('other');
for my $target ([ $other, 'postgres', 'another server' ], [ $node, 'copy', 'another database' ])
{
	my ($server, $db, $name) = @$target;
	$server->safe_psql('postgres', "CREATE DATABASE $db TEMPLATE template0 ENCODING 'UTF8'") if $db ne 'postgres';
	$server->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $server->connstr($db), '-f', $dump ], "$name: psql");
	is($server->safe_psql($db, $counts), 'dumped=1', "$name: what was counted is there");
	ok(wait_for_sql($server, $db, "SELECT x LIKE 'degraded: this database was restored from a dump and is paused since%evstream_resume()%' FROM ($health) h (x)", 't'),
		"$name: it is paused, health says so");
	$server->safe_psql($db, q{SELECT evstream_track('new', 'view')});
	is($server->safe_psql($db, q{SELECT evstream_wait('100 ms')}), 'f', "$name: tracked events wait");
	$server->safe_psql($db, q{SELECT evstream_resume()});
	is($server->safe_psql($db, q{SELECT evstream_wait('60 s')}), 't', "$name: resumed");
	is($server->safe_psql($db, $counts), 'dumped=1,new=1,waiting=1', "$name: all that waited is counted");
	is($server->safe_psql($db, q{SELECT reason FROM evstream_dead_letters}), 'bad_event_type', "$name: dead letters came along");
	$server->safe_psql($db, q{SELECT evstream_track('again', 'view', event_id => evstream_event_id(t)) FROM unnest(ARRAY['one', 'two']) t;
		SELECT evstream_track('new', 'view')});
	is($server->safe_psql($db, q{SELECT evstream_wait('60 s')}), 't', "$name: waited");
	is($server->safe_psql($db, $counts), 'dumped=1,new=2,waiting=1', "$name: ids of before are known, new events are counted");
}
$other->stop('immediate');

# ---- The limit of dead letters, passed by a prepared transaction ----

$node->safe_psql('postgres', q{ALTER DATABASE postgres SET evstream.dead_letter_limit = 100; SELECT evstream_restart()});
ok(wait_for_sql($node, 'postgres', q{SELECT count(*) FROM evstream_workers WHERE state = 'idle'}, '2'), 'the workers are up');
# it would count them again, in its time
my $maintenance = $node->safe_psql('postgres', q{SELECT pid FROM evstream_workers WHERE role = 'maintenance'});
kill('STOP', $maintenance);
$node->safe_psql('postgres', q{BEGIN;
	SELECT evstream_track_batch((SELECT jsonb_agg('{}'::jsonb) FROM generate_series(1, 150)), 'dead_letter');
	PREPARE TRANSACTION 'evstream dead'});
$node->safe_psql('postgres', q{COMMIT PREPARED 'evstream dead'});
$node->safe_psql('postgres', q{SELECT evstream_track('beyond', 'view')});
ok(wait_for_sql($node, 'postgres', q{SELECT evstream_health() #>> '{components,dead_letters,status}'}, 'down'), 'consumption pauses');
kill('CONT', $maintenance);

$node->stop('fast');
is(log_lines($node, qr/PANIC|TRAP|segfault|signal 11/), '', 'nothing has crashed by itself');

done_testing();
