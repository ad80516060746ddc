# Fan-out: what Redis and the database may do to it, and that nothing is lost or doubled.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use File::Copy ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $redis = redis_start();
my $node = new_node('main', 'evstream.redis_url' => $redis, 'evstream.stream_maxlen' => 1000000, extension => 1);

sub sql { return $node->safe_psql('postgres', @_); }

# Waits until health of Redis has this status, and says this.
sub health
{
	my ($status, $why, $name) = @_;
	my $ok = wait_for_sql($node, 'postgres', qq{SELECT (r ->> 'status') ~ '^($status)\$' AND COALESCE(r ->> 'why', '') ~ \$r\$$why\$r\$
		FROM (SELECT evstream_health() -> 'components' -> 'redis') h (r)}, 't', 30);
	ok($ok, $name);
	diag(sql('SELECT evstream_health()')) unless $ok;
	return;
}

my $n = 0;

# Tracks so many events of a type, with numbers that go on.
sub track
{
	my ($count, $type) = @_;
	my $from = $n + 1;
	$n += $count;
	return sql(sprintf(q{SELECT count(evstream_track('u' || i %% 7, '%s', jsonb_build_object('n', i)))
		FROM generate_series(%d, %d) i}, $type // 'view', $from, $n));
}

sub settle { return is(sql(q{SELECT evstream_wait('60 s')}), 't', $_[0]); }

# Numbers of the events in a stream, and its epochs in their order; wrong sequences.
sub stream
{
	my ($subscriber) = @_;
	my (@numbers, @epochs, @wrong);
	my $seq = 0;
	foreach my $entry (redis_stream("evstream:stream:$subscriber"))
	{
		my ($e, $s) = split(/-/, $entry->[0]);
		if (!@epochs || $e != $epochs[-1])
		{
			push @epochs, $e;
			$seq = 0;
		}
		push @wrong, $entry->[0] if $s != ++$seq;
		push @numbers, $entry->[1] =~ /"n": ?(\d+)/;
	}
	return (\@numbers, \@epochs, \@wrong);
}

# The stream holds exactly these numbers, in one epoch, or so many.
sub holds
{
	my ($subscriber, $from, $to, $epochs, $name) = @_;
	my ($numbers, $found, $wrong) = stream($subscriber);
	is("@$numbers", join(' ', $from .. $to), $name);
	is("@$wrong", '', 'in sequence');
	is(scalar(@$found), $epochs, "epochs: $epochs");
	return;
}

sql(q{SELECT evstream_subscribe('all')});
health('ok', '', 'Redis is well');
track(10);
settle('events arrive');
holds('all', 1, 10, 1, 'all of them');

# ---- Errors of Redis ----

redis_cli('CONFIG', 'SET', 'maxmemory', '1');
track(10);
health('degraded', 'Redis is full', 'a full Redis');
sleep(2);
is(count_log($node, 'WARNING:  Redis is full'), 1, 'is said once');
is(sql(q{SELECT evstream_wait('1 s')}), 'f', 'nothing arrives');
is(sql(q{SELECT evstream_wait('10 s', false)}), 't', 'counting goes on');
redis_cli('CONFIG', 'SET', 'maxmemory', '0');
settle('it goes on');
health('ok', '', 'and is well again');
holds('all', 1, 20, 1, 'nothing is lost or doubled');

redis_cli('REPLICAOF', '127.0.0.1', '1');
track(10);
health('degraded', 'read-only replica', 'a replica');
redis_cli('REPLICAOF', 'NO', 'ONE');
settle('it goes on as a primary');
holds('all', 1, 30, 1, 'nothing is lost or doubled');

redis_cli('CONFIG', 'SET', 'busy-reply-threshold', '100');
my $script = IPC::Run::start([ 'redis-cli', '-p', redis_port(), 'EVAL', 'while true do end', '0' ],
	'<', \undef, '>', \my $said, '2>', \my $complaint);
my $end = time() + 20;
sleep(0.05) while redis_cli('PING') !~ /BUSY/ && time() < $end;
track(10);
health('degraded', 'busy with a script|could not reach', 'a script of somebody');
redis_cli('SCRIPT', 'KILL');
$script->finish;
settle('it goes on afterwards');
redis_cli('SCRIPT', 'FLUSH');
track(10);
settle('scripts that are forgotten are sent again');
holds('all', 1, 50, 1, 'nothing is lost or doubled');

# ---- Frozen, and back ----

my $log = -s $node->logfile;
redis_freeze();
track(1000);
health('degraded', 'could not reach Redis', 'a Redis that does not answer');
redis_thaw();
settle('it answers again');
holds('all', 1, 1050, 1, 'nothing is lost or doubled');
cmp_ok(count_log($node, 'WARNING:  could not reach Redis', $log), '<=', 2, 'it is not said at each try');

# ---- A key that holds something else ----

sql(q{SELECT evstream_subscribe('odd', ARRAY['odd'])});
redis_cli('SET', 'evstream:stream:odd', 'mine');
track(5, 'odd');
settle('others go on');
health('degraded', '"odd" \(its key holds a string\)', 'health names the subscriber');
holds('all', 1, 1055, 1, 'others have all of it');
is(redis_cli('GET', 'evstream:stream:odd'), 'mine', 'the key is left alone');
redis_cli('DEL', 'evstream:stream:odd');
track(5, 'odd');
settle('the key is free');
holds('odd', 1056, 1060, 1, 'it begins from there');
redis_cli('RENAME', 'evstream:stream:odd', 'aside');
redis_cli('LPUSH', 'evstream:stream:odd', '1');
track(5, 'odd');
settle('in the way again');
redis_cli('DEL', 'evstream:stream:odd');
redis_cli('RENAME', 'aside', 'evstream:stream:odd');
track(5, 'odd');
settle('its stream is back');
my ($numbers, $epochs, $wrong) = stream('odd');
is("@$numbers", join(' ', 1056 .. 1060, 1066 .. 1070), 'without what was passed over');
is(scalar(@$epochs), 2, 'which a new epoch tells');
health('ok', '', 'health is well');

redis_cli('RENAME', 'evstream:state', 'state');
redis_cli('SET', 'evstream:state', 'mine');
track(5);
health('degraded', 'is no hash of evstream', 'the key of the state');
redis_cli('RENAME', 'state', 'evstream:state');
settle('it is back');
holds('all', 1, 1075, 1, 'nothing is lost or doubled');

# ---- Emptied ----

redis_cli('FLUSHALL');
track(5);
settle('Redis was emptied');
health('degraded', 'Redis came back empty', 'which health says');
($numbers, my $after, $wrong) = stream('all');
is($numbers->[-1], 1080, 'on to the last');
cmp_ok($numbers->[0], '<=', 1076, 'nothing is skipped');
is("@$numbers", join(' ', $numbers->[0] .. 1080), 'nor doubled');
is("@$wrong", '', 'in sequence');
sql(q{SELECT evstream_restart()});
health('ok', '', 'a restart takes the message away');

# The state alone: streams have a last id that is to be exceeded
my $first = $numbers->[0];
redis_cli('DEL', 'evstream:state');
track(5);
settle('the state was evicted');
($numbers, $epochs, $wrong) = stream('all');
is(scalar(@$epochs), 2, 'a new epoch in the same stream');
cmp_ok($epochs->[1], '>', $epochs->[0], 'which is higher');
is($numbers->[-1], 1085, 'on to the last');
my %seen = map { $_ => 1 } @$numbers;
is(scalar(keys %seen), 1085 - $first + 1, 'nothing is skipped');

# ---- Rights ----

redis_cli('ACL', 'SETUSER', 'default', '-publish');
redis_cli('DEL', 'evstream:stream:all', 'evstream:stream:odd');
track(5);
settle('streams go on without PUBLISH');
health('degraded', 'refuses to publish', 'health says so');
redis_cli('ACL', 'SETUSER', 'default', '+publish');
track(1);
settle('PUBLISH is given');
health('degraded|ok', '^(?!.*refuses)', 'health does not complain any more');
foreach my $command ('xadd', 'hset')
{
	redis_cli('ACL', 'SETUSER', 'default', "-$command");
	track(2);
	health('degraded', 'does not let the user', "without $command");
	redis_cli('ACL', 'SETUSER', 'default', "+$command");
	settle("$command is given back");
}
holds('all', 1086, 1095, 1, 'nothing is lost or doubled');

redis_cli('ACL', 'SETUSER', 'ev', 'on', '>open sesame', '~evstream:*', '&evstream:*', '+@all');
redis_cli('CONFIG', 'SET', 'requirepass', 'sesame');
redis_cli(undef, [ '-a', 'sesame', '--no-auth-warning' ], 'CLIENT', 'KILL', 'TYPE', 'normal');
my @auth = (undef, [ '-a', 'sesame', '--no-auth-warning' ]);
track(5);
health('degraded', 'does not accept the user or password', 'a password is wanted');
my $secrets = $node->data_dir . '/evstream.secrets';
append_to_file($secrets, "redis_user = ev\nredis_password = wrong sesame\n");
chmod(0600, $secrets);
$node->reload;
health('degraded', 'does not accept the user or password', 'a wrong one');
unlink($secrets);
append_to_file($secrets, "redis_user = ev\nredis_password = open sesame\n");
chmod(0600, $secrets);
$node->reload;
settle('the right one');
unlike(slurp_file($node->logfile) . sql('SELECT evstream_health()::text'), qr/sesame/, 'no password is told');
redis_cli(@auth, 'CONFIG', 'SET', 'requirepass', '');
holds('all', 1086, 1100, 1, 'nothing is lost or doubled');
unlink($secrets);
$node->reload;
my $last = $n;

# ---- Somebody else's prefix ----

my $foreign = 'evstream/00000000-0000-4000-8000-000000000000/1/1/';
redis_cli('HSET', 'evstream:state', 'owner', $foreign . '1');
track(5);
health('degraded', 'belongs to another database', 'a foreign mark');
is(sql(q{SELECT evstream_wait('1 s')}), 'f', 'nothing is sent');
is(sql('SELECT evstream_take_over()'), 't', 'taken over');
settle('then it is');
health('degraded|ok', '^(?!.*belongs)', 'and health is content');
holds('all', 1086, $last + 5, 1, 'nothing is lost or doubled');
redis_cli('HSET', 'evstream:state', 'owner', $foreign . '99999999999999');
track(5);
health('degraded', 'belongs to another database', 'a later claim takes it from us');
redis_cli('HSET', 'evstream:state', 'owner', $foreign . '5');
settle('an earlier one does not');
holds('all', 1086, $n, 1, 'nothing is lost or doubled');

# ---- Streams that others write to ----

sql(q{SELECT evstream_subscribe('ahead', ARRAY['ahead'])});
track(3, 'ahead');
settle('before');
my $ahead_from = $n - 2;
($numbers, $epochs) = stream('ahead');
redis_cli('XADD', 'evstream:stream:ahead', ($epochs->[0] + 7) . '-9', 'event', '{}');
track(3, 'ahead');
settle('an entry of somebody else is in the way');
($numbers, $epochs) = stream('ahead');
is("@$numbers", join(' ', $ahead_from .. $n), 'what comes goes behind it, and nothing is passed over');
is(scalar(@$epochs), 3, 'in a new epoch');
redis_cli('RENAME', 'evstream:stream:ahead', 'aside');
track(3, 'ahead');
settle('its stream is gone');
($numbers, my $anew, $wrong) = stream('ahead');
is("@$numbers @$wrong", join(' ', $n - 2 .. $n) . ' ', 'another begins');
cmp_ok($anew->[0], '>', $epochs->[2], 'in a new epoch');
redis_cli('RENAME', 'aside', 'evstream:stream:ahead');
track(3, 'ahead');
settle('it is back, and behind what is known');
($numbers) = stream('ahead');
is("@$numbers", join(' ', $ahead_from .. $n - 6, $n - 2 .. $n), 'it goes on, and the epoch tells of what it has not');
redis_cli('XADD', 'evstream:stream:ahead', '18446744073709551615-18446744073709551615', 'event', '{}');
track(3, 'ahead');
settle('no id is left');
health('degraded', '"ahead" \(no id can follow', 'which health says');
holds('all', 1086, $n, 1, 'others have all of it');
redis_cli('DEL', 'evstream:stream:ahead');
track(3, 'ahead');
settle('it is removed');
($numbers) = stream('ahead');
is("@$numbers", join(' ', $n - 2 .. $n), 'and begins anew');
health('degraded|ok', '^(?!.*no id)', 'and health is content');

# ---- Away under load, with filters that change ----

sql(q{SELECT evstream_subscribe('gone')});
track(5);
settle('before');
my ($was) = stream('gone');
my $gone_from = $n - 4;
redis_kill();
track(2000);
is(sql(q{SELECT evstream_wait('10 s', false)}), 't', 'events are stored');
sql(q{SELECT evstream_subscribe('new')});
my $new_from = $n + 1;
track(2000);
is(sql(q{SELECT evstream_wait('10 s', false)}), 't', 'and stored');
sql(q{SELECT evstream_unsubscribe('gone')});
my $gone_to = $n;
track(2000);
is(sql(q{SELECT evstream_wait('10 s', false)}), 't', 'without Redis');
is(sql(q{SELECT sum(event_count) FROM evstream_daily_totals}), $n, 'all is counted');
health('degraded', 'could not reach Redis', 'health says that Redis is away');
redis_start();
settle('Redis is back');
holds('gone', $gone_from, $gone_to, 1, 'a subscriber that went has what came before');
holds('new', $new_from, $n, 1, 'one that came has what came after');
holds('all', 1086, $n, 1, 'another one all of it');

# ---- The batch log is merged meanwhile, and not before the notifier has passed ----

ok(wait_for_sql($node, 'postgres', q{SELECT count(*) FROM evstream.filters WHERE subscriber_id = 'gone'}, 0, 60),
	'versions of filters go when no batch needs them');

# ---- The database goes back behind Redis ----

my $before = $n;
$node->stop;
my $copy = PostgreSQL::Test::Utils::tempdir() . '/copy';
PostgreSQL::Test::RecursiveCopy::copypath($node->data_dir, $copy);
$node->start;
track(100, 'lost');
settle('events that will be lost');
$node->stop;
File::Path::remove_tree($node->data_dir);
PostgreSQL::Test::RecursiveCopy::copypath($copy, $node->data_dir);
chmod(0700, $node->data_dir);
$node->start;
$n += 1000;
track(100);
settle('the database is back');
health('degraded', 'database is older', 'health says that it went back');
($numbers, $epochs, $wrong) = stream('all');
is("@$wrong", '', 'in sequence');
is(scalar(@$epochs), 2, 'a new epoch');
is("@{$numbers}[-100 .. -1]", join(' ', $n - 99 .. $n), 'what is new arrives');
my @new = redis_stream('evstream:stream:new');
like($new[-1][0], qr/^$epochs->[1]-|^\d+-100$/, 'each stream begins anew');

unlike(slurp_file($node->logfile), qr/signal 11|PANIC|TRAP/, 'no crash');
$node->stop;
done_testing();
