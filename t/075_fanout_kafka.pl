# Fan-out of what comes through Kafka: four partitions, two consumers, and kills.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use EvstreamTruth;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = kafka_start();
my $node = new_node('main',
	'evstream.kafka_brokers' => $kafka,
	'evstream.consumers' => 2,
	'evstream.batch_size' => 100,
	'evstream.redis_url' => redis_start(),
	'evstream.stream_maxlen' => 1000000,
	extension => 1);

sub sql { return $node->safe_psql('postgres', @_); }

ok(wait_for_sql($node, 'postgres', q{SELECT count(*) FROM evstream_workers WHERE pid IS NOT NULL AND role IN ('consumer', 'notifier')}, 3),
	'two consumers and a notifier');
random_filters($node, 1000);
my $prefix = scratch_dir() . '/truth';
ok(wait_for_sql($node, 'postgres', 'SELECT count(*) FROM evstream_lag', 4, 60), 'the topic is made');
evgen('--json', "$prefix.json", '--events', 10000, '--seed', 8, '--users', 300, '--zipf', 0.8, '--duplicates', 2, '--broken', 1,
	'--truth', $prefix);
my @records = map { [ /"user_id":"([^"]+)"/ ? $1 : undef, $_ ] } split(/\n/, slurp_file("$prefix.json"));
my $each = int(@records / 10);
kill_in_turn($node, 10, sub { produce('evstream.events', [ splice(@records, 0, $_[0] < 10 ? $each : @records) ]); return; });
is(scalar(@records), 0, 'all of it is produced');
ok(wait_for_sql($node, 'postgres', 'SELECT count(*) FROM evstream_events', 10000, 120), 'all events are stored');
ok(wait_for_sql($node, 'postgres', q{SELECT bool_and(lag = 0) FROM evstream_lag}, 't', 60), 'no record is left');
ok(wait_for_sql($node, 'postgres', q{SELECT evstream_wait('60 s')}, 't', 120), 'and sent');
# evstream_wait() speaks of what was tracked here; these came from elsewhere
ok(wait_for_sql($node, 'postgres', q{SELECT bool_and(c.received_at >= e.received_at)
	FROM (SELECT log_id, log_partition, max(received_at) AS received_at FROM evstream.events GROUP BY 1, 2) e
		LEFT JOIN evstream.notifier_cursors c USING (log_id, log_partition)}, 't'), 'to the end of each partition');
is(sql('SELECT count(DISTINCT log_partition) FROM evstream_events'), 4, 'from four partitions');
is_deeply([ compare_truth($node, 'postgres', $prefix) ], [], 'counts are the truth');
streams_are_truth($node, 'through Kafka');

unlike(slurp_file($node->logfile), qr/signal 11|PANIC|TRAP/, 'no crash but our own');
$node->stop;
done_testing();
