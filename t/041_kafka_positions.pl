# Where consumption begins and goes on: starts, seeks, topics made again, records that
# expired, and consumers that come and go.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $long = $ENV{EVSTREAM_LONG};
# Some records are of long ago.
my $kafka = kafka_start('log.retention.ms=-1');
my $node = new_node('main', 'evstream.kafka_brokers' => $kafka, max_worker_processes => 40);

# A database that reads a topic, as one would set it up.
sub new_db
{
	my ($name, %settings) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql('postgres', "ALTER DATABASE $name SET evstream.$_ = '$settings{$_}'") for sort keys %settings;
	$node->safe_psql($name, 'CREATE EXTENSION evstream');
	return;
}

# Positions of all partitions of a topic's newest incarnation, as they are committed.
my $positions = q{SELECT string_agg(log_partition || ':' || position, ',' ORDER BY log_partition) FROM (
	SELECT p.log_partition, COALESCE(max(b.to_offset), p.start_offset) AS position
	FROM evstream.partitions p LEFT JOIN evstream.batch_log b USING (log_id, log_partition, generation)
	WHERE p.log_id = (SELECT max(log_id) FROM evstream.logs WHERE topic = '%s')
	GROUP BY p.log_partition, p.start_offset) p};

sub consumed
{
	my ($db, $topic, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(wait_for_sql($node, $db, sprintf($positions, $topic), $expected, 60), $name);
}

sub count_is
{
	my ($db, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($node->safe_psql($db, 'SELECT COALESCE(sum(event_count), 0) FROM evstream_daily_counts'), $expected, $name);
}

# Records without ids: user, partition, time.
sub records
{
	my ($n, $partitions, $time) = @_;
	return [ map { [ undef, '{"user_id":"u","event":"view"}', $_ % $partitions, $time + 1000 * $_ ] } 0 .. $n - 1 ];
}

# ---- Where a topic begins ----

my $base = 1_767_312_000_000;
make_topic('existing', 2);
produce('existing', records(1000, 2, $base));
new_db('earliest', kafka_topic => 'existing');
new_db('latest', kafka_topic => 'existing', kafka_start => 'latest');
new_db('dated', kafka_topic => 'existing', kafka_start => '2026-01-02 00:06:40+00');
consumed('latest', 'existing', '0:500,1:500', 'latest begins at the end');
consumed('dated', 'existing', '0:500,1:500', 'a timestamp: consumed to the end');
consumed('earliest', 'existing', '0:500,1:500', 'earliest: consumed to the end');
count_is('earliest', 1000, 'earliest takes all there is');
count_is('dated', 600, 'a timestamp takes what is not older');
count_is('latest', 0, 'latest takes nothing of what was there');
produce('existing', records(10, 2, $base + 2_000_000));
consumed('latest', 'existing', '0:505,1:505', 'latest goes on');
count_is('latest', 10, 'with what came after');

# Partitions that are added later begin at their start, with latest too.
alter_topic('existing', 4);
produce('existing', [ map { [ undef, '{"user_id":"u","event":"view"}', 2 + $_ % 2, $base + 1000 * $_ ] } 0 .. 19 ]);
consumed($_, 'existing', '0:505,1:505,2:10,3:10', "$_: new partitions are picked up") for qw(earliest latest dated);
count_is('earliest', 1030, 'earliest counts all of them');
count_is('latest', 30, 'latest too');
count_is('dated', 630, 'a timestamp too');

# Each group mirrors the positions, with the mark of its owner.
my $uuid = $node->safe_psql('earliest', 'SELECT mark FROM evstream.identity');
my $end = time() + 20;
my @mirror;
do
{
	@mirror = sort map { "$_->[0]:$_->[1]:$_->[2]" } group_offsets('evstream-earliest');
} until (grep { $_ eq 'existing:3:10' } @mirror) || time() > $end;
is(join(' ', @mirror), 'existing:0:505 existing:1:505 existing:2:10 existing:3:10', 'committed offsets mirror the positions');
is(scalar(grep { $_->[3] =~ m{^evstream/$uuid/} } group_offsets('evstream-earliest')), 4, 'with the mark of the owner');
is(scalar(group_offsets("evstream-$_")), 4, "evstream-$_ is a group of its own") for qw(latest dated);

# ---- Seeks ----

sub seek_done
{
	my ($db, $partition) = @_;
	return wait_for_sql($node, $db, "SELECT bool_and(seek_id = (SELECT max(seek_id) FROM evstream.seeks)) FROM evstream.partitions
		WHERE log_id > 2 AND ($partition < 0 OR log_partition = $partition)", 't', 20);
}

$node->safe_psql('earliest', 'SELECT evstream_seek(0, 0)');
ok(seek_done('earliest', 0), 'a seek is taken up');
consumed('earliest', 'existing', '0:505,1:505,2:10,3:10', 'and the records are read again');
count_is('earliest', 1030, 'a seek back: nothing is counted twice');
is($node->safe_psql('earliest', 'SELECT count(*) FROM evstream_events'), 1030, 'or stored twice');
$node->safe_psql('earliest', "SELECT evstream_seek('2026-01-01'::timestamptz)");
ok(seek_done('earliest', -1), 'a seek of all partitions');
consumed('earliest', 'existing', '0:505,1:505,2:10,3:10', 'is read to the end');
count_is('earliest', 1030, 'a seek back by time: nothing is counted twice');

$node->safe_psql('earliest', 'SELECT evstream_seek(1, 100, force => true)');
ok(seek_done('earliest', 1), 'a forced seek is taken up');
consumed('earliest', 'existing', '0:505,1:505,2:10,3:10', 'and read to the end');
count_is('earliest', 1030, 'a forced seek within the window: ids are recognised');
$node->safe_psql('earliest', 'DELETE FROM evstream.ids; SELECT evstream_seek(0, 100, force => true)');
ok(seek_done('earliest', 0), 'a forced seek beyond the window');
consumed('earliest', 'existing', '0:505,1:505,2:10,3:10', 'is read to the end');
count_is('earliest', 1435, 'a forced seek beyond the window: the records count again');

$node->safe_psql('earliest', 'SELECT evstream_pause()');
produce('existing', [ map { [ undef, '{"user_id":"u","event":"view"}', 0, $base ] } 1 .. 100 ]);
$node->safe_psql('earliest', 'SELECT evstream_seek(0, 595)');
ok(seek_done('earliest', 0), 'a seek forward, while paused');
$node->safe_psql('earliest', 'SELECT evstream_resume()');
consumed('earliest', 'existing', '0:605,1:505,2:10,3:10', 'goes on there');
count_is('earliest', 1445, 'a seek forward: what is between is passed over');
$node->safe_psql('earliest', 'SELECT evstream_seek(0, 500)');
ok(seek_done('earliest', 0), 'a seek back again');
consumed('earliest', 'existing', '0:605,1:505,2:10,3:10', 'is read to the end');
count_is('earliest', 1535, 'what was passed over counts, and nothing twice');

consumed('dated', 'existing', '0:605,1:505,2:10,3:10', 'the one that began at a time');
count_is('dated', 730, 'before its seek');
$node->safe_psql('dated', "SELECT evstream_seek('2026-01-02 00:01:40+00'::timestamptz)");
ok(seek_done('dated', -1), 'a seek to before where it began');
consumed('dated', 'existing', '0:605,1:505,2:10,3:10', 'is read to the end');
count_is('dated', 1030, 'takes what is between, nothing twice');

new_db('later', kafka_topic => 'existing', enabled => 'off');
$node->safe_psql('later', 'SELECT evstream_seek(0, 600); SELECT evstream_seek(9, 1)');
$node->safe_psql('postgres', 'ALTER DATABASE later RESET evstream.enabled');
$node->safe_psql('later', 'SELECT evstream_restart()');
consumed('later', 'existing', '0:605,1:505,2:10,3:10', 'a seek before the first start');
count_is('later', 530, 'says where it begins');
$node->safe_psql('postgres', "DROP DATABASE $_") for qw(later dated latest earliest);

# ---- Topics made again ----

make_topic('made', 2);
produce('made', records(200, 2, $base));
new_db('made', kafka_topic => 'made', consumers => 2);
consumed('made', 'made', '0:100,1:100', 'a topic is consumed');
my $offset = -s $node->logfile;
$node->stop('fast');
delete_topic('made');
make_topic('made', 2);
produce('made', records(300, 2, $base + 1));
$node->start;
consumed('made', 'made', '0:150,1:150', 'the topic was made again while the server was down');
count_is('made', 500, 'all of it counts');
is($node->safe_psql('made', 'SELECT count(DISTINCT event_id) FROM evstream_events'), 500, 'with ids of their own');
is($node->safe_psql('made', "SELECT string_agg(incarnation::text, ',' ORDER BY log_id) FROM evstream.logs WHERE topic = 'made'"), '1,2', 'once');
cmp_ok(count_log($node, qr/topic "made" was made again/, $offset), '<=', 2, 'the log says so, once for each consumer');

$node->stop('fast');
delete_topic('made');
make_topic('made', 2);
produce('made', records(20, 2, $base));
$node->start;
consumed('made', 'made', '0:10,1:10', 'made again, with fewer records than before');
count_is('made', 520, 'all of it counts');

delete_topic('made');
my $no_topic = q{SELECT evstream_health() #>> '{components,kafka,why}'};
ok(wait_for_sql($node, 'made', $no_topic, 'Kafka has no topic "made"', 20), 'deleted under running consumers: health says so');
make_topic('made', 1);
produce('made', records(30, 1, $base));
consumed('made', 'made', '0:30', 'and made again, with fewer partitions');
count_is('made', 550, 'all of it counts');
delete_topic('made');
ok(wait_for_sql($node, 'made', $no_topic, 'Kafka has no topic "made"', 20), 'deleted once more');
make_topic('made', 4);
produce('made', records(80, 4, $base + 7));
consumed('made', 'made', '0:20,1:20,2:20,3:20', 'and made again, with more partitions');
count_is('made', 630, 'all of it counts');
is($node->safe_psql('made', 'SELECT count(DISTINCT event_id) FROM evstream_events'), 630, 'with ids of their own');
ok(wait_for_sql($node, 'made', "SELECT evstream_health() #>> '{components,kafka,status}'", 'ok', 20), 'and health is well');

# ---- A seek, and topics that come after it ----

make_topic('sought', 1);
produce('sought', records(100, 1, $base));
new_db('sought', kafka_topic => 'sought');
consumed('sought', 'sought', '0:100', 'consumed before the seek');
$node->safe_psql('sought', q{SELECT evstream_seek('1900-01-01'::timestamptz)});
ok(seek_done('sought', 0), 'a seek to the start');
consumed('sought', 'sought', '0:100', 'what was consumed is passed over');
count_is('sought', 100, 'nothing counts twice');
$node->safe_psql('sought', q{SELECT evstream_seek('2100-01-01'::timestamptz)});
ok(seek_done('sought', 0), 'a seek to the end');
ok(wait_for_sql($node, 'sought', 'SELECT bool_and(settled_at IS NOT NULL) FROM evstream.seeks', 't', 20), 'it is settled');
# as a consumer does that stores a batch at the former position
my $storing = $node->background_psql('sought');
$storing->query_safe('BEGIN; SELECT FROM evstream.partitions FOR KEY SHARE');
$node->safe_psql('sought', q{SELECT evstream_seek('2100-01-01'::timestamptz)});
ok(wait_for_sql($node, 'sought', q{SELECT count(*) > 0 FROM pg_stat_activity
	WHERE datname = current_database() AND backend_type LIKE 'evstream consumer%' AND wait_event_type = 'Lock'}, 't', 20),
	'a seek waits for a batch that is being stored');
$storing->query_safe('ROLLBACK');
$storing->quit;
ok(seek_done('sought', 0), 'and is done when that has ended');
my ($rc, $out, $err) = $node->psql('sought', 'SELECT evstream_seek(7, 0)');
like($err, qr/topic "sought" has no partition 7/, 'a partition that is not there cannot be sought');
make_topic('later', 1);
produce('later', records(100, 1, $base));
$node->safe_psql('postgres', q{ALTER DATABASE sought SET evstream.kafka_read_topics = 'later'});
$node->safe_psql('sought', 'SELECT evstream_restart()');
consumed('sought', 'later', '0:100', 'a topic that is added after a seek begins as kafka_start says');
count_is('sought', 200, 'all of it counts');
# no row of the position's own generation tells the topic again
ok(wait_for_sql($node, 'sought', q{SELECT max(generation) FROM evstream.batch_log b JOIN evstream.logs USING (log_id)
	WHERE topic = 'sought'}, 1, 20), 'nothing was consumed since the last seek');
$node->stop('fast');
delete_topic('sought');
make_topic('sought', 1);
produce('sought', records(150, 1, $base + 3));
$node->start;
consumed('sought', 'sought', '0:150', 'made again after a seek');
count_is('sought', 350, 'all of it counts');
$node->safe_psql('postgres', 'DROP DATABASE sought');
new_db('sought', kafka_topic => 'sought');
consumed('sought', 'sought', '0:150', 'a database of the name of one that was dropped starts clean');
$node->safe_psql('postgres', 'DROP DATABASE sought');

# ---- Records that expired before they were consumed ----

make_topic('expiring', 2);
new_db('expiring', kafka_topic => 'expiring');
produce('expiring', records(20, 2, $base));
consumed('expiring', 'expiring', '0:10,1:10', 'the first records');
$offset = -s $node->logfile;
$node->stop('fast');
produce('expiring', records(180, 2, $base));
trim_topic('expiring', 0, 60);
trim_topic('expiring', 1, 10);
$node->start;
consumed('expiring', 'expiring', '0:100,1:100', 'what is left is consumed');
count_is('expiring', 150, 'and counted');
my $gap = 'records 10 to 59 of partition 0 of topic "expiring" expired before they were consumed';
is($node->safe_psql('expiring', "SELECT evstream_health() #>> '{components,kafka,why}'"), $gap, 'health tells of the gap');
$node->safe_psql('expiring', 'SELECT evstream_seek(1, 100)');
ok(seek_done('expiring', 1), 'time passes');
is($node->safe_psql('expiring', "SELECT evstream_health() #>> '{components,kafka,why}'"), $gap, 'still');
is(count_log($node, qr/expired before they were consumed/, $offset), 1, 'the log once');
$node->safe_psql('expiring', 'SELECT evstream_restart()');
ok(wait_for_sql($node, 'expiring', "SELECT evstream_health() #>> '{components,kafka,status}'", 'ok', 20), 'until a restart');
$node->safe_psql('postgres', "DROP DATABASE $_") for qw(expiring made);

# ---- Consumers, the extension and the database come and go in mid-stream ----

my $events = $long ? 1_000_000 : 150_000;
my $prefix = scratch_dir() . '/truth';
my $seen = 'SELECT COALESCE(sum(event_count), 0)';
make_topic('stream', 4);
new_db('stream', kafka_topic => 'stream', consumers => 2, batch_size => 2000);
my $gen = evgen_start('--brokers', $kafka, '--topic', 'stream', '--events', $events, '--seed', 41, '--rate', 20000,
	'--duplicates', 5, '--broken', 1, '--late', 2, '--truth', $prefix);
my $share = 0;
for my $consumers (3, 1, 2)
{
	$share += 0.2;
	ok(wait_for_sql($node, 'stream', "$seen >= " . int($share * $events) . ' FROM evstream_daily_totals', 't', 120), "a part of the stream");
	$node->safe_psql('postgres', "ALTER DATABASE stream SET evstream.consumers = $consumers");
	$node->safe_psql('stream', 'SELECT evstream_restart()');
	ok(wait_for_sql($node, 'stream', "SELECT count(*) FROM evstream_workers WHERE role = 'consumer' AND pid IS NOT NULL", $consumers, 10), "then there are $consumers consumers");
}
$gen->finish;
is($gen->result(0), 0, 'the stream is sent');

sub at_end
{
	my ($db) = @_;
	my $ends = join(',', map { "$_->[0]:$_->[2]" } watermarks('stream'));
	return wait_for_sql($node, $db, sprintf($positions, 'stream'), $ends, 300);
}
ok(at_end('stream'), 'and consumed');
is(join("\n", compare_truth($node, 'stream', $prefix)), '', 'changed consumers: the counts are the truth');

# It does not wait for what the workers wait for, as long as that may take.
sub returns
{
	my ($db, $sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($out, $err) = ('', '');
	return is($node->psql($db, "SET statement_timeout = '30 s'; $sql", stdout => \$out, stderr => \$err, on_error_stop => 1), 0, $name) || diag($err);
}
returns('stream', 'DROP EXTENSION evstream', 'DROP EXTENSION returns');
$node->safe_psql('stream', 'CREATE EXTENSION evstream');
ok(wait_for_sql($node, 'stream', "$seen > 20000 FROM evstream_daily_totals", 't', 60), 'the topic is counted anew');
returns('stream', 'DROP EXTENSION evstream', 'DROP EXTENSION returns in mid-stream');
$node->safe_psql('stream', 'CREATE EXTENSION evstream');
ok(at_end('stream'), 'consumed from the start again');
is(join("\n", compare_truth($node, 'stream', $prefix)), '', 'created again: the counts are the truth');

new_db('dropped', kafka_topic => 'stream', consumers => 2, batch_size => 1000);
ok(wait_for_sql($node, 'dropped', "$seen > 5000 FROM evstream_daily_totals", 't', 60), 'another database in mid-stream');
returns('postgres', 'DROP DATABASE dropped', 'DROP DATABASE returns in mid-stream');

is(log_lines($node, qr/PANIC|TRAP|terminated by signal|was terminated/), '', 'no worker crashed');
$node->stop('fast');
done_testing();
