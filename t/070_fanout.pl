# Fan-out: what reaches subscribers through Redis, and that it is what SQL finds.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use EvstreamTruth;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $redis = redis_start();
my $node = new_node('main', 'evstream.redis_url' => $redis, extension => 1);

sub sql { return $node->safe_psql('postgres', @_); }
sub health { return sql(q{SELECT evstream_health() -> 'components' -> 'redis' ->> 'status'}); }

# Events of a subscriber's stream, by a member of their properties.
sub received
{
	my ($subscriber) = @_;
	return join(' ', map { $_->[1] =~ /"n": ?(\d+)/ ? $1 : '?' } redis_stream("evstream:stream:$subscriber"));
}

# One epoch, sequences from 1 without a gap?
sub is_gapless
{
	my ($subscriber, $name) = @_;
	my ($wrong, $epoch, $seq) = ('');
	foreach my $entry (redis_stream("evstream:stream:$subscriber"))
	{
		my ($e, $s) = split(/-/, $entry->[0]);
		$wrong .= " $entry->[0]" if defined $epoch && ($e != $epoch || $s != $seq + 1);
		$wrong .= " $entry->[0]" if !defined $epoch && $s != 1;
		($epoch, $seq) = ($e, $s);
	}
	return is($wrong, '', $name // "sequences of $subscriber");
}

my $n = 0;

sub track
{
	my ($user, $type, $properties) = @_;
	$n++;
	$properties =~ s/\}$/, "n": $n}/;
	$properties =~ s/^\{, /{/;
	return sql("SELECT evstream_track('$user', '$type', '$properties')");
}

sub settle { return is(sql(q{SELECT evstream_wait('30 s')}), 't', $_[0] // 'events arrive in Redis'); }

# ---- One event, in full ----

ok(wait_for_sql($node, 'postgres', q{SELECT count(*) FROM evstream_workers WHERE role = 'notifier' AND pid IS NOT NULL}, 1),
	'a notifier runs');
ok(wait_for_sql($node, 'postgres', q{SELECT evstream_health() -> 'components' -> 'redis' ->> 'status'}, 'ok'), 'Redis is well');

sql(q{SELECT evstream_subscribe('all:"quoted"')});
my $trace = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
my ($heard, $listener);
$listener = IPC::Run::start([ 'redis-cli', '-p', redis_port(), 'PSUBSCRIBE', 'evstream:*' ], '<', \undef, '>', \$heard);
$listener->pump until $heard =~ /psubscribe/;
my $id = sql(qq{SET evstream.traceparent = '$trace';
	SELECT evstream_track('üser', 'view', '{"item_id": "sku \\"1", "amount": 10.50, "user_tier": "gold", "a": [1, null]}', NULL, '2026-01-02 03:04:05+00')});
settle('one event');
my @entries = redis_stream('evstream:stream:all:"quoted"');
is(scalar(@entries), 1, 'one entry');
my ($epoch) = $entries[0][0] =~ /^(\d+)-1$/;
cmp_ok(abs($epoch / 1000 - time()), '<', 60, 'the epoch is a time in milliseconds');
is(sql(qq{SELECT \$a\$$entries[0][1]\$a\$::jsonb = jsonb_build_object('event_id', '$id', 'user_id', 'üser', 'event_type', 'view',
		'occurred_at', '2026-01-02T03:04:05.000000Z', 'item_id', E'sku "1', 'amount', 10.5, 'user_tier', 'gold',
		'traceparent', '$trace', 'properties', e.properties,
		'received_at', to_char(e.received_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
		'log_partition', 0, 'log_offset', e.log_offset) FROM evstream_events e}), 't', 'with all that is known of it');
like($entries[0][1], qr/"amount":10\.5[,}]/, 'the amount is a number');
$listener->pump until $heard =~ /evstream:notify:all:"quoted"\n.*\n/;
like($heard, qr/^\{"epoch": $epoch, "seq": 1, "subscriber_id": "all:\\"quoted\\"", "event": \{.*\}\}$/m, 'and is published');

# ---- What matches ----

my $many = sql(q{SELECT evstream_subscribe('many', ARRAY['buy'])});
sql(q{SELECT evstream_subscribe('many', ARRAY['buy', 'view'], ARRAY['gold']);
	SELECT evstream_subscribe('many', NULL, NULL, NULL, ARRAY['u1']);
	SELECT evstream_subscribe('rich', NULL, NULL, 100);
	SELECT evstream_subscribe('gold', NULL, ARRAY['gold']);
	SELECT evstream_subscribe('type', ARRAY['Buy']);
	SELECT evstream_subscribe('props', NULL, NULL, NULL, NULL, '{"a": {"b": [1]}}')});
track('u1', 'buy', '{"amount": 100, "user_tier": "gold"}');
track('u1', 'buy', '{"amount": 99.99}');
track('u2', 'Buy', '{"amount": "100.00"}');
track('u2', 'look', '{"user_tier": "Gold"}');
track('u2', 'look', '{"a": {"b": [3, 2, 1], "c": 1}}');
track('u2', 'look', '{"a": {"b": [2]}}');
settle();
is(received('many'), '1 2', 'several filters that match: one notification');
is(received('rich'), '1 3', 'an amount equal to the threshold; none without amount');
is(received('gold'), '1', 'a tier that is absent, or in another case, does not match');
is(received('type'), '3', 'nor a type');
is(received('props'), '5', 'properties that hold what is asked for');

# ---- Filters that change in mid-stream ----

sql(q{SELECT evstream_subscribe('changing', ARRAY['a'])});
track('u', 'a', '{}');
settle();
my $changing = sql(q{SELECT filter_id FROM evstream_filters WHERE subscriber_id = 'changing'});
is(sql("SELECT evstream_filter_update($changing, ARRAY['b'])"), 't', 'changed');
track('u', 'a', '{}');
track('u', 'b', '{}');
settle();
sql("SELECT evstream_filter_remove($changing)");
track('u', 'b', '{}');
settle();
is(received('changing'), '7 9', 'a change and a removal hold for what comes after');
sql(q{SELECT evstream_subscribe('changing', ARRAY['c'])});
track('u', 'c', '{}');
settle();
is(received('changing'), '7 9 11', 'also a subscriber who comes again');
is_gapless('changing', 'in the same epoch');

# ---- Everything on one channel ----

sql(q{ALTER SYSTEM SET evstream.publish_all = on});
sql(q{ALTER SYSTEM SET evstream.stream_ttl = '3 s'});
$node->reload;
ok(wait_for_sql($node, 'postgres', q{SELECT count(*) FROM evstream_workers WHERE role = 'notifier' AND restarts > 0 AND state = 'idle'}, 1),
	'the notifier takes the settings');
sql(q{SELECT evstream_unsubscribe('all:"quoted"')});
track('nobody', 'nothing', '{}');
settle();
$listener->pump until $heard =~ /^evstream:events\n.*"n": ?12/m;
unlike($heard, qr/notify:.*\n.*"n": ?12/, 'every event is published, also one that nobody asked for');
$listener->kill_kill;

# ---- Expiry ----

ok(wait_for_sql($node, 'postgres', q{SELECT count(*) FROM evstream.former_subscribers WHERE expires_at IS NULL}, 0),
	'the stream of a former subscriber expires');
my $end = time() + 30;
sleep(0.1) while redis_cli('EXISTS', 'evstream:stream:all:"quoted"') ne '0' && time() < $end;
is(redis_cli('EXISTS', 'evstream:stream:all:"quoted"'), '0', 'and goes');
isnt(redis_cli('EXISTS', 'evstream:stream:many'), '0', 'others stay');
ok(wait_for_sql($node, 'postgres', 'SELECT count(*) FROM evstream.former_subscribers', 0), 'it is forgotten');
is(redis_cli('HGET', 'evstream:state', 's:all:"quoted"'), '', 'in Redis, too');
sql(q{SELECT evstream_subscribe('all:"quoted"')});
track('u', 'again', '{}');
settle();
@entries = redis_stream('evstream:stream:all:"quoted"');
like($entries[0][0], qr/^\d+-1$/, 'who comes again begins at 1');
cmp_ok((split(/-/, $entries[0][0]))[0], '>', $epoch, 'of a new epoch');
sql(q{SELECT evstream_unsubscribe('all:"quoted"')});
is(health(), 'ok', 'health is well');

# ---- More than one call takes ----

my $restarts = sql(q{SELECT restarts FROM evstream_workers WHERE role = 'notifier'});
sql(q{ALTER SYSTEM SET evstream.publish_all = off});
sql(q{ALTER SYSTEM SET evstream.stream_maxlen = 200});
$node->reload;
ok(wait_for_sql($node, 'postgres', qq{SELECT count(*) FROM evstream_workers WHERE role = 'notifier' AND restarts > $restarts AND state = 'idle'}, 1),
	'the notifier takes the settings');
my $nodes = (redis_lines('CONFIG', 'GET', 'stream-node-max-entries'))[1];
redis_cli('CONFIG', 'SET', 'stream-node-max-entries', 10);    # so that a call of XADD takes at most 1,000 away
my $messages = scratch_dir() . '/messages';
$listener = IPC::Run::start([ 'redis-cli', '-p', redis_port(), 'SUBSCRIBE', 'evstream:notify:bulk' ], '<', \undef, '>', $messages);
my $listening = time() + 60;
sleep(0.1) until slurp_file($messages) =~ /subscribe/ || time() > $listening;
sql(q{SELECT evstream_subscribe('bulk', ARRAY['bulk']);
	SELECT evstream_track_batch(jsonb_agg(jsonb_build_object('user_id', 'u', 'event_type', 'bulk', 'properties', jsonb_build_object('n', i)) ORDER BY i))
	FROM generate_series(1, 12000) i});
settle('12,000 events to one subscriber');
$listening = time() + 60;
sleep(0.1) until slurp_file($messages) =~ /"seq": 12000,/ || time() > $listening;
$listener->kill_kill;
my (%bulk, $said, $wrong);
foreach my $line (grep { /^\{/ } split(/\n/, slurp_file($messages)))
{
	my ($e, $seq, $number) = $line =~ /^\{"epoch": (\d+), "seq": (\d+), "subscriber_id": "bulk", "event": \{.*"n": ?(\d+)\}.*\}\}$/;
	$bulk{ $e // 'none' } = 1;
	$said++;
	$wrong //= $line if !defined $number || $seq != $said || $number != $said;
}
is($said, 12000, 'each of them is published');
is($wrong, undef, 'with the next sequence, in order');
is(scalar(keys %bulk), 1, 'in one epoch');
@entries = redis_stream('evstream:stream:bulk');
cmp_ok(scalar(@entries), '<=', 210, 'the stream is trimmed to its length, about');
cmp_ok(scalar(@entries), '>=', 200, 'and not to less');
is($entries[-1][0], (keys %bulk)[0] . '-12000', 'its last id is that of the last message');
is(scalar(grep { $_->[0] !~ /-(\d+)$/ || $_->[1] !~ /"n": ?$1\}/ } @entries), 0, 'each entry has the event of its sequence');
redis_cli('CONFIG', 'SET', 'stream-node-max-entries', $nodes);
sql(q{SELECT evstream_unsubscribe('bulk')});

# ---- Random filters and the truth of SQL, while notifier and Redis are killed in turn ----

sql(q{ALTER SYSTEM SET evstream.stream_maxlen = 1000000});
$node->reload;
random_filters($node, 1000);

# Each call again until it is committed: one whose answer was lost has the same ids.
my $dir = scratch_dir();
evgen('--batch-sql', "$dir/calls.sql", '--events', 10000, '--batch', 25, '--seed', 7, '--users', 300, '--zipf', 0.8, '--until', '2026-01-08T00:00:00Z');
my @calls = split(/^(?=SELECT public)/m, slurp_file("$dir/calls.sql"));
kill_in_turn($node, 10, sub {
	my ($round) = @_;
	my $calls = "$dir/calls.$round";
	mkdir($calls) or die "$calls: $!";
	append_to_file(sprintf('%s/%05d.sql', $calls, $_), shift @calls) foreach 1 .. 40;
	return IPC::Run::start([ 'sh', '-c',
			'for f in "$1"/*; do until psql -X -q -v ON_ERROR_STOP=1 -d "$2" -f "$f" >/dev/null 2>&1; do sleep 0.1; done; done',
			'sh', $calls, $node->connstr('postgres') ], '<', \undef);
});
is(scalar(@calls), 0, 'all of it is tracked');
ok(wait_for_sql($node, 'postgres', q{SELECT evstream_wait('60 s')}, 't', 120), 'all of it is sent');
is(sql(q{SELECT count(*) FROM evstream_events WHERE user_id LIKE 'u-%'}), 10000, 'each event once');
streams_are_truth($node, 'killed ten times');

unlike(slurp_file($node->logfile), qr/signal 11|PANIC|TRAP/, 'no crash but our own');
$node->stop;
done_testing();
