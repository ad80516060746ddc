# The relay: what goes to Kafka and how, and what happens when Kafka does not take it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use MIME::Base64 qw(decode_base64);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $kafka = kafka_start();
my $node = new_node('main', 'evstream.kafka_brokers' => $kafka, 'evstream.kafka_partitions' => 3, wal_level => 'replica', max_wal_senders => 2);

sub sql { return $node->safe_psql('postgres', @_); }
sub relay_pid { return sql(q{SELECT pid FROM evstream_workers WHERE role = 'relay'}); }
sub kafka_health { return sql(q{SELECT evstream_health() -> 'components' -> 'kafka' ->> 'status'}); }

# Tracks so many events of some users; gives the statement.
sub track_sql
{
	my ($count, $type) = @_;
	return "SELECT count(evstream_track('user-' || i % 50, '$type', jsonb_build_object('n', i)))
		FROM generate_series(1, $count) i";
}

# All events of this type are stored, each once.
sub stored
{
	my ($type, $count, $name) = @_;
	ok(wait_for_sql($node, 'postgres', "SELECT count(*) || ' ' || count(DISTINCT event_id)
		FROM evstream_events WHERE event_type = '$type'", "$count $count", 90), $name);
	return;
}

# ---- What a record looks like ----

sql('CREATE EXTENSION evstream');
ok($node->wait_for_log(qr/LOG:  created Kafka topic "evstream.events" with 3 partitions/),
	'the topic is made');

my $trace = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
my $id = sql(qq{SET evstream.traceparent = '$trace';
	SELECT evstream_track('üser', 'view', '{"item_id": "sku-1", "a": [1]}', NULL, '2026-01-02 03:04:05+00')});
my $other = sql(q{SELECT evstream_track(42, 'click', '{}', evstream_event_id('mine'))});
is(sql('SELECT evstream_wait()'), 't', 'events arrive');

my @watermarks = watermarks('evstream.events');
is(scalar(@watermarks), 3, 'partitions of the topic');
my %record = map { $_->{headers}{event_id} => $_ } consume('evstream.events');
is(scalar(keys %record), 2, 'one record for each event');
is($record{$id}{key}, "\xc3\xbcser", 'the key is the user');
is($record{$other}{key}, '42', 'also where the user is a number');
is($record{$id}{headers}{traceparent}, $trace, 'trace context as a header');
ok(!exists $record{$other}{headers}{traceparent}, 'no header without one');
like($record{$id}{headers}{'evstream-origin'}, qr{^[0-9a-f-]{36}/\d+/\d+/\d+$}, 'origin of the record');
like($record{$id}{value}, qr/"event_id": ?"$id".*"occurred_at": ?"2026-01-02T03:04:05\.000000Z"/, 'value');
cmp_ok(abs($record{$id}{time} / 1000 - time()), '<', 60, 'its time is that of tracking');

# ---- Commits and rollbacks, in order ----

sql(qq{BEGIN; @{[track_sql(500, 'rolled')]}; ROLLBACK});
sql(qq{BEGIN; @{[track_sql(500, 'late')]}; PREPARE TRANSACTION 'late'});
sql(track_sql(30000, 'early'));
is(sql('SELECT evstream_wait()'), 't', 'events behind an open transaction arrive');
stored('early', 30000, 'all that was committed');
is(sql(q{SELECT count(*) FROM evstream_events WHERE event_type = 'late'}), 0, 'nothing that was not');
sql(q{COMMIT PREPARED 'late'});
stored('late', 500, 'a transaction that commits late is not skipped');
is(sql(q{SELECT count(*) FROM evstream_events WHERE event_type = 'rolled'}), 0, 'a rollback leaves nothing');

my (%last, $disorder);
foreach my $r (consume('evstream.events'))
{
	next if $r->{value} !~ /"event_type": ?"early".*"n": ?(\d+)/;
	$disorder++ if $1 <= ($last{ $r->{key} } // 0);
	$last{ $r->{key} } = $1;
}
is(scalar(keys %last), 50, 'records of all users');
is($disorder, undef, 'in order for each of them');
ok(wait_for_sql($node, 'postgres', 'SELECT xid::text, id FROM evstream.relay_log ORDER BY seq DESC LIMIT 1', '0|0'),
	'an idle relay stands at the end of a tick');

# ---- Nothing is sent that a crash could take back ----

my $writer = sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'});
kill('STOP', $writer);
for my $turn (1 .. 3)
{
	my ($end) = sql(qq{SET synchronous_commit = off; BEGIN;
		@{[track_sql(2, "unflushed$turn")]}; SELECT pg_current_wal_insert_lsn(); COMMIT}) =~ m{(\w+/\w+)$};
	stored("unflushed$turn", 2, "a commit that waited for no flush: $turn");
	is(sql("SELECT pg_current_wal_flush_lsn() > '$end'"), 't', 'it was flushed before it was sent');
	sql(track_sql(2, "flushed$turn"));
	stored("flushed$turn", 2, 'and one that waited');
}
kill('CONT', $writer);

# With synchronous standbys what they do not have yet is not sent either.
$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'\n");
# not restart, which would start it without what check-asan has before it
$node->stop;
$node->start;
sql('SET synchronous_commit = local; ' . track_sql(2, 'here'));
ok(wait_for_sql($node, 'postgres', q{SELECT wait_event FROM pg_stat_activity WHERE pid = (SELECT pid FROM evstream_workers WHERE role = 'relay')}, 'SyncRep'), 'the relay waits for a standby');
is(sql(q{SELECT count(*) FROM evstream_events WHERE event_type = 'here'}), 0, 'and what is here alone is not sent');
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''\n");
$node->reload;
stored('here', 2, 'before that is over');

# ---- Kafka goes away ----

my $log = -s $node->logfile;
kafka_kill();
is(join(' ', map { sql(track_sql(20000, 'away')) } 1 .. 3), '20000 20000 20000', 'tracking goes on without Kafka');
ok(wait_for_sql($node, 'postgres', q{SELECT evstream_health() ->> 'status'}, 'degraded', 30), 'health says degraded');
like(sql(q{SELECT evstream_health() -> 'components' -> 'kafka' ->> 'why'}), qr/could not reach Kafka/, 'and why');
is(sql(q{SELECT evstream_wait('1 s')}), 'f', 'nothing arrives');
my $pid = relay_pid();
sql("SELECT pg_terminate_backend($pid)");
ok(wait_for_sql($node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid", 0, 60), 'the relay ends with records in hand, and does not wait for Kafka');
sleep(5);
kafka_start();
stored('away', 60000, 'all of it arrives afterwards');
ok(wait_for_sql($node, 'postgres', q{SELECT evstream_health() -> 'components' -> 'kafka' ->> 'status'}, 'ok', 30),
	'health is well again');
cmp_ok(count_log($node, 'relay WARNING', $log), '<=', 2, 'one line of log for each relay');

# A broker that is there and does not answer
kafka_pause();
sql(track_sql(1000, 'silent'));
ok(wait_for_sql($node, 'postgres', q{SELECT evstream_health() -> 'components' -> 'kafka' ->> 'status'}, 'degraded', 40),
	'silence is noticed');
kafka_continue();
stored('silent', 1000, 'and ends');

# One that ends while it has read many small commits, one by one: the next one does not wait
# for a commit of its own with each of them.
kafka_pause();
sql(join('', map { track_sql(1, 'tick') . ";\nSELECT pg_sleep(0.01);\n" } 1 .. 400));
ok(wait_for_sql($node, 'postgres', 'SELECT count(*) > 150 FROM evstream.ticks', 't', 30), 'many commits are read by themselves');
$pid = relay_pid();
sql("SELECT pg_terminate_backend($pid)");
ok(wait_for_sql($node, 'postgres', "SELECT count(*) FROM evstream_workers WHERE role = 'relay' AND pid IS NOT NULL AND pid <> $pid", 1, 30), 'another relay');
kafka_continue();
stored('tick', 400, 'and sends them all');

# ---- The relay is killed ----

sql(track_sql(50000, 'killed'));
my $offset = -s $node->logfile;
kill 'KILL', relay_pid();
$node->wait_for_log(qr/all server processes terminated; reinitializing/, $offset);
ok(wait_for_sql($node, 'postgres', 'SELECT count(*) FROM evstream_workers WHERE pid IS NOT NULL', 3), 'all workers are back');
stored('killed', 50000, 'nothing is lost, nothing counts twice');

# ---- The topic is made again ----

sql(track_sql(1000, 'before'));
stored('before', 1000, 'before');
delete_topic('evstream.events');
sql(track_sql(1000, 'after'));
stored('after', 1000, 'the topic is deleted while we run');
stored('before', 1000, 'what was there before counts once');
is(scalar(my @partitions = watermarks('evstream.events')), 3, 'with our number of partitions');
# As long as the one before: by its offsets it could be the same.
delete_topic('evstream.events');
sql(track_sql(1000, 'again'));
stored('again', 1000, 'the topic is deleted again, and the new one has as many records');
is(join(' ', map { "@$_" } watermarks('evstream.events')), join(' ', map { "@$_" } @partitions), 'which end at our positions');

# ---- Records that the broker refuses ----

sql('CREATE DATABASE small');
sql(q{ALTER DATABASE small SET evstream.kafka_topic = 'small'});
make_topic('small', 8, 'max.message.bytes=20000');
$node->safe_psql('small', 'CREATE EXTENSION evstream');
# They do not compress: a batch of small ones is refused as well
$node->safe_psql('small', q{
	SELECT count(evstream_track('user-' || i % 50, 'view', jsonb_build_object('n', i, 'pad',
		(SELECT string_agg(md5((i * 10000 + j)::text), '')
		 FROM generate_series(1, CASE WHEN i % 500 = 0 THEN 1500 ELSE 10 END) j))))
	FROM generate_series(1, 3000) i});
ok(wait_for_sql($node, 'small', q{SELECT count(*), count(DISTINCT event_id) FROM evstream_events}, '2994|2994', 60),
	'good ones arrive');
is($node->safe_psql('small', q{SELECT reason, detail, topic, log_partition, log_offset, attempts,
	count(*), min(length(record_value)) > 48000 FROM evstream_dead_letters GROUP BY 1, 2, 3, 4, 5, 6}),
	'refused|Broker: Message size too large|small|||1|6|t', 'the others are dead letters');
like($node->safe_psql('small', q{SELECT convert_from(record_key, 'UTF8') || ' ' || convert_from(record_value, 'UTF8')
	FROM evstream_dead_letters ORDER BY id LIMIT 1}), qr/^user-0 \{.*"n": ?500\b/, 'with their key and value');
my ($header) = split(/\n/, $node->safe_psql('small', q{SELECT header ->> 1 FROM evstream_dead_letters,
	jsonb_array_elements(record_headers) header WHERE header ->> 0 = 'event_id' ORDER BY id LIMIT 1}));
like(decode_base64($header), qr/^[0-9a-f-]{36}$/, 'and their headers');
is($node->safe_psql('small', q{SELECT evstream_wait('10 s', false)}), 't', 'nothing is waited for');
$node->safe_psql('small', q{SELECT evstream_track('u', 'view')});
is($node->safe_psql('small', q{SELECT evstream_wait('10 s', false)}), 't', 'and it goes on');
# Batches of several partitions are refused together: none of their records may be blamed
for my $round (1 .. 3)
{
	my $pid = $node->safe_psql('small', q{SELECT pid FROM evstream_workers WHERE role = 'relay'});
	$node->safe_psql('small', 'SELECT evstream_restart()');
	wait_for_sql($node, 'small', qq{SELECT count(*) FROM evstream_workers WHERE role = 'relay' AND pid <> $pid}, 1);
	$node->safe_psql('small', q{
		SELECT count(evstream_track('round-' || i % 50, 'view', jsonb_build_object('pad',
			(SELECT string_agg(md5((i * 10000 + j)::text), '') FROM generate_series(1, 10) j))))
		FROM generate_series(1, 6000) i});
	$node->safe_psql('small', q{SELECT evstream_wait('30 s', false)});
}
is($node->safe_psql('small', q{SELECT count(*) FROM evstream_dead_letters}), 6, 'no good record is a dead letter');
is($node->safe_psql('small', q{SELECT count(*) FROM evstream_events WHERE user_id LIKE 'round-%'}), 18000, 'all are stored');

# ---- A broker whose clock is another ----

# As if its clock were ahead: all records are too old for it.
make_topic('late', 2, 'message.timestamp.before.max.ms=1');
sql('CREATE DATABASE late');
sql(q{ALTER DATABASE late SET evstream.kafka_topic = 'late'});
$offset = -s $node->logfile;
$node->safe_psql('late', 'CREATE EXTENSION evstream; ' . track_sql(2000, 'view'));
my $begun = $node->safe_psql('late', 'SELECT now()');
ok(wait_for_sql($node, 'late', 'SELECT count(*), count(DISTINCT event_id) FROM evstream_events', '2000|2000', 60), 'they are counted all the same');
is($node->safe_psql('late', 'SELECT count(*) FROM evstream_dead_letters'), 0, 'none is a dead letter');
is($node->safe_psql('late', "SELECT count(*) FROM evstream_events WHERE occurred_at > '$begun'"), 0, 'and have the time at which they were tracked');
is((grep { $_->{time} >= 0 } consume('late')), 0, 'though Kafka has none');
is(count_log($node, qr/WARNING:  Kafka refuses the time of records/, $offset), 1, 'the log says it once');

# ---- Options ----

foreach my $case (
	[ 'linger.ms=abc', qr/linger\.ms/ ],
	[ 'no.such.thing=1', qr/no librdkafka property "no\.such\.thing"/ ],
	[ 'acks=1', qr/"acks" is set by evstream itself/ ],
	[ 'bootstrap.servers=x', qr/evstream\.kafka_brokers/ ],
	[ 'plugin.library.paths=/tmp/x', qr/evstream\.secrets_file/ ],
	[ 'dr_msg_cb=1', qr/cannot be given as text/ ],
	[ 'sasl.password=hidden', qr/is a secret.*evstream\.secrets_file/ ],
	[ 'hidden', qr/key=value/ ])
{
	my ($options, $expected) = @$case;
	my ($out, $err);
	isnt($node->psql('postgres', "ALTER SYSTEM SET evstream.kafka_options = '$options'", stdout => \$out, stderr => \$err),
		0, "kafka_options '$options' is refused");
	like($err =~ s/^LINE.*//mr, $expected, 'with a reason');
	unlike($err, qr/(DETAIL|ERROR|HINT):.*hidden/, 'which does not repeat a secret') if $options =~ /hidden/;
}
sql(q{ALTER SYSTEM SET evstream.kafka_options = 'compression.type=gzip; linger.ms=1'});
$node->reload;
sql(track_sql(100, 'options'));
stored('options', 100, 'good options are taken by a reload');

unlike(slurp_file($node->logfile), qr/signal 6|signal 11|PANIC/, 'no crash but our own');
$node->stop;
done_testing();
