# A broker that refuses a batch and takes the one behind it: librdkafka then reports both as
# delivered, although the first is not there. Real brokers do so with the first batches of
# a producer, when they have just become leader of a new partition.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamMock;
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = EvstreamMock->new(1, scratch_dir() . '/kmock.log');
$mock->tell('topic', 'evstream.events', 1);
# so that there are several requests on their way
$mock->tell('rtt', 1, 1);

my $node = new_node('main', 'evstream.kafka_brokers' => $mock->address, extension => 1);
my $n = 0;

sub sql { return $node->safe_psql('postgres', @_); }

ok(wait_for_sql($node, 'postgres', q{SELECT count(*) FROM evstream_workers WHERE role IN ('relay', 'consumer') AND state = 'idle'}, 2, 60), 'the workers are ready');

foreach my $error (qw(NOT_LEADER_FOR_PARTITION LEADER_NOT_AVAILABLE NOT_ENOUGH_REPLICAS UNKNOWN_TOPIC_OR_PART))
{
	foreach (1 .. 60)
	{
		my $sql = '';
		foreach (1 .. 50)
		{
			$n++;
			$sql .= "SELECT evstream_track('u$n', 'view', '{\"n\": $n}');\n";
		}
		$mock->tell('errors', 'produce', $error);
		# each in a transaction of its own
		sql($sql);
	}
	$mock->tell('clear');
	is(sql(q{SELECT evstream_wait('120 s')}), 't', "$error: all is stored");
	is( sql(q{SELECT count(*), count(DISTINCT properties -> 'n'), (SELECT sum(event_count) FROM evstream_daily_totals) FROM evstream_events}),
		"$n|$n|$n", "$error: each is counted, once");
}

$node->stop;
is(log_lines($node, qr/evstream \w+ (?:ERROR|FATAL|PANIC):/), '', 'nothing to complain of');
done_testing();
