# Whose a Kafka group and a Redis prefix are: of databases of one server, of two servers, and
# of two that are copies of one data directory.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use EvstreamTorture::World;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = kafka_start('log.retention.ms=-1');
my $redis = redis_start();
my $base = 1_767_312_000_000;
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

sub send_more
{
	my ($topic, $n) = @_;
	return produce($topic, [ map { [ undef, '{"user_id":"u","event":"view"}', $_ % 2, $base + 1000 * $_ ] } 0 .. $n - 1 ]);
}

my $count = 'SELECT COALESCE(sum(event_count), 0) FROM evstream_daily_counts';

# What is said of the group or the prefix, without the mark.
sub why { return "SELECT evstream_health() #>> '{components,$_[0],status}', regexp_replace(evstream_health() #>> '{components,$_[0],why}', ' \\(mark .*', '')"; }

sub stops
{
	my ($server, $db, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(wait_for_sql($server, $db, why('kafka'), 'down|the Kafka group "shared" belongs to another database'), $name);
}

sub counts
{
	my ($server, $db, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(wait_for_sql($server, $db, $count, $expected), $name);
}

# ---- Databases of one server, and of two ----

make_topic('shared', 2);
send_more('shared', 100);
new_db('first', kafka_topic => 'shared', kafka_group => 'shared', consumers => 2);
counts($node, 'first', 100, 'the first database of a group');
my $end = time() + 60;
sleep(1) until (grep { $_->[2] == 50 && $_->[3] =~ /^evstream/ } group_offsets('shared')) == 2 || time() > $end;
is(scalar(grep { $_->[2] == 50 && $_->[3] =~ /^evstream/ } group_offsets('shared')), 2, 'has put its mark');
my $offset = -s $node->logfile;
new_db('second', kafka_topic => 'shared', kafka_group => 'shared');
stops($node, 'second', 'a second one stops, and health says why');
like($node->safe_psql('second', "SELECT evstream_health() #>> '{components,kafka,hint}'"), qr/evstream_take_over\(\)/, 'and what to do');
is($node->safe_psql('second', $count), 0, 'it has counted nothing');
send_more('shared', 100);
counts($node, 'first', 200, 'the first one goes on');
is($node->safe_psql('second', 'SELECT evstream_take_over()'), 't', 'the second one takes over');
counts($node, 'second', 200, 'and consumes, and counts all');
stops($node, 'first', 'the first one stops');
ok(wait_for_sql($node, 'first', "SELECT count(*) FROM evstream_workers WHERE role = 'consumer' AND state = 'stopped'", 2), 'with both consumers');
send_more('shared', 20);
counts($node, 'second', 220, 'the second one goes on');
is($node->safe_psql('first', $count), 200, 'the first one has counted nothing since');
cmp_ok(count_log($node, qr/the Kafka group "shared" belongs to another database/, $offset), '<=', 3, 'logged once by each consumer that stops');

my $other = new_node('other', 'evstream.kafka_brokers' => $kafka, 'evstream.kafka_topic' => 'shared',
	'evstream.kafka_group' => 'shared', extension => 1);
stops($other, 'postgres', 'a database of another server stops as well');
$other->safe_psql('postgres', 'SELECT evstream_take_over()');
counts($other, 'postgres', 220, 'until it takes over');
stops($node, 'second', 'then the former owner stops');
$node->safe_psql('first', 'SELECT evstream_take_over()');
counts($node, 'first', 220, 'the first one takes the group back, and goes on where it was');
stops($other, 'postgres', 'the other server stops');
$other->stop('fast');

# One that was dropped does not hold the group from who comes after it.
$node->safe_psql('postgres', 'DROP DATABASE first');
new_db('third', kafka_topic => 'shared', kafka_group => 'shared');
counts($node, 'third', 220, 'a database that is created after the owner was dropped');
$node->stop('fast');

# ---- Copies of one data directory ----

my %settings = ('evstream.kafka_brokers' => $kafka, 'evstream.kafka_topic' => 'copied', 'evstream.kafka_group' => 'copied', 'evstream.redis_url' => $redis);
my $foreign = q{SELECT string_agg(component || ' ' || code, ', ' ORDER BY component) FROM evstream.problems() WHERE code = 'foreign_mark'};
my $copied = 'a copy of this database, or to the extension that was here before';

# One owns group and prefix, the other one stops and says so.
sub owned
{
	my ($owner, $stopped, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(wait_for_sql($stopped, 'postgres', $foreign, 'kafka foreign_mark, redis foreign_mark'), "$name: one stops");
	like($stopped->safe_psql('postgres', why($_)), qr/belongs to $copied/, "$name: health says why, of $_") foreach qw(kafka redis);
	ok(wait_for_sql($owner, 'postgres', $foreign, ''), "$name: the other does not");
	my $before = $stopped->safe_psql('postgres', $count);
	send_more('copied', 10);
	counts($owner, 'postgres', $expected, "$name: it consumes");
	is($owner->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', "$name: and sends");
	is($stopped->safe_psql('postgres', $count), $before, "$name: it alone");
	return;
}

make_topic('copied', 2);
send_more('copied', 100);
my ($one, $two) = map { EvstreamTorture::World::make_node($_, 'template', %settings) } qw(one two);
$_->start foreach ($one, $two);
my $identity = q{SELECT c.system_identifier, d.oid FROM pg_control_system() c, pg_database d WHERE d.datname = current_database()};
is($one->safe_psql('postgres', $identity), $two->safe_psql('postgres', $identity), 'system and database are the same');
$one->safe_psql('postgres', 'CREATE EXTENSION evstream; SELECT evstream_subscribe($$all$$)');
counts($one, 'postgres', 100, 'a copy consumes');
is($one->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', 'and sends');
$two->safe_psql('postgres', 'CREATE EXTENSION evstream; SELECT evstream_subscribe($$all$$)');
owned($two, $one, 110, 'the later one');
$one->safe_psql('postgres', 'SELECT evstream_take_over()');
owned($one, $two, 120, 'taken over');
$two->safe_psql('postgres', 'SELECT evstream_take_over()');
owned($two, $one, 130, 'and back');

# A database of the other one is not here, which does not mean that it was dropped.
$one->safe_psql('postgres', 'CREATE DATABASE shop');
$one->safe_psql('shop', 'CREATE EXTENSION evstream; SELECT evstream_take_over()');
counts($one, 'shop', 130, 'a database that the other copy has not takes over');
ok(wait_for_sql($two, 'postgres', why('kafka'), 'down|the Kafka group "copied" belongs to another database'), 'that one stops');
$two->safe_psql('postgres', 'SELECT evstream_take_over()');
ok(wait_for_sql($one, 'shop', why('kafka'), 'down|the Kafka group "copied" belongs to another database'), 'and takes over');
$one->stop('fast');

# ---- The extension created anew ----

$two->safe_psql('postgres', 'DROP EXTENSION evstream; CREATE EXTENSION evstream');
counts($two, 'postgres', 130, 'created anew: it goes on by itself, and counts the topic');
is($two->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', 'Redis, too');
is($two->safe_psql('postgres', $foreign), '', 'and health is well');
# by a clock that was ahead
$two->safe_psql('postgres', 'UPDATE evstream.identity SET claim = claim + 1000000; SELECT evstream_restart()');
$end = time() + 60;
my $claim = $two->safe_psql('postgres', 'SELECT claim FROM evstream.identity');
sleep(1) until (grep { $_->[3] =~ m{/$claim$} } group_offsets('copied')) == 2 || time() > $end;
$two->safe_psql('postgres', 'DROP EXTENSION evstream; CREATE EXTENSION evstream');
ok(wait_for_sql($two, 'postgres', why('kafka'), "down|the Kafka group \"copied\" belongs to $copied"), 'after a step of the clock it asks first');
like($two->safe_psql('postgres', "SELECT evstream_health() #>> '{components,kafka,hint}'"), qr/evstream_take_over\(\)/, 'says how');
$two->safe_psql('postgres', 'SELECT evstream_take_over()');
counts($two, 'postgres', 130, 'and is let in');

is(log_lines($_, qr/PANIC|TRAP|terminated by signal|was terminated/), '', 'no worker crashed') foreach ($node, $other, $one, $two);
$two->stop('fast');
done_testing();
