# A Redis that lets nobody do more than he needs; texts of subscribers and users in Redis.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use EvstreamRedis;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# As in the README
my $acl = 'user evstream on >sesame-4711 resetchannels ~evstream:* &evstream:* -@all +select +eval +evalsha'
  . ' +hmget +hget +hset +hdel +type +exists +xinfo|stream +xadd +persist +pexpire +publish';
my @admin = (undef, [ '--user', 'admin', '--pass', 'admin', '--no-auth-warning' ]);
my $url = redis_start($acl, 'user admin on >admin ~* &* +@all', 'user default off');

my $node = new_node('main', 'evstream.redis_url' => $url, 'evstream.publish_all' => 'on', 'evstream.notify_channels' => 'orders', extension => 1);
my $secrets = $node->data_dir . '/evstream.secrets';

sub sql { return $node->safe_psql('postgres', @_); }

sub health
{
	my ($status, $why, $name) = @_;
	ok(wait_for_sql($node, 'postgres', qq{SELECT (r ->> 'status') = '$status' AND COALESCE(r ->> 'why', '') ~ \$r\$$why\$r\$
		FROM (SELECT evstream_health() -> 'components' -> 'redis') h (r)}, 't', 30), $name)
	  or diag(sql('SELECT evstream_health()'));
	return;
}

sub set_secrets
{
	my ($text) = @_;
	unlink($secrets);
	append_to_file("$secrets.new", $text);
	chmod(0600, "$secrets.new");
	rename("$secrets.new", $secrets);
	$node->reload;
	return;
}

sub settle { return is(sql(q{SELECT evstream_wait('60 s')}), 't', $_[0]); }

# ---- A user with the rights of the README ----

sql(q{SELECT evstream_subscribe('all'), evstream_subscribe('gone')});
health('degraded', 'does not accept the user or password', 'nobody is let in without a password');
set_secrets("redis_user = evstream\n");
health('degraded', 'does not accept the user or password', 'a user without a password is not another user');
set_secrets("redis_user = evstream\nredis_password = wrong-4711\n");
health('degraded', 'does not accept the user or password', 'nor is one with a wrong one');
is(redis_cli(@admin, 'DBSIZE'), '0', 'nothing was written until now');
set_secrets("redis_user = evstream\nredis_password = sesame-4711\n");
sql(q{SELECT count(evstream_track('u', 'view', jsonb_build_object('n', i))) FROM generate_series(1, 100) i});
settle('the right one');
health('ok', '', 'all is well');
redis_cli(@admin, 'ACL', 'LOG', 'RESET');
sql(q{SELECT evstream_unsubscribe('gone')});
redis_cli(@admin, 'SET', 'evstream:stream:aside', 'x');
sql(q{SELECT evstream_subscribe('aside'); SELECT evstream_track('u', 'view'); NOTIFY orders, 'x'});
health('degraded', 'aside', 'a key that is not ours');
redis_cli(@admin, 'DEL', 'evstream:stream:aside');
ok(wait_for_sql($node, 'postgres', q{SELECT evstream_health() #>> '{components,redis,status}'}, 'ok', 60), 'has gone');
sql(q{SELECT evstream_take_over(); SELECT evstream_subscribe('gone'); SELECT evstream_track('u', 'view')});
settle('taken over');
redis_cli(@admin, 'SCRIPT', 'FLUSH');
redis_cli(@admin, 'DEL', 'evstream:stream:all');
sql(q{SELECT evstream_track('u', 'view')});
settle('a script and a stream that are gone');
is(redis_cli(@admin, 'ACL', 'LOG'), '', 'the rights are enough');
my $connection = redis_connect();
is($connection->command('AUTH', 'evstream', 'sesame-4711'), 'OK', 'the same user');
foreach my $command ([ 'GET', 'evstream:state' ], [ 'HGET', 'other', 'x' ], [ 'KEYS', '*' ], [ 'CONFIG', 'GET', '*' ], [ 'FLUSHALL' ], [ 'DEL', 'evstream:state' ],
	[ 'SUBSCRIBE', 'evstream:events' ], [ 'PUBLISH', 'other', 'x' ], [ 'EVAL', q{return redis.call('KEYS', '*')}, 0 ], [ 'ACL', 'WHOAMI' ], [ 'CLIENT', 'LIST' ])
{
	eval { $connection->command(@$command); };
	like($@, qr/NOPERM|ACL failure|can't run this command|No permissions/i, "may not: @$command");
}

# A subscriber's rights
redis_cli(@admin, 'ACL', 'SETUSER', 'all', 'on', '>all', 'resetchannels', '~evstream:stream:all', '&evstream:notify:all', '+xread', '+xrange', '+xrevrange', '+xinfo|stream', '+subscribe');
$connection = redis_connect();
is($connection->command('AUTH', 'all', 'all'), 'OK', 'a subscriber');
is(scalar(@{ $connection->command('XRANGE', 'evstream:stream:all', '-', '+') }), 1, 'may read what is his');
foreach my $command ([ 'XRANGE', 'evstream:stream:gone', '-', '+' ], [ 'SUBSCRIBE', 'evstream:notify:gone' ], [ 'SUBSCRIBE', 'evstream:events' ], [ 'HGETALL', 'evstream:state' ],
	[ 'XADD', 'evstream:stream:all', '*', 'event', '{}' ], [ 'DEL', 'evstream:stream:all' ], [ 'PUBLISH', 'evstream:notify:all', '{}' ])
{
	eval { $connection->command(@$command); };
	like($@, qr/NOPERM/, "and not: @$command");
}
is($connection->command('SUBSCRIBE', 'evstream:notify:all')->[2], 1, 'but be told');

# ---- Texts that mean something elsewhere ----

my @ids = ('*', '?', '[a-z]', '{x}', '}{', "'", '"', '\\', "\\'\"", '..', '/', '%s%n', '$1', ':', 'state', 'a:b', 'all;DROP', '--', "\x{e9}\x{1F600}", ("\x{20ac}" x 255), '0', '-1', '${x}', '`id`', '<b>', '\x00', '\u0000', '\r\n');
{
	my $values = join(', ', map { (my $id = $_) =~ s/'/''/g; utf8::encode($id); "('$id')" } @ids);
	sql("SELECT count(evstream_subscribe(id, event_types => ARRAY['odd'])) FROM (VALUES $values) v (id)");
}
foreach my $bad (q{''}, q{' '}, q{E'a\nb'}, q{E'a\r\nb'}, q{E'a\tb'}, q{E'\x01'}, q{E'\u00a0'}, q{E'\u200b'}, q{E'\u2028'}, q{repeat('x', 256)}, 'NULL')
{
	my ($rc, $out, $err) = $node->psql('postgres', "SELECT evstream_subscribe($bad)");
	like($err, qr/ERROR:  (invalid subscriber_id|subscriber_id must not be null)/, "$bad is no subscriber");
}
$connection = redis_connect();
$connection->command('AUTH', 'admin', 'admin');
my $listener = redis_connect();
$listener->command('AUTH', 'admin', 'admin');
$listener->command('PSUBSCRIBE', 'evstream:notify:*');
my $before = { map { $_ => 1 } @{ $connection->command('KEYS', '*') } };
my $user = qq{u"\\'\r\n\x01{}*\$1%s XADD evstream:state};
sql(q{SELECT evstream_track(E'u"\\\\''\r\n\x01{}*$1%s XADD evstream:state', 'odd', '{"k\"\\\\\n": "]]>\r\n*3\r\n$4\r\nXADD"}')});
settle('odd texts');
my %keys = map { my $k = $_; utf8::decode($k); $k => 1 } grep { !$before->{$_} } @{ $connection->command('KEYS', '*') };
is_deeply(\%keys, { map { ("evstream:stream:$_" => 1) } @ids }, 'each subscriber has one key, and there is no other');
my $json = JSON::PP->new->utf8;
my %wrong;
foreach my $id (@ids)
{
	my $entries = $connection->command('XRANGE', "evstream:stream:$id", '-', '+');
	my $event = eval { $json->decode($entries->[0][1][1]); } // {};
	$wrong{$id} = $event unless @$entries == 1 && $event->{user_id} eq $user && $event->{properties}{"k\"\\\n"} eq "]]>\r\n*3\r\n\$4\r\nXADD";
}
is_deeply(\%wrong, {}, 'with one event, as it was given');
my %told;
while (keys %told < @ids + 3 and my $message = $listener->read(10))
{
	my (undef, undef, $channel, $text) = @{ $message->[0] };
	my $told = $json->decode($text);
	utf8::decode($channel);
	$told{ $told->{subscriber_id} }++ if $channel eq "evstream:notify:$told->{subscriber_id}" && $told->{event}{user_id} eq $user;
}
is_deeply(\%told, { map { ($_ => 1) } @ids, 'all', 'aside', 'gone' }, 'and was told of it on a channel of its own');
is(sql(q{SELECT count(evstream_unsubscribe(subscriber_id)) FROM (SELECT DISTINCT subscriber_id FROM evstream_filters WHERE event_types = '{odd}') f}), scalar(@ids), 'unsubscribed');

unlike(slurp_file($node->logfile), qr/signal 11|PANIC|TRAP/, 'no crash');
$node->stop;
done_testing();
