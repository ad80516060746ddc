# Fan-out over a bad connection: errors, cuts in mid-call, Redis switched off and on, and
# what is kept in the database meanwhile.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamProxy;
use EvstreamTest;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

redis_start();
my $proxy = proxy_start(20);
my $node = new_node('main', 'evstream.redis_url' => $proxy, 'evstream.stream_maxlen' => 1000000, extension => 1);

sub sql { return $node->safe_psql('postgres', @_); }

sub health
{
	my ($status, $why, $name) = @_;
	ok(wait_for_sql($node, 'postgres', qq{SELECT (r ->> 'status') = '$status' AND COALESCE(r ->> 'why', '') ~ \$r\$$why\$r\$
		FROM (SELECT evstream_health() -> 'components' -> 'redis') h (r)}, 't', 30), $name)
	  or diag(sql('SELECT evstream_health()'));
	return;
}

sub settle { return is(sql(q{SELECT evstream_wait('60 s')}), 't', $_[0]); }

my $n = 0;

sub track
{
	my ($count) = @_;
	my $from = $n + 1;
	$n += $count;
	sql(qq{SELECT count(evstream_track('u' || i % 7, 'view', jsonb_build_object('n', i, 'k', i % 5, 'text', repeat('x', i % 500))))
		FROM generate_series($from, $n) i});
	return;
}

# Streams are what SQL finds: all has each event, k0 to k4 those of one kind.
sub has_all
{
	my ($name) = @_;
	settle($name);
	my %truth;
	foreach my $row (split(/\n/, sql(q{SELECT event_id, properties ->> 'k' FROM evstream_events ORDER BY log_offset})))
	{
		my ($id, $k) = split(/\|/, $row);
		$truth{$_} .= "$id\n" foreach ('all', "k$k");
	}
	foreach my $subscriber ('all', map { "k$_" } 0 .. 4)
	{
		my ($found, $wrong, $epoch, $last) = ('', '', undef, 0);
		foreach my $entry (redis_stream("evstream:stream:$subscriber"))
		{
			my ($e, $seq) = split(/-/, $entry->[0]);
			$epoch //= $e;
			$wrong .= " $entry->[0]" if $e != $epoch || $seq != $last + 1;
			$last = $seq;
			$found .= ($entry->[1] =~ /"event_id":"([^"]+)"/)[0] . "\n";
		}
		ok($found eq $truth{$subscriber}, "$name: the stream of $subscriber is what SQL finds")
		  or diag(($found =~ tr/\n//) . ' instead of ' . ($truth{$subscriber} =~ tr/\n//));
		is($wrong, '', "$name: sequences of $subscriber");
	}
	return;
}

sql(q{SELECT evstream_subscribe('all')});
sql("SELECT evstream_subscribe('k$_', properties => '{\"k\": $_}')") foreach 0 .. 4;
track(100);
has_all('through the proxy');
health('ok', '', 'Redis is well');

# ---- What Redis may say to any command ----

foreach my $fault (
	[ 'LOADING Redis is loading the dataset in memory', 'is loading its data' ],
	[ 'MISCONF Redis is configured to save RDB snapshots, but it is currently unable to persist to disk.', 'cannot save' ],
	[ 'READONLY You can\'t write against a read only replica.', 'read-only replica' ],
	[ "OOM command not allowed when used memory > 'maxmemory'.", 'Redis is full' ],
	[ 'NOAUTH Authentication required.', 'does not accept the user or password' ],
	[ 'NOPERM this user has no permissions to run the \'evalsha\' command', 'does not let the user' ],
	[ 'MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to \'no\'.', 'read-only replica' ],
	[ 'BUSY Redis is busy running a script.', 'busy with a script' ],
	[ 'CLUSTERDOWN The cluster is down', 'answers with an error: CLUSTERDOWN' ])
{
	my ($text, $why) = @$fault;
	my ($code) = split(/ /, $text);
	my $log = -s $node->logfile;
	my $said = proxy_count('say');
	proxy_mode('say', "-$text");
	track(20);
	health('degraded', $why, "$code: health says so");
	my $end = time() + 30;
	sleep(0.05) while proxy_count('say') < $said + 3 && time() < $end;
	is(count_log($node, 'notifier WARNING', $log), 1, "$code: said once, however often it is tried");
	is(sql(q{SELECT evstream_wait('10 s', false)}), 't', "$code: counting goes on");
	proxy_mode('pass');
	settle("$code: it goes on");
	health('ok', '', "$code: well again");
}
has_all('after all of these');

# ---- What is no answer at all ----

foreach my $garbage ('HTTP/1.1 400 Bad Request', '*1', ':7', '$-1', '+OK')
{
	proxy_mode('say', $garbage);
	my $said = proxy_count('say');
	track(20);
	my $end = time() + 30;
	sleep(0.05) while proxy_count('say') < $said + 2 && time() < $end;
	cmp_ok(time(), '<', $end, "\"$garbage\": it tries again");
	proxy_mode('pass');
	settle("\"$garbage\": it goes on");
}
proxy_mode('refuse');
track(20);
health('degraded', 'could not reach Redis', 'connections end at once');
proxy_mode('pass');
has_all('after nonsense');

# ---- Cut in the middle of a call ----

my $cuts = proxy_count('cut');
my $rounds = $ENV{EVSTREAM_LONG} ? 25 : 10;
foreach my $round (1 .. $rounds)
{
	# small calls and large ones
	my $before = proxy_count('cut');
	proxy_mode('cut', $round % 2 ? 5000 : 400000);
	my $end = time() + 60;
	while (proxy_count('cut') < $before + 2 && time() < $end)
	{
		track($round % 2 ? 10 : 500);
		sql(q{SELECT evstream_wait('50 ms')});
	}
}
cmp_ok(proxy_count('cut') - $cuts, '>=', 2 * $rounds, 'connections are cut');
proxy_mode('pass');
has_all(proxy_count('cut') - $cuts . ' cuts');
health('ok', '', 'Redis is well');

# ---- The answer to a call is lost, and a client joins ----

proxy_mode('swallow');
track(1);
my $end = time() + 30;
sleep(0.05) while proxy_count('swallow') < 1 && time() < $end;
like(redis_cli('XREVRANGE', 'evstream:stream:all', '+', '-', 'COUNT', 1), qr/"n": ?$n\D/, 'the event is in its stream, which the notifier does not know');
my $page = scratch_dir() . '/page';
my $join = IPC::Run::start([ 'sh', '-c', 'psql -X -A -t -d "$1" -c "$2" >"$3.part" 2>&1; mv "$3.part" "$3"', 'sh', $node->connstr('postgres'),
		q{SELECT properties -> 'n' FROM evstream_backfill('all', '-infinity', 1000000)}, $page ], '<', \undef);
# until it ends, or waits longer than it does for what is only late
sleep(0.1) until -e $page || sql(q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT properties -> %' AND state = 'active'
	AND query_start < clock_timestamp() - interval '2 s'}) eq '1';
proxy_mode('pass');
$join->finish;
is(join(' ', split(/\n/, slurp_file($page))), join(' ', 1 .. $n), 'a client that joins is given it');

# ---- The batch log is not merged before the notifier has passed it ----

sql(q{ALTER SYSTEM SET evstream.batch_size = 1});
sql(q{ALTER SYSTEM SET evstream.redis_url = ''});
$node->reload;
ok(wait_for_sql($node, 'postgres', q{SELECT count(*) FROM evstream_workers WHERE role = 'notifier' AND pid IS NOT NULL}, 0),
	'without Redis no notifier');

# Maintenance merges all but the newest 100 as soon as its worker starts.
sub merge
{
	sql('SELECT evstream_restart()');
	return;
}

my $batches = 'SELECT count(*) FROM evstream.batch_log WHERE log_id = 1';
track(300);
is(sql(q{SELECT evstream_wait('60 s')}), 't', 'stored without Redis');
merge();
ok(wait_for_sql($node, 'postgres', $batches, 100), 'without Redis the batch log is merged to its last 100');
sql(q{ALTER SYSTEM RESET evstream.redis_url});
$node->reload;
ok(wait_for_sql($node, 'postgres', q{SELECT count(*) FROM evstream_workers WHERE role = 'notifier' AND pid IS NOT NULL}, 1), 'Redis is back');
has_all('stored while Redis was off, and delivered');
health('ok', '', 'well again');

proxy_mode('refuse');
track(300);
is(sql(q{SELECT evstream_wait('60 s', false)}), 't', 'stored while Redis is away');
my $passed = sql(q{SELECT passed_at FROM evstream.notifier_cursors WHERE log_id = 1});
my $waiting = "$batches AND last_received_at > '$passed'";
is(sql($waiting), 300, 'batches that were not passed');
# Two turns of maintenance: the first one may have begun before.
foreach my $turn (1, 2)
{
	my $pid = sql(q{SELECT pid FROM evstream_workers WHERE role = 'maintenance'});
	merge();
	ok(wait_for_sql($node, 'postgres', qq{SELECT count(*) FROM evstream_workers WHERE role = 'maintenance' AND pid <> $pid AND state = 'idle'}, 1),
		"turn $turn of maintenance");
}
is(sql($waiting), 300, 'stay');
cmp_ok(sql($batches), '<=', 301, 'those that were passed are merged');
proxy_mode('pass');
has_all('Redis is back');
ok(wait_for_sql($node, 'postgres', "SELECT passed_at >= (SELECT max(last_received_at) FROM evstream.batch_log WHERE log_id = 1)
	FROM evstream.notifier_cursors WHERE log_id = 1", 't'), 'the mirror of the cursor follows');
merge();
ok(wait_for_sql($node, 'postgres', $batches, 100), 'then they are merged');
track(5);
has_all('afterwards');

unlike(slurp_file($node->logfile), qr/signal 11|PANIC|TRAP/, 'no crash');
$node->stop;
done_testing();
