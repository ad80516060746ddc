# Fan-out when the database is another one: a standby that lagged, a restored dump.

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
my $primary = new_node('primary', 'evstream.redis_url' => $redis, 'evstream.stream_maxlen' => 1000000,
	extension => 1, streaming => 1);
my @subscribers = ('all', 'odd');

sub health
{
	my ($node, $db, $status, $why, $name) = @_;
	ok(wait_for_sql($node, $db, qq{SELECT (r ->> 'status') = '$status' AND COALESCE(r ->> 'why', '') ~ \$r\$$why\$r\$
		FROM (SELECT evstream_health() -> 'components' -> 'redis') h (r)}, 't', 60), $name)
	  or diag($node->safe_psql($db, 'SELECT evstream_health()'));
	return;
}

my $n = 0;

sub track
{
	my ($node, $db, $count) = @_;
	my $from = $n + 1;
	$n += $count;
	$node->safe_psql($db, qq{SELECT count(evstream_track('u' || i % 7, CASE WHEN i % 2 = 1 THEN 'odd' ELSE 'even' END,
		jsonb_build_object('n', i))) FROM generate_series($from, $n) i});
	return;
}

sub settle
{
	my ($node, $db, $name) = @_;
	ok(wait_for_sql($node, $db, q{SELECT evstream_wait('30 s')}, 't', 90), $name);
	return;
}

# What is in Redis is in the database, too: it would go on from there.
sub mirrored
{
	my ($node, $db, $name) = @_;
	ok(wait_for_sql($node, $db, q{SELECT passed_at >= (SELECT max(received_at) FROM evstream_events)
		FROM evstream.notifier_cursors WHERE log_id = 1}, 't'), $name);
	return;
}

# What a stream holds: for each of its epochs the numbers of the events.
sub epochs
{
	my ($subscriber, $name) = @_;
	my (@epochs, @numbers, $wrong);
	my $last = 0;
	$wrong = '';
	foreach my $entry (redis_stream("evstream:stream:$subscriber"))
	{
		my ($e, $seq) = split(/-/, $entry->[0]);
		if (!@epochs || $epochs[-1] != $e)
		{
			push @epochs, $e;
			push @numbers, [];
			$last = 0;
		}
		$wrong .= " $entry->[0]" if $seq != ++$last;
		push @{ $numbers[-1] }, $entry->[1] =~ /"n": ?(\d+)/;
	}
	is($wrong, '', "$name: sequences of $subscriber");
	return @numbers;
}

# Numbers of the stored events that match.
sub stored
{
	my ($node, $db, $subscriber) = @_;
	my $condition = $subscriber eq 'odd' ? "event_type = 'odd'" : 'true';
	return split(/\n/, $node->safe_psql($db, "SELECT properties ->> 'n' FROM evstream_events WHERE $condition ORDER BY log_offset"));
}

# Each stream has so many epochs, none has an event twice, and all that is stored is in one.
sub nothing_missed
{
	my ($node, $db, $epochs, $name) = @_;
	foreach my $subscriber (@subscribers)
	{
		my @epochs = epochs($subscriber, $name);
		my (%seen, $twice);
		foreach my $numbers (@epochs)
		{
			my %here;
			$here{$_}++ && $twice++ foreach @$numbers;
			%seen = (%seen, %here);
		}
		is(scalar(@epochs), $epochs, "$name: epochs of $subscriber");
		is($twice, undef, "$name: none twice within an epoch of $subscriber");
		is(join(' ', grep { !$seen{$_} } stored($node, $db, $subscriber)), '', "$name: $subscriber misses none");
	}
	return;
}

$primary->safe_psql('postgres', q{SELECT evstream_subscribe('all'); SELECT evstream_subscribe('odd', '{odd}')});
track($primary, 'postgres', 200);
settle($primary, 'postgres', 'events arrive');
nothing_missed($primary, 'postgres', 1, 'at first');

# ---- A standby that lagged is promoted ----

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
track($primary, 'postgres', 100);
settle($primary, 'postgres', 'events arrive');
# asked there, as workers commit asynchronously
ok(wait_for_sql($standby, 'postgres', q{SELECT count(*) FROM evstream_events}, 300), 'the standby has them');
mirrored($standby, 'postgres', 'and knows what was sent');
is($standby->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'evstream notifier'}), 0,
	'no notifier on a standby');

# What comes then never reaches it, and it stands still.
$standby->append_conf('postgresql.conf', "primary_conninfo = ''");
$standby->reload;
ok(wait_for_sql($standby, 'postgres', 'SELECT count(*) FROM pg_stat_wal_receiver', 0), 'nothing is received');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
ok(wait_for_sql($standby, 'postgres', 'SELECT pg_get_wal_replay_pause_state()', 'paused'), 'replay is paused');
track($primary, 'postgres', 100);
settle($primary, 'postgres', 'which the primary sends');
my @sent = map { @$_ } epochs('all', 'before the failover');
is($sent[-1], 400, 'all of it is in Redis');
$primary->stop('immediate');
$standby->promote;
ok(wait_for_sql($standby, 'postgres', q{SELECT count(*) FROM evstream_workers WHERE role = 'notifier' AND pid IS NOT NULL}, 1),
	'a notifier on the promoted server');
health($standby, 'postgres', 'degraded', 'older than what Redis holds', 'health says that the database went back');
$n = 1000;
track($standby, 'postgres', 100);
settle($standby, 'postgres', 'it goes on');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM evstream_events'), 400, 'stored: without what the standby missed');
nothing_missed($standby, 'postgres', 2, 'promoted');
is(join(' ', @{ (epochs('all', 'promoted'))[-1] }), join(' ', 1001 .. 1100), 'what is new is in a new epoch, and nothing else');

# ---- A dump, restored into another database while the first one goes on ----

mirrored($standby, 'postgres', 'the dump will know what was sent');
my $dump = scratch_dir() . '/dump.sql';
$standby->command_ok([ 'pg_dump', '-f', $dump, $standby->connstr('postgres') ], 'dump');
$n = 2000;
track($standby, 'postgres', 50);
settle($standby, 'postgres', 'sent after the dump');
$standby->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE template0');
$standby->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $standby->connstr('copy') ], 'restore');
is($standby->safe_psql('copy', q{SELECT string_agg(subscriber_id || COALESCE(event_types::text, ''), ' ' ORDER BY 1) FROM (SELECT * FROM evstream_filters ORDER BY subscriber_id) f}),
	'all odd{odd}', 'filters are restored');
$n = 3000;
track($standby, 'copy', 50);
ok(wait_for_sql($standby, 'copy', q{SELECT evstream_health() ->> 'status' <> 'ok'}, 't'), 'the copy is paused');
is($standby->safe_psql('copy', 'SELECT evstream_take_over()'), 't', 'it takes the prefix over');
$standby->safe_psql('copy', 'SELECT evstream_resume()');
settle($standby, 'copy', 'it goes on');
nothing_missed($standby, 'copy', 3, 'restored');
is(join(' ', @{ (epochs('all', 'restored'))[-1] }), join(' ', 3001 .. 3050), 'in a new epoch what it has stored since');
health($standby, 'postgres', 'degraded', 'belongs to another database', 'the former owner stops');
$n = 4000;
track($standby, 'postgres', 10);
is($standby->safe_psql('postgres', q{SELECT evstream_wait('30 s', false)}), 't', 'it counts');
is($standby->safe_psql('postgres', q{SELECT evstream_wait('1 s')}), 'f', 'and sends nothing');
$standby->safe_psql('copy', q{SELECT evstream_subscribe('later', '{even}')});
$n = 5000;
track($standby, 'copy', 10);
settle($standby, 'copy', 'filters go on to change');
is(join(' ', map { @$_ } epochs('later', 'later')), '5002 5004 5006 5008 5010', 'and hold from then on');

# ---- A dump of what Redis knows to its end goes on in the same epoch ----

$standby->safe_psql('copy', 'SELECT evstream_pause()');
$standby->command_ok([ 'pg_dump', '-f', "$dump.2", $standby->connstr('copy') ], 'dump again');
$standby->safe_psql('postgres', 'DROP DATABASE copy WITH (FORCE)');
$standby->safe_psql('postgres', 'CREATE DATABASE moved TEMPLATE template0');
$standby->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$dump.2", $standby->connstr('moved') ], 'restore again');
is($standby->safe_psql('moved', 'SELECT evstream_take_over()'), 't', 'taken over');
$standby->safe_psql('moved', 'SELECT evstream_resume()');
$n = 6000;
track($standby, 'moved', 10);
settle($standby, 'moved', 'moved');
nothing_missed($standby, 'moved', 3, 'moved');
is(join(' ', map { @$_ } epochs('later', 'moved')), '5002 5004 5006 5008 5010 6002 6004 6006 6008 6010', 'later goes on in its epoch');

unlike(slurp_file($primary->logfile) . slurp_file($standby->logfile), qr/signal 11|PANIC|TRAP/, 'no crash');
$standby->stop;
done_testing();
