# Faults during a stream: a consumer that is killed, a server stopped at once, a broker that
# is killed, stopped or frozen. Afterwards all is counted, once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $long = $ENV{EVSTREAM_LONG};
my $events = $long ? 1_000_000 : 200_000;
my $rate = $long ? 12_000 : 4_000;

my $kafka = kafka_start('log.retention.ms=-1');
make_topic('evstream.events', 4);
my $node = new_node('main', 'evstream.kafka_brokers' => $kafka, 'evstream.consumers' => 2,
	'evstream.batch_size' => 2000, extension => 1);
my $prefix = scratch_dir() . '/truth';
my $gen = evgen_start('--brokers', $kafka, '--topic', 'evstream.events', '--events', $events, '--seed', 50,
	'--rate', $rate, '--duplicates', 5, '--broken', 1, '--late', 2, '--tombstones', 1, '--truth', $prefix);

my $seen = 'SELECT COALESCE(sum(event_count), 0) FROM evstream_daily_totals';

# Consumption goes on: some thousand events more than now.
sub goes_on
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $now;
	wait_for_sql($node, 'postgres', 'SELECT 1', 1, 30);
	$now = $node->safe_psql('postgres', $seen);
	return ok(wait_for_sql($node, 'postgres', "SELECT ($seen) > " . ($now + 3000) . " OR ($seen) >= $events", 't', 60), $name);
}

sub consumers
{
	return split(/\n/, $node->safe_psql('postgres', "SELECT pid FROM evstream_workers WHERE role = 'consumer' AND pid IS NOT NULL ORDER BY started_at"));
}

sub set_consumers
{
	my ($n) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->safe_psql('postgres', "ALTER SYSTEM SET evstream.consumers = $n");
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
	return ok(wait_for_sql($node, 'postgres', "SELECT count(*) FROM evstream_workers WHERE role = 'consumer' AND pid IS NOT NULL", $n, 15), "$n consumers");
}

# Warnings and errors of the workers since an offset in the log.
sub worker_lines
{
	my ($offset) = @_;
	return count_log($node, qr/evstream (?:consumer|maintenance|relay|launcher) (?:WARNING|ERROR|FATAL|PANIC):/, $offset);
}

goes_on('the stream is consumed');
my $started = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');

# ---- The server's side ----

foreach my $round (1, 2)
{
	my $offset = -s $node->logfile;
	kill 'KILL', (consumers())[0];
	$node->wait_for_log(qr/all server processes terminated; reinitializing/, $offset);
	$node->poll_query_until('postgres', 'SELECT count(*) >= 2 FROM evstream_workers WHERE pid IS NOT NULL')
	  or diag('the server does not come back');
	goes_on("after kill -9 of a consumer ($round)");
}
is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $started, 'the postmaster has lived on');
set_consumers(3);
goes_on('with three consumers');

$node->stop('immediate');
$node->start;
goes_on('after an immediate stop of the server');

# ---- The broker's side ----

sub degraded
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(wait_for_sql($node, 'postgres', q{SELECT h ->> 'status', h #>> '{components,kafka,status}', h #>> '{components,kafka,why}' ~ 'could not reach Kafka'
		FROM evstream_health() h}, 'degraded|degraded|t', 30), $name);
}

my $offset = -s $node->logfile;
kafka_kill();
degraded('the broker was killed: health says so');
kafka_start();
goes_on('after kill -9 of the broker');
ok(wait_for_sql($node, 'postgres', "SELECT evstream_health() #>> '{components,kafka,status}'", 'ok', 30), 'and health is well');
cmp_ok(worker_lines($offset), '<=', 6, 'the log has a few lines');
set_consumers(1);
goes_on('with one consumer');

$offset = -s $node->logfile;
my $begin = time();
kafka_pause();
degraded('the broker is frozen: health says so');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evstream_workers WHERE pid IS NOT NULL'), 3, 'no worker is gone');
sleep(15 - (time() - $begin)) if time() - $begin < 15;
kafka_continue();
goes_on('after the broker was frozen');
ok(wait_for_sql($node, 'postgres', "SELECT evstream_health() #>> '{components,kafka,status}'", 'ok', 30), 'and health is well');
cmp_ok(worker_lines($offset), '<=', 4, 'the log has a few lines');
set_consumers(2);

# Both at once.
kafka_kill();
$node->stop('immediate');
$node->start;
degraded('started without a broker: health says so');
kafka_start();
goes_on('after both were ended');
kafka_stop();
kafka_start();
goes_on('after a restart of the broker in order');

# ---- The end ----

$gen->finish;
is($gen->result(0), 0, 'the stream is sent');
my $ends = join(',', map { "$_->[0]:$_->[2]" } watermarks('evstream.events'));
ok(wait_for_sql($node, 'postgres', q{SELECT string_agg(log_partition || ':' || position, ',' ORDER BY log_partition) FROM evstream_lag},
	$ends, 300), 'and consumed');
is(join("\n", compare_truth($node, 'postgres', $prefix)), '', 'counts and dead letters are the truth');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evstream_events'), $events, 'each event is stored once');
is($node->safe_psql('postgres', 'SELECT count(DISTINCT (log_id, log_partition, log_offset)), count(DISTINCT event_id) FROM evstream.events'), "$events|$events", 'in a place of its own');
is($node->safe_psql('postgres', 'SELECT max(incarnation) FROM evstream.logs WHERE topic IS NOT NULL'), 1, 'the topic was never taken for another');
is($node->safe_psql('postgres', "SELECT string_agg(role, ',' ORDER BY role) FROM evstream_workers WHERE pid IS NOT NULL"),
	'consumer,consumer,maintenance,relay', 'all workers run');
is(log_lines($node, qr/expired before they were consumed/), '', 'nothing was passed over');
is(log_lines($node, qr/was terminated by signal (?!9:)/), '', 'no worker crashed by itself');
is(count_log($node, qr/was terminated by signal 9:/), 2, 'but for the two that were killed');
$node->stop('fast');
done_testing();
