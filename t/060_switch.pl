# From the embedded log to Kafka and back, while clients track, and moves to another server:
# nothing is lost, nothing counts twice.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $long = $ENV{EVSTREAM_LONG};
my $kafka = kafka_start('log.retention.ms=-1');
my $node = new_node('main');

# What clients have committed stands in a table of their own, beside what they tracked.
my $clients_sql = q{
	CREATE TABLE app (event_id uuid PRIMARY KEY, user_id text, type text, amount numeric, at timestamptz);
	CREATE VIEW app_counts AS SELECT user_id, (at AT TIME ZONE 'UTC')::date AS day, type AS event_type,
		count(*) AS event_count, trim_scale(sum(amount)) AS amount_total, min(at) AS first_event_at, max(at) AS last_event_at
		FROM app GROUP BY 1, 2, 3;
	CREATE VIEW differences AS
		SELECT 'lost' AS what, event_id::text AS it FROM (SELECT event_id FROM app EXCEPT SELECT event_id FROM evstream_events) x
		UNION ALL SELECT 'twice', event_id::text FROM evstream_events GROUP BY event_id HAVING count(*) > 1
		UNION ALL SELECT 'not committed', event_id::text FROM (SELECT event_id FROM evstream_events EXCEPT SELECT event_id FROM app) x
		UNION ALL SELECT 'counts', x::text FROM (
			(TABLE app_counts EXCEPT SELECT user_id, day, event_type, event_count, trim_scale(amount_total), first_event_at, last_event_at FROM evstream_daily_counts)
			UNION ALL (SELECT user_id, day, event_type, event_count, trim_scale(amount_total), first_event_at, last_event_at FROM evstream_daily_counts EXCEPT TABLE app_counts)) x;
	CREATE FUNCTION act(n int) RETURNS void LANGUAGE sql AS $$
		INSERT INTO app SELECT evstream_track(u, t, jsonb_build_object('amount', a, 'item_id', 'i' || a), occurred_at => at), u, t, a, at
		FROM (SELECT 'u' || (random() * 40)::int AS u, (ARRAY['view', 'click', 'purchase'])[1 + (random() * 2)::int] AS t,
			(random() * 100)::int AS a, '2026-11-01'::timestamptz + random() * interval '10 days' AS at FROM generate_series(1, n)) x;
	$$};

sub agree
{
	my ($where, $db, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(wait_for_sql($where, $db, "SELECT evstream_wait('30 s')", 't', 90), "$name: all that was tracked is counted");
	return is($where->safe_psql($db, 'SELECT what, it FROM differences LIMIT 10'), '', "$name: nothing is lost, nothing counts twice");
}

sub use_kafka
{
	my ($db, $on) = @_;
	$node->safe_psql('postgres', "ALTER DATABASE $db SET evstream.kafka_brokers = '" . ($on ? $kafka : '') . "'");
	$node->safe_psql($db, 'SELECT evstream_restart()');
	return ok(wait_for_sql($node, $db, "SELECT count(*) FROM evstream_workers WHERE pid IS NOT NULL AND role = 'relay'", $on ? 1 : 0, 10),
		$on ? 'on to Kafka' : 'back to the embedded log');
}

# What has been tracked up to now is stored.
sub goes_on
{
	my ($db, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $now = $node->safe_psql($db, 'SELECT count(*) FROM app');
	return ok(wait_for_sql($node, $db, "SELECT count(*) > 0 AND count(*) >= $now FROM evstream_events", 't', 60), $name);
}

sub relayed
{
	my ($topic) = @_;
	my $n = 0;
	$n += $_->[2] for watermarks($topic);
	return $n;
}

# ---- Switches ----

$node->safe_psql('postgres', 'CREATE DATABASE app');
$node->safe_psql('postgres', "ALTER DATABASE app SET evstream.kafka_topic = 'app'");
$node->safe_psql('postgres', "ALTER DATABASE app SET evstream.consumers = 2");
$node->safe_psql('app', "CREATE EXTENSION evstream; $clients_sql");
append_to_file(scratch_dir() . '/commit.sql', "SELECT act(1 + (random() * 5)::int);\n");
append_to_file(scratch_dir() . '/rollback.sql', "BEGIN;\nSELECT act(3);\nROLLBACK;\n");
my $rate = $long ? 1500 : 800;
my ($in, $out) = ('', '');
my $clients = IPC::Run::start(
	[ 'pgbench', '-n', '-c', 4, '-j', 1, '-R', $rate, '-T', $long ? 300 : 600, '-f', scratch_dir() . '/commit.sql@9',
		'-f', scratch_dir() . '/rollback.sql@1', $node->connstr('app') ], '<', \$in, '>', \$out, '2>&1');

goes_on('app', 'clients track through the embedded log');
use_kafka('app', 1);
goes_on('app', 'clients track through Kafka');

# With events in Kafka that are not consumed
$node->safe_psql('app', 'SELECT evstream_pause()');
ok(wait_for_sql($node, 'app', q{SELECT count(*) FROM evstream_workers WHERE state = 'paused'}, 2, 10), 'paused');
my $before = relayed('app');
my $tracked = $node->safe_psql('app', 'SELECT count(*) FROM app');
ok(wait_for_sql($node, 'app', "SELECT count(*) > $tracked + 500 FROM app", 't', 60), 'clients go on');
cmp_ok(relayed('app'), '>', $before, 'the relay goes on');
use_kafka('app', 0);
$node->safe_psql('app', 'SELECT evstream_resume()');
goes_on('app', 'what was relayed and not consumed comes from the outbox');

# With events that wait in the outbox
use_kafka('app', 1);
goes_on('app', 'on with Kafka');
kafka_pause();
$tracked = $node->safe_psql('app', 'SELECT count(*) FROM app');
ok(wait_for_sql($node, 'app', "SELECT count(*) > $tracked + 500 FROM app", 't', 60), 'the broker is frozen, clients go on');
use_kafka('app', 0);
goes_on('app', 'what waited comes from the outbox');
kafka_continue();

# To and fro
use_kafka('app', $_) for 1, 0, 1, 0, 1;
goes_on('app', 'after a few quick changes');
# pgbench ends by itself at this, as at the end of its time
$clients->signal('ALRM') unless $long;
$clients->finish;
is($clients->result(0), 0, 'no client met an error');
agree($node, 'app', 'with Kafka in the end');
use_kafka('app', 0);
$node->safe_psql('app', 'SELECT act(1000)');
agree($node, 'app', 'with the embedded log again');

# Kafka once more: records that were read locally come now.
use_kafka('app', 1);
$node->safe_psql('app', 'SELECT act(1000)');
my $ends;
for (1 .. 10)
{
	$ends = join(',', map { "$_->[0]:$_->[2]" } watermarks('app'));
	last if wait_for_sql($node, 'app', q{SELECT string_agg(log_partition || ':' || position, ',' ORDER BY log_partition) FROM evstream_lag}, $ends, 3);
}
agree($node, 'app', 'with all of Kafka consumed');

# A seek to the start does not count what was read locally.
$node->safe_psql('app', "SELECT evstream_seek('2020-01-01'::timestamptz, force => true)");
ok(wait_for_sql($node, 'app', 'SELECT bool_and(seek_id > 0) FROM evstream.partitions WHERE log_id > 2', 't', 20), 'a seek to the start');
ok(wait_for_sql($node, 'app', q{SELECT string_agg(log_partition || ':' || position, ',' ORDER BY log_partition) FROM evstream_lag}, $ends, 30), 'is read to the end');
agree($node, 'app', 'after a seek');

# ---- Two databases with default groups on one topic ----

$node->safe_psql('postgres', 'CREATE DATABASE one');
$node->safe_psql('postgres', 'CREATE DATABASE two');
for my $db (qw(one two))
{
	$node->safe_psql('postgres', "ALTER DATABASE $db SET evstream.kafka_brokers = '$kafka'");
	$node->safe_psql('postgres', "ALTER DATABASE $db SET evstream.kafka_topic = 'both'");
	$node->safe_psql($db, 'CREATE EXTENSION evstream');
}
$node->safe_psql($_, "SELECT count(evstream_track('$_', 'view')) FROM generate_series(1, 1000)") for qw(one two);
ok(wait_for_sql($node, $_, q{SELECT string_agg(user_id || '=' || event_count, ',' ORDER BY user_id) FROM evstream_daily_counts}, 'one=1000,two=1000', 60),
	"$_ counts what both have tracked") for qw(one two);
$node->safe_psql('postgres', "DROP DATABASE $_") for qw(one two);

# ---- A dump, restored in another server ----

my $other = new_node('other');
sub move
{
	my ($db, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$other->safe_psql('postgres', "CREATE DATABASE $db");
	$other->safe_psql('postgres', "ALTER DATABASE $db SET evstream.kafka_topic = 'app'");
	$other->safe_psql('postgres', "ALTER DATABASE $db SET evstream.kafka_group = 'evstream-app'");
	my ($err, $dump) = ('', scratch_dir() . "/$db.dump");
	ok(IPC::Run::run([ 'pg_dump', '-f', $dump, '-d', $node->connstr('app') ], '2>', \$err), "$name: pg_dump") or diag($err);
	ok(IPC::Run::run([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $other->connstr($db) ], '>', \my $ignored, '2>', \$err),
		"$name: psql") or diag($err);
	return;
}

# Embedded, with events that wait
use_kafka('app', 0);
$node->safe_psql('app', 'SELECT evstream_pause(); SELECT act(2000)');
move('local', 'embedded log');
$node->safe_psql('app', 'SELECT evstream_resume()');
ok(wait_for_sql($other, 'local', q{SELECT evstream_health() #>> '{components,workers,why}'}, 'this database was restored from a dump and is paused since', 20),
	'a restored database is paused, and health says so');
$other->safe_psql('local', 'SELECT act(500)');
is($other->safe_psql('local', "SELECT evstream_wait('1 s')"), 'f', 'events wait');
$other->safe_psql('local', 'SELECT evstream_resume()');
# the dump was of a paused database
$other->safe_psql('local', 'SELECT act(500)');
agree($other, 'local', 'restored, embedded log');

# With Kafka, and events that wait
use_kafka('app', 1);
$node->safe_psql('app', 'SELECT act(1000)');
agree($node, 'app', 'before the move');
kafka_pause();
$node->safe_psql('app', 'SELECT act(2000)');
move('moved', 'Kafka');
$node->safe_psql('postgres', 'ALTER DATABASE app SET evstream.enabled = off');
$node->safe_psql('app', 'SELECT evstream_restart()');
kafka_continue();
$other->safe_psql('postgres', "ALTER DATABASE moved SET evstream.kafka_brokers = '$kafka'");
$other->safe_psql('moved', 'SELECT evstream_restart()');
$other->safe_psql('moved', 'SELECT evstream_resume()');
ok(wait_for_sql($other, 'moved', q{SELECT evstream_health() #>> '{components,kafka,status}', evstream_health() #>> '{components,kafka,hint}' ~ 'evstream_take_over'},
	'down|t', 30), 'moved: health asks for evstream_take_over()');
$other->safe_psql('moved', 'SELECT evstream_take_over()');
$other->safe_psql('moved', 'SELECT act(500)');
agree($other, 'moved', 'moved, with Kafka');
ok(wait_for_sql($other, 'moved', q{SELECT evstream_health() #>> '{components,kafka,status}'}, 'ok', 20), 'moved: health is well');

# The former owner wakes up: it stops by itself.
$node->safe_psql('postgres', 'ALTER DATABASE app RESET evstream.enabled');
$node->safe_psql('app', 'SELECT evstream_restart()');
ok(wait_for_sql($node, 'app', q{SELECT evstream_health() #>> '{components,kafka,why}' LIKE '%belongs to another database%'}, 't', 30), 'the former owner stops');
$other->safe_psql('moved', 'SELECT act(500)');
agree($other, 'moved', 'beside the former owner');

is(log_lines($_, qr/PANIC|TRAP|terminated by signal|was terminated/), '', 'no worker crashed') for $node, $other;
$_->stop('fast') for $node, $other;
done_testing();
