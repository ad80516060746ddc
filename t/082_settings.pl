# Settings of PostgreSQL that others need, however odd, and event triggers:
# neither stops the workers nor changes what they count.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamRedis;
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', 'evstream.redis_url' => redis_start(), 'evstream.notify_channels' => 'news',
	wal_level => 'logical');
my $version = $node->safe_psql('postgres', 'SHOW server_version_num');
my $n = 0;

# How a session looks that is not hindered; the others take the database's settings.
my $free = '-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0'
	. ' -c default_transaction_read_only=off -c role=none -c client_encoding=UTF8 -c client_min_messages=warning'
	. ' -c search_path=pg_catalog -c escape_string_warning=off'
	. ($version >= 170000 ? ' -c transaction_timeout=0' : '');

sub odd_settings
{
	my ($db) = @_;
	my @settings = (
		q{statement_timeout = '1ms'}, q{lock_timeout = '1ms'}, q{idle_in_transaction_session_timeout = '1ms'},
		q{idle_session_timeout = '1ms'}, q{default_transaction_read_only = on},
		q{default_transaction_isolation = 'serializable'}, q{default_transaction_deferrable = on},
		q{row_security = off}, q{session_replication_role = replica}, q{search_path = evil, pg_catalog},
		q{"DateStyle" = 'SQL, DMY'}, q{"IntervalStyle" = 'sql_standard'}, q{"TimeZone" = 'Asia/Kathmandu'},
		q{bytea_output = 'escape'}, q{extra_float_digits = -15}, q{standard_conforming_strings = off},
		q{escape_string_warning = on}, q{client_encoding = 'LATIN1'}, q{quote_all_identifiers = on},
		q{transform_null_equals = on}, q{array_nulls = off}, q{exit_on_error = on}, q{role = 'nobody'},
		q{synchronous_commit = on}, q{plan_cache_mode = force_custom_plan}, q{enable_indexscan = off},
		q{work_mem = '64kB'}, q{"plpgsql.extra_errors" = 'all'}, q{"plpgsql.variable_conflict" = 'use_column'},
		q{log_statement = 'all'}, q{xmloption = 'document'}, q{check_function_bodies = on});
	push @settings, q{transaction_timeout = '200ms'} if $version >= 170000;
	$node->safe_psql('postgres', join('', map { "ALTER DATABASE $db SET $_;" } @settings));
	return;
}

# Runs SQL without what would hinder it.
sub freely
{
	my ($db, $sql) = @_;
	local $ENV{PGOPTIONS} = $free;
	return $node->safe_psql($db, $sql);
}

sub waits_for
{
	my ($db, $sql, $expected, $name) = @_;
	local $ENV{PGOPTIONS} = $free;
	ok(wait_for_sql($node, $db, $sql, $expected), $name);
	return;
}

# ---- The database is made odd before and after the extension is made ----

$node->safe_psql('postgres', 'CREATE ROLE nobody');
for my $case ([ 'after', 'SCHEMA public' ], [ 'before', 'SCHEMA home' ])
{
	my ($db, $where) = @$case;
	my ($schema) = $where =~ /(\w+)$/;
	my $from = -s $node->logfile;

	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->safe_psql('postgres', "ALTER DATABASE $db SET evstream.redis_prefix = '$db:'");
	$node->safe_psql($db, q{CREATE SCHEMA evil; CREATE SCHEMA home;
		CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT '-infinity'::timestamptz $$;
		CREATE FUNCTION evil.count(anyelement) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint';
		CREATE FUNCTION evil.eq(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
		CREATE OPERATOR evil.= (leftarg = text, rightarg = text, function = evil.eq)});
	odd_settings($db) if $db eq 'before';
	freely($db, "CREATE EXTENSION evstream $where");
	is(freely($db, 'SELECT count(*) FROM evstream.restored'), 0, "$db: row_security of the database is no sign of a restore");
	odd_settings($db) if $db eq 'after';
	freely($db, "SELECT $schema.evstream_restart()");

	waits_for($db, "SELECT string_agg(role, ' ' ORDER BY role) FROM $schema.evstream_workers WHERE pid IS NOT NULL",
		'consumer maintenance notifier', "$db: the workers run");
	my $filter = freely($db, qq{SELECT $schema.evstream_subscribe('s', '{view}', properties => E'{"k": "a\\\\\\\\b"}')});
	# Everything else as the database has it, so with each of the settings that a caller can bear.
	is(freely($db, qq{SELECT count($schema.evstream_track('u' || i % 3, 'view', jsonb_build_object('amount', 1.5, 'k', E'a\\\\b'), occurred_at => '2026-01-01 23:00+00'))
		FROM generate_series(1, 30) i}), 30, "$db: tracked");
	is(freely($db, qq{SET search_path = evil, pg_catalog; SELECT $schema.evstream_track_batch('[{"user_id": "u1", "event_type": "view", "amount": 2}, {"user_id": 0.5}]', 'dead_letter')}), 1,
		"$db: tracked in a batch");
	is(freely($db, "SELECT $schema.evstream_wait('60 s')"), 't', "$db: counted and sent");
	is(freely($db, "SELECT string_agg(user_id || '=' || event_count, ' ' ORDER BY user_id) FROM $schema.evstream_daily_summary WHERE day = '2026-01-01'"),
		'u0=10 u1=10 u2=10', "$db: the day is that of UTC");
	is(freely($db, "SELECT sum(event_count) FROM $schema.evstream_daily_counts"), 31, "$db: all of them, once");
	is(freely($db, "SELECT reason || ' ' || (convert_from(record_value, 'UTF8')::jsonb = '{\"user_id\": 0.5}') FROM $schema.evstream_dead_letters"),
		'bad_user_id true', "$db: the dead letter");
	my @stream = redis_stream("$db:stream:s");
	is(scalar(@stream), 30, "$db: the stream has what matches");
	like($stream[0][1] // '', qr/"occurred_at": ?"2026-01-01T23:00:00\.000000(Z|\+00:00)".*"amount": ?1\.5[,}]/, "$db: in the form of the contract");

	is(freely($db, "SELECT $schema.evstream_filter_update($filter, min_amount => 1.5), $schema.evstream_unsubscribe('s')"), 't|1', "$db: filters change");
	is(freely($db, "SELECT $schema.evstream_dead_letter_discard(id) FROM $schema.evstream_dead_letters"), 't', "$db: a dead letter is discarded");
	is(freely($db, "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT $schema.evstream_rebuild('2026-01-01', '2026-01-01'); COMMIT"), 4,
		"$db: stats are rebuilt");
	is(freely($db, "SELECT sum(event_count) FROM $schema.evstream_daily_counts"), 31, "$db: and are what they were");
	like(freely($db, "SELECT $schema.evstream_metrics()"), qr/^evstream_up 1$/m, "$db: metrics");
	is(freely($db, "SELECT $schema.evstream_health() ->> 'status'"), 'ok', "$db: health");

	# A notification whose payload no LATIN1 has.
	my $payload = "\xd0\xb6";
	my $listener = redis_connect();
	$listener->command('SUBSCRIBE', "$db:pg:news");
	freely($db, "SELECT pg_notify('news', '$payload')");
	is_deeply([ @{ ($listener->read(60) // [ [] ])->[0] }[ 1, 2 ] ], [ "$db:pg:news", $payload ], "$db: the payload of a notification is not recoded");

	is(log_lines($node, qr/(ERROR|FATAL|WARNING|PANIC):/, $from), '', "$db: nothing to complain of");
	freely($db, 'DROP EXTENSION evstream');
}

# ---- Event triggers ----

$node->safe_psql('postgres', q{CREATE EXTENSION evstream;
	CREATE TABLE public.audit (tag text);
	CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no % here', tg_tag; END $$;
	CREATE FUNCTION public.note() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.audit VALUES (tg_tag); END $$});
ok(wait_for_sql($node, 'postgres', q{SELECT count(*) FROM evstream_workers WHERE role = 'maintenance' AND state = 'idle'}, 1), 'leaves are made');
# What the workers will have to make and to drop.
$node->safe_psql('postgres', q{DO $$ DECLARE leaf regclass; BEGIN
		FOR leaf IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'evstream.events'::regclass LOOP EXECUTE format('DROP TABLE %s', leaf); END LOOP;
	END $$;
	CREATE TABLE evstream.events_20200101 (LIKE evstream.events);
	ALTER TABLE evstream.events ATTACH PARTITION evstream.events_20200101 FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00');
	CREATE EVENT TRIGGER refuse_start ON ddl_command_start EXECUTE FUNCTION public.refuse();
	CREATE EVENT TRIGGER refuse_end ON ddl_command_end EXECUTE FUNCTION public.refuse();
	CREATE EVENT TRIGGER refuse_drop ON sql_drop EXECUTE FUNCTION public.refuse();
	CREATE EVENT TRIGGER note ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.note();
	ALTER EVENT TRIGGER note ENABLE ALWAYS});
my ($rc, $out, $err) = $node->psql('postgres', 'CREATE TABLE t ()');
like($err, qr/no CREATE TABLE here/, 'a trigger refuses what is defined');
my $from = -s $node->logfile;
$node->safe_psql('postgres', q{SELECT evstream_track('u', 'view'); SELECT evstream_restart()});
is($node->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', 'not the leaves that the workers make');
is($node->safe_psql('postgres', q{SELECT count(*) FROM evstream_events}), 1, 'the event is stored');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_class WHERE relname ~ '^ids_[0-9]+$' AND relispartition}), 1, 'its id, too');
ok(wait_for_sql($node, 'postgres', q{SELECT to_regclass('evstream.events_20200101') IS NULL}, 't'), 'and not those that they drop');
is($node->safe_psql('postgres', q{SELECT DISTINCT tag FROM public.audit}), 'CREATE TABLE', 'one that is ENABLE ALWAYS sees them');
is(log_lines($node, qr/ERROR:/, $from), '', 'without an error');

$node->stop('fast');
done_testing();
