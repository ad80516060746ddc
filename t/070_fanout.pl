# Fan-out: what reaches subscribers through Redis, and that it is what SQL finds.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
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

# ---- Random filters and the truth of SQL, while notifier and Redis are killed in turn ----

sql(q{ALTER SYSTEM SET evstream.publish_all = off});
sql(q{ALTER SYSTEM SET evstream.stream_maxlen = 1000000});
$node->reload;
sql(q{
	DO $$
	DECLARE
		types text[] := ARRAY['view', 'click', 'purchase', 'login'];
	BEGIN
		PERFORM setseed(0.42);
		FOR i IN 1 .. 200 LOOP
			FOR k IN 1 .. 1 + i % 3 LOOP
				PERFORM evstream_subscribe('s' || i,
					CASE WHEN random() < 0.7 THEN ARRAY[types[1 + floor(random() * 4)::int], types[1 + floor(random() * 4)::int]] END,
					CASE WHEN random() < 0.4 THEN ARRAY['premium', 'free'] END,
					CASE WHEN random() < 0.4 THEN floor(random() * 200)::numeric END,
					CASE WHEN random() < 0.7 THEN (SELECT array_agg('user-' || floor(random() * 60 + k)::int) FROM generate_series(1, 5)) END,
					CASE WHEN random() < 0.2 THEN jsonb_build_object('page', 'p' || floor(random() * 3)::int) END);
			END LOOP;
		END LOOP;
	END $$});

sub notifier_pid { return sql(q{SELECT pid FROM evstream_workers WHERE role = 'notifier' AND pid IS NOT NULL}); }

my $events = q{
	SELECT count(evstream_track('user-' || (i * 7919) % 60, (ARRAY['view', 'click', 'purchase', 'login', 'other'])[1 + i % 5],
		jsonb_strip_nulls(jsonb_build_object('i', i,
			'amount', CASE WHEN i % 3 = 0 THEN (i * 31) % 300 END,
			'user_tier', (ARRAY['premium', 'free', 'basic', NULL])[1 + (i / 5) % 4],
			'page', 'p' || (i / 7) % 4))))
	FROM generate_series(1, 500) i};
my $stop = "$PostgreSQL::Test::Utils::tmp_check/stop";
my $load = IPC::Run::start([ 'sh', '-c',
		q{while [ ! -e "$1" ]; do psql -X -q -d "$2" -c "$3" >/dev/null || sleep 0.1; sleep 0.1; done},
		'sh', $stop, $node->connstr('postgres'), $events ], '<', \undef);
for my $round (1 .. 10)
{
	if ($round % 2)
	{
		my $pid = notifier_pid();
		kill('KILL', $pid) if $pid =~ /^\d+$/;
	}
	else
	{
		redis_kill();
		sleep(0.3);
		redis_start();
	}
	# until it sends again
	my $cursor = redis_cli('HGET', 'evstream:state', 'c:1:0');
	my $end = time() + 60;
	sleep(0.05) while redis_cli('HGET', 'evstream:state', 'c:1:0') eq $cursor && time() < $end;
	cmp_ok(time(), '<', $end, "round $round: it goes on");
}
append_to_file($stop, 'stop');
$load->finish;
ok(wait_for_sql($node, 'postgres', q{SELECT evstream_wait('60 s')}, 't', 120), 'all of it is sent');

my $file = PostgreSQL::Test::Utils::tempdir() . '/streams';
open(my $out, '>', $file) or die "$file: $!";
my $total = 0;
foreach my $i (1 .. 200)
{
	my ($epoch, $seq, $wrong) = (undef, 0, '');
	foreach my $entry (redis_stream("evstream:stream:s$i"))
	{
		my ($e, $s) = split(/-/, $entry->[0]);
		$epoch //= $e;
		$wrong .= " $entry->[0] after $epoch-$seq" if $e != $epoch || $s != $seq + 1;
		$seq = $s;
		my ($id) = $entry->[1] =~ /"event_id":"([^"]+)"/;
		print $out "s$i\t$s\t$id\n";
		$total++;
	}
	is($wrong, '', "sequences of s$i") if $wrong ne '';
}
close($out);
sql(q{CREATE TABLE streams (subscriber_id text, seq bigint, event_id uuid)});
$node->command_ok([ 'psql', '-X', '-d', $node->connstr('postgres'), '-c', "\\copy streams FROM '$file'" ], 'streams are read');
is(sql(q{
	WITH truth AS (
		SELECT subscriber_id, row_number() OVER (PARTITION BY subscriber_id ORDER BY log_offset) AS seq, event_id
		FROM evstream_events e CROSS JOIN (SELECT DISTINCT subscriber_id FROM evstream_filters WHERE subscriber_id ~ '^s\d') s
		WHERE e.properties ? 'i' AND EXISTS (SELECT FROM evstream_filters f WHERE f.subscriber_id = s.subscriber_id
			AND (f.event_types IS NULL OR e.event_type = ANY (f.event_types))
			AND (f.user_tiers IS NULL OR e.user_tier = ANY (f.user_tiers))
			AND (f.min_amount IS NULL OR e.amount >= f.min_amount)
			AND (f.user_ids IS NULL OR e.user_id = ANY (f.user_ids))
			AND (f.properties IS NULL OR e.properties @> f.properties)))
	SELECT count(*) FROM ((TABLE truth EXCEPT TABLE streams) UNION ALL (TABLE streams EXCEPT TABLE truth)) d}), 0,
	"the streams are what SQL finds ($total entries)");
cmp_ok($total, '>', 1000, 'which is not little');
is(sql('SELECT count(*) = (SELECT count(DISTINCT (subscriber_id, event_id)) FROM streams) FROM streams'), 't', 'nothing twice');

unlike(slurp_file($node->logfile), qr/signal 11|PANIC|TRAP/, 'no crash but our own');
$node->stop;
done_testing();
