# NOTIFY on the channels of evstream.notify_channels reaches Redis.

use strict;
use warnings;
use utf8;

use Encode qw(encode);
use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamRedis;
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# The listener may be slow.
my $redis = redis_start('client-output-buffer-limit pubsub 0 0 0');

# The client_encoding is one that the notifier must not care for.
my $node = new_node('main',
	'evstream.redis_url' => $redis,
	'evstream.notify_channels' => encode('UTF-8', ' orders, Two  Words ,Grüße,' . 'c' x 63),
	client_encoding => 'latin1',
	extension => 1);

my $listener = redis_connect();
$listener->command('PSUBSCRIBE', 'evstream:pg:*');

my $notifier = q{SELECT pid FROM evstream_workers WHERE role = 'notifier' AND pid IS NOT NULL};
ok(wait_for_sql($node, 'postgres', "SELECT count(*) FROM ($notifier) n", '1'), 'there is a notifier');
my $pid = $node->safe_psql('postgres', $notifier);

# Waits for a message; gives channel and payload.
sub message
{
	my $reply = $listener->read(30) or return ('no message', '');
	return ($reply->[0][2], $reply->[0][3]);
}

# Notifies until it comes through, and takes away the repeats.
sub listened
{
	my ($channel) = @_;
	for my $try (1 .. 300)
	{
		$node->safe_psql('postgres', qq{NOTIFY "$channel", 'try $try'});
		my $reply = $listener->read(0.2) or next;
		while ($reply->[0][3] ne "try $try")
		{
			$reply = $listener->read(30) or return 0;
		}
		return 1;
	}
	return 0;
}

# Runs SQL, which is bytes of UTF-8.
sub run_sql
{
	my ($sql) = @_;
	return $node->safe_psql('postgres', encode('UTF-8', "SET client_encoding = utf8;\n$sql"));
}

# ---- What comes through ----

ok(listened('orders'), 'a notification comes through');

run_sql(q{NOTIFY orders, 'one'; NOTIFY other, 'no'; NOTIFY "Orders", 'no'; NOTIFY "Two  Words", ' x  y '});
is_deeply([ message() ], [ 'evstream:pg:orders', 'one' ], 'by its name, with its payload');
is_deeply([ message() ], [ 'evstream:pg:Two  Words', ' x  y ' ], 'case and inner spaces are kept');
run_sql(q{NOTIFY "Grüße", 'für dich: 5 €'; NOTIFY orders});
is_deeply([ message() ], [ encode('UTF-8', 'evstream:pg:Grüße'), encode('UTF-8', 'für dich: 5 €') ],
	'bytes as they were');
is_deeply([ message() ], [ 'evstream:pg:orders', '' ], 'no payload');
run_sql("NOTIFY " . 'c' x 63 . ", 'long'");
is_deeply([ message() ], [ 'evstream:pg:' . 'c' x 63, 'long' ], 'a name as long as it can be');

my $long = join('', map { "\r\n\t\"\\\x01" . $_ . ' ' } 1 .. 2000);
$long = substr($long, 0, 7999);
(my $quoted = $long) =~ s/'/''/g;
run_sql("SELECT pg_notify('orders', '$quoted')");
is_deeply([ message() ], [ 'evstream:pg:orders', $long ], 'a payload of 7,999 bytes');

run_sql(q{BEGIN; NOTIFY orders, 'rolled back'; ROLLBACK});
run_sql(q{BEGIN; NOTIFY orders, 'a'; NOTIFY orders, 'b'; COMMIT});
is_deeply([ message(), message() ], [ 'evstream:pg:orders', 'a', 'evstream:pg:orders', 'b' ],
	'in order, and nothing of a rollback');

$node->safe_psql('postgres', "SELECT count(pg_notify('orders', 'n' || i)) FROM generate_series(1, 100000) i");
my $next = 1;
while ($next <= 100000)
{
	my ($channel, $payload) = message();
	last if $payload ne "n$next";
	$next++;
}
is($next - 1, 100000, '100,000 of one transaction, in their order');

# Another database's notifications are its own.
$node->safe_psql('postgres', 'CREATE DATABASE neighbour');
$node->safe_psql('neighbour', q{NOTIFY orders, 'not mine'});
run_sql(q{NOTIFY orders, 'mine'});
is_deeply([ message() ], [ 'evstream:pg:orders', 'mine' ], 'only those of its database');
$node->safe_psql('postgres', 'DROP DATABASE neighbour');

# ---- Other channels, without a restart ----

$node->append_conf('postgresql.conf', "evstream.notify_channels = 'later'");
$node->reload;
ok(listened('later'), 'a channel that a reload brings');
run_sql(q{NOTIFY orders, 'gone'; NOTIFY later, 'here'});
is_deeply([ message() ], [ 'evstream:pg:later', 'here' ], 'one that it took is not listened to');
is($node->safe_psql('postgres', $notifier), $pid, 'and the notifier is the same process');

my ($rc, $out, $err) = $node->psql('postgres', "ALTER SYSTEM SET evstream.notify_channels = '" . 'c' x 64 . "'");
like($err, qr/DETAIL:  .*channels of 1 to 63 bytes/, 'a name that is too long is refused');

# ---- While Redis does not answer ----

redis_freeze();
# 80 MB, of which 64 wait.
my $flood = "SELECT count(pg_notify('later', i || repeat('x', 7900))) FROM generate_series(%d, %d) i";
for (my $i = 0; $i < 10000; $i += 1000)
{
	$node->safe_psql('postgres', sprintf($flood, $i, $i + 999));
}
ok(wait_for_sql($node, 'postgres', 'SELECT pg_notification_queue_usage()', '0'),
	"a frozen Redis does not hold back the server's queue");
ok($node->wait_for_log(qr/WARNING:  more than 64 MB of notifications wait for Redis: the oldest are dropped/),
	'the log says that some are dropped');
ok(wait_for_sql($node, 'postgres', q{SELECT evstream_health()->>'status'}, 'degraded'), 'health is degraded');

my ($rss) = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status") =~ /RssAnon:\s+(\d+) kB/;
cmp_ok($rss, '>', 60 * 1024, 'what waits is in memory');
cmp_ok($rss, '<', 110 * 1024, 'and memory is bounded');

redis_thaw();
# Redis may have closed our connection, as it did not read for long, or the notifier its own.
my ($last, $count) = (undef, 0);
$node->safe_psql('postgres', q{NOTIFY later, 'end'});
while (1)
{
	my ($channel, $payload) = message();
	last if $payload eq 'end' || $channel eq 'no message';
	my ($n) = $payload =~ /^(\d+)x{7900}$/ or next;
	fail("$n after $last") if defined $last && $n <= $last;
	$last = $n;
	$count++;
}
is($last, 9999, 'the newest come when Redis answers again');
cmp_ok($count, '>', 7500, 'most of what waited');
cmp_ok($count, '<', 9000, 'not more than what may wait');
ok($node->wait_for_log(qr/LOG:  no notifications wait any more; \d+ were dropped/), 'the log says so');
# What was on its way when Redis froze may have come, or not.
my ($dropped) = $node->safe_psql('postgres', q{SELECT evstream_health()->'components'->'redis'})
  =~ /(\d+) notifications were dropped/;
cmp_ok($dropped // 0, '>', 1000, 'health tells how many were dropped');
cmp_ok($dropped // 0, '<=', 10000 - $count, 'and they did not come');
is($node->safe_psql('postgres', $notifier), $pid, 'the notifier is still the same process');

# ---- No Redis at all ----

redis_kill();
$node->safe_psql('postgres', q{NOTIFY later, 'while away'});
redis_start();
$listener = redis_connect();
$listener->command('PSUBSCRIBE', 'evstream:pg:*');
# The notifier may have been there before us: then nobody heard it.
ok(listened('later'), 'notifications go on with another Redis');

$node->append_conf('postgresql.conf', "evstream.notify_channels = ''");
$node->reload;
ok(wait_for_sql($node, 'postgres', q{SELECT pg_notification_queue_usage()}, '0'), 'no channels');

$node->stop;
done_testing();
