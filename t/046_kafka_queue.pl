# A consumer that has fetched as much as it may hold asks its brokers something when half of
# that is taken. Where they do not answer in time, or with an error, all is consumed as well.
# While it has nothing yet, it reads what it needs for the first records.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamMock;
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# about 14 MB, most of what is held; the mock keeps no more than 5 MB of a partition
my $events = 70_000;
my $total = 0;

my $mock = EvstreamMock->new(1, scratch_dir() . '/kmock.log');
my $node = new_node('main', 'evstream.kafka_brokers' => $mock->address, extension => 1);

sub sql { return $node->safe_psql('postgres', @_); }

# Memory of the consumer's own, in kB
sub held
{
	my $pid = sql(q{SELECT COALESCE(max(pid), 0) FROM pg_stat_activity WHERE backend_type = 'evstream consumer'});
	open(my $file, '<', "/proc/$pid/status") or return 0;
	my ($size) = join('', <$file>) =~ /^RssAnon:\s+(\d+)/m;
	return $size // 0;
}

foreach my $case ([ 'answer in time' ], [ 'time out', 'rtt', 1, 250 ], [ 'fail', 'errors', 'offsets', ('NOT_LEADER_FOR_PARTITION', 'LEADER_NOT_AVAILABLE') x 20 ])
{
	my ($name, @fault) = @$case;
	my $topic = 'queue-' . ($name =~ tr/ /-/r);
	$mock->tell('topic', $topic, 4);
	evgen('--brokers', $mock->address, '--topic', $topic, '--events', $events, '--seed', length($name), '--users', 1000, '--zipf', 0.5);

	# paused, it fetches ahead: its position is that of before the first
	sql('SELECT evstream_pause()');
	sql("ALTER SYSTEM SET evstream.kafka_topic = '$topic'");
	sql("ALTER SYSTEM SET evstream.kafka_start = 'earliest'");
	$node->stop;
	$node->start;
	ok(wait_for_sql($node, 'postgres', q{SELECT state FROM evstream_workers WHERE role = 'consumer'}, 'paused', 60), "$name: paused");
	my $turns = 600;
	while (held() < 20_000 && $turns-- > 0) { select(undef, undef, undef, 0.1); }
	cmp_ok($turns, '>', 0, "$name: records are held");

	$mock->tell(@fault) if @fault;
	sql('SELECT evstream_resume()');
	$total += $events;
	ok(wait_for_sql($node, 'postgres', 'SELECT sum(event_count) FROM evstream_daily_totals', $total, 120), "$name: all are counted, once");
	$mock->tell('clear');
	$mock->tell('rtt', 1, 0);
}

# A consumer that begins reads the ids that it has to know before a record comes.
my $reads = q{SELECT sum(heap_blks_read + heap_blks_hit) FROM pg_statio_all_tables WHERE schemaname = 'evstream' AND relname ~ '^ids_'};
sql('SELECT evstream_pause()');
$node->stop;
$node->start;
ok(wait_for_sql($node, 'postgres', q{SELECT state FROM evstream_workers WHERE role = 'consumer'}, 'paused', 60), 'paused, with nothing to fetch');
my $before = sql($reads);
sql('SELECT evstream_resume()');
ok(wait_for_sql($node, 'postgres', "SELECT ($reads) > $before", 't', 60), 'it reads ids');
is(sql('SELECT sum(event_count) FROM evstream_daily_totals'), $total, 'without a record');

$node->stop;
is(log_lines($node, qr/evstream \w+ (?:ERROR|FATAL|PANIC):/), '', 'nothing to complain of');
done_testing();
