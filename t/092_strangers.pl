# What those can do who own a database, or once owned the extension, and those who may only track:
# no setting of theirs is one of the workers', and no code of theirs runs with more rights.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');

sub sql { return $node->safe_psql(@_); }

# As a role in a session of its own; gives what went wrong, or ''.
sub attempt
{
	my ($role, $database, $sql, $options) = @_;
	my ($out, $err) = ('', '');
	local $ENV{PGOPTIONS} = $options if defined $options;
	my $rc = $node->psql($database, $sql, stdout => \$out, stderr => \$err, extra_params => [ '-U', $role ]);
	return $rc == 0 && $err !~ /denied to set parameter/ ? '' : $err;
}

sql('postgres', 'CREATE ROLE owner LOGIN; CREATE ROLE app LOGIN; CREATE ROLE other LOGIN; CREATE ROLE admin LOGIN SUPERUSER');
sql('postgres', 'CREATE DATABASE owned OWNER owner');
is(attempt('admin', 'owned', 'CREATE EXTENSION evstream'), '', 'installed by a superuser who is not the first one');
sql('owned', "SELECT evstream_grant('app', 'track'), evstream_grant('other', 'track')");
my $pids = "SELECT string_agg(pid::text, ',' ORDER BY pid) FROM evstream_workers WHERE pid IS NOT NULL";
ok(wait_for_sql($node, 'owned', "SELECT count(pid) FROM evstream_workers WHERE state IN ('idle', 'running')", 2), 'workers run');

# ---- Settings ----

my @settings = split(/\n/, sql('owned', q{SELECT name FROM pg_settings WHERE name LIKE 'evstream.%' AND name <> 'evstream.traceparent' ORDER BY 1}));
cmp_ok(scalar(@settings), '>=', 27, 'settings');
is(sql('owned', q{SELECT string_agg(name, ' ') FROM pg_settings WHERE name LIKE 'evstream.%' AND context <> 'superuser'}), 'evstream.traceparent', 'all but one are for superusers');
is(join(' ', grep { attempt('owner', 'owned', "SET $_ = DEFAULT; SET $_ = '1'") !~ /permission denied to set parameter/ } @settings), '', 'nobody else sets one');
foreach my $where ('DATABASE owned', 'ROLE owner', 'ROLE owner IN DATABASE owned')
{
	like(attempt('owner', 'owned', "ALTER $where SET evstream.redis_url = 'redis://192.0.2.1'"), qr/permission denied to set parameter "evstream.redis_url"/, "ALTER $where");
}
like(attempt('owner', 'owned', q{ALTER SYSTEM SET evstream.kafka_brokers = '192.0.2.1:1'}), qr/permission denied/, 'ALTER SYSTEM');
like(attempt('owner', 'owned', 'SELECT 1', '-c evstream.redis_url=redis://192.0.2.1'), qr/permission denied to set parameter/, 'at the connection');
like(attempt('app', 'owned', q{SELECT set_config('evstream.secrets_file', '/etc/passwd', false)}), qr/permission denied/, 'by set_config()');
like(attempt('app', 'owned', qq{SET evstream.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\nx'}), qr/W3C trace context/, 'what anybody may set is looked at');

# What was allowed to somebody is his session's, unless he owns the database.
sql('owned', 'GRANT SET ON PARAMETER evstream.redis_url, evstream.max_clock_skew TO app');
my $before = sql('owned', $pids);
is(attempt('app', 'owned', q{SET evstream.redis_url = 'redis://192.0.2.1'; SELECT evstream_track('u', 'view')}), '', 'GRANT SET lets a session set it');
is(sql('owned', 'SELECT evstream_wait()'), 't', 'workers go on');
is(sql('owned', $pids), $before, 'and none of them cares');
like(attempt('app', 'owned', q{ALTER DATABASE owned SET evstream.redis_url = 'redis://192.0.2.1'}), qr/must be owner/, 'but not for the workers');
is(sql('owned', 'SELECT count(*) FROM pg_db_role_setting'), '0', 'nothing was stored');

# Where the library is not loaded yet, nobody knows whose settings they will be.
my $plain = new_node('plain', preload => 0, extension => 1);
$plain->safe_psql('postgres', "CREATE ROLE app LOGIN; CREATE ROLE owner LOGIN; SELECT evstream_grant('app', 'track')");
$plain->safe_psql('postgres', 'CREATE DATABASE owned OWNER owner');
my ($rc, $out, $err) = $plain->psql('owned', q{ALTER DATABASE owned SET evstream.redis_url = 'redis://192.0.2.1'}, extra_params => [ '-U', 'owner' ]);
like($err, qr/permission denied to set parameter/, 'not preloaded: an owner cannot store one');
($rc, $out, $err) = $plain->psql('postgres', q{SET evstream.max_clock_skew = '100 years'; SET evstream.max_event_bytes = '60MB';
	SELECT evstream_track('u', 'view', occurred_at => now() + interval '1 year');}, extra_params => [ '-U', 'app' ]);
like($err, qr/permission denied to set parameter "evstream\.max_clock_skew".*ERROR:  invalid event: future_timestamp/s, 'and what a session has set before is dropped');
$plain->stop;

# ---- A database that makes its sessions another role ----

is(attempt('owner', 'postgres', "ALTER DATABASE owned SET $_"), '', $_) foreach 'role = owner', 'default_transaction_read_only = on', 'statement_timeout = 1',
  'default_transaction_isolation = serializable', 'search_path = nowhere', 'transform_null_equals = on', 'standard_conforming_strings = off', 'check_function_bodies = off',
  'default_toast_compression = pglz', 'row_security = off', 'plan_cache_mode = force_generic_plan', q{datestyle = 'German'},
  q{timezone = 'Asia/Tokyo'}, 'enable_seqscan = off';
{
	# as it was, for our own questions
	local $ENV{PGOPTIONS} = '-c role=none -c search_path=public -c statement_timeout=0 -c default_transaction_read_only=off -c datestyle=ISO -c default_transaction_isolation=read\\ committed';
	my $log = -s $node->logfile;
	sql('owned', 'SELECT evstream_restart()');
	ok(wait_for_sql($node, 'owned', "SELECT NOT string_to_array(($pids), ',') && '{$before}' AND count(pid) FILTER (WHERE state IN ('idle', 'running')) = 2 FROM evstream_workers", 't'),
		'the workers start again');
	is(attempt('app', 'owned', q{SELECT evstream_track('u', 'view', '{"amount": 1.5}', NULL, '2026-11-20 00:30+00')}, $ENV{PGOPTIONS}), '', 'tracked');
	is(sql('owned', q{SELECT evstream_wait('30 s')}), 't', 'counted');
	# and what warns of code that may be wrong
	sql('owned', q{SET plpgsql.extra_errors = 'all'; SELECT evstream_subscribe('s'), evstream_filter_update(1, min_amount => 1), evstream_filter_remove(1), evstream_unsubscribe('s'),
		evstream_health(), evstream_metrics(), evstream_pause(), evstream_resume(), evstream_rebuild('2026-11-01', '2026-12-01'), evstream_dead_letter_discard(0),
		evstream_grant('other', 'read'), evstream_revoke('other', 'read')});
	is(sql('owned', 'SELECT day, event_count, amount_total FROM evstream_daily_counts WHERE amount_total > 0'), '2026-11-20|1|1.5', 'on its day');
	is(sql('owned', 'SELECT sum(errors) FROM evstream_workers'), '0', 'without an error');
	is(log_lines($node, qr/evstream (consumer|maintenance).*(ERROR|WARNING)/, $log), '', 'as the log has it');
}
sql('postgres', 'ALTER DATABASE owned RESET ALL');

# ---- Objects on the tables ----

like(attempt('owner', 'owned', $_), qr/permission denied|must be owner/, $_) foreach 'CREATE TRIGGER t BEFORE INSERT ON evstream.batch_log FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()',
  'CREATE RULE r AS ON INSERT TO evstream.outbox_0 DO NOTHING', 'CREATE INDEX ON evstream.events ((1 / 0))', 'ALTER TABLE evstream.filters ALTER version_id SET DEFAULT 1',
  'CREATE POLICY p ON evstream.outbox_0', 'CREATE TABLE evstream.events_20990101 (x int)', 'CREATE VIEW evstream.v AS SELECT 1', 'COMMENT ON TABLE evstream.events IS NULL',
  'CREATE TRIGGER t INSTEAD OF UPDATE ON evstream_dead_letters FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()',
  'CREATE OR REPLACE VIEW evstream_events AS SELECT 1', 'DROP EXTENSION evstream', 'ALTER EXTENSION evstream UPDATE', 'ALTER EXTENSION evstream ADD SCHEMA public', 'ALTER FUNCTION evstream_wait RESET ALL';

# A table that would pass for a leaf, and is another's.
sql('owned', 'CREATE TABLE evstream.events_20990101 (LIKE evstream.events); ALTER TABLE evstream.events_20990101 OWNER TO app');
sql('owned', 'CREATE TABLE evstream.events_20990102 (LIKE evstream.events)');
sql('owned', 'SELECT evstream_restart()');
ok(wait_for_sql($node, 'owned', q{SELECT relispartition FROM pg_class WHERE relname = 'events_20990102'}, 't'), 'a leaf that is found is taken in');
is(sql('owned', q{SELECT relispartition FROM pg_class WHERE relname = 'events_20990101'}), 'f', "but not another's");
sql('owned', 'DROP TABLE evstream.events_20990101, evstream.events_20990102');

# The owner of the tables is no superuser any more: what he puts on them is not run by one.
sql('owned', 'ALTER ROLE admin NOSUPERUSER; CREATE TABLE public.seen (who text, what text); GRANT ALL ON public.seen TO PUBLIC');
is(attempt('admin', 'owned', <<'SQL'), '', 'traps on tables of his own');
CREATE FUNCTION pg_temp.none() RETURNS int LANGUAGE sql AS 'SELECT 1';
GRANT CREATE ON SCHEMA evstream TO admin;
CREATE FUNCTION evstream.trap() RETURNS trigger LANGUAGE plpgsql AS $f$
BEGIN
	INSERT INTO public.seen VALUES (current_user, TG_TABLE_NAME || ' ' || session_user || ' ' || current_setting('is_superuser'));
	BEGIN
		SET LOCAL session_authorization = postgres;
		INSERT INTO public.seen VALUES (current_user, 'taken over');
	EXCEPTION WHEN OTHERS THEN NULL;
	END;
	BEGIN
		RESET session_authorization;
		INSERT INTO public.seen VALUES (current_user, 'reset');
	EXCEPTION WHEN OTHERS THEN NULL;
	END;
	BEGIN
		ALTER ROLE app SUPERUSER;
	EXCEPTION WHEN OTHERS THEN NULL;
	END;
	RETURN NULL;
END
$f$;
CREATE FUNCTION evstream.note(what text) RETURNS void LANGUAGE sql AS $f$ INSERT INTO public.seen VALUES (current_user, what) $f$;
CREATE FUNCTION evstream.trap(x text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $f$
BEGIN
	PERFORM evstream.note('index');
	ALTER ROLE app SUPERUSER;
	RETURN x;
EXCEPTION WHEN OTHERS THEN RETURN x;
END
$f$;
CREATE FUNCTION evstream.trap(x int) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $f$
BEGIN
	PERFORM evstream.note('constraint');
	RETURN true;
END
$f$;
CREATE TRIGGER trap AFTER INSERT ON evstream.batch_log FOR EACH ROW EXECUTE FUNCTION evstream.trap();
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON evstream.batch_log DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION evstream.trap();
CREATE TRIGGER ids AFTER INSERT OR UPDATE ON evstream.ticks FOR EACH ROW EXECUTE FUNCTION evstream.trap();
ALTER TABLE evstream.batch_log ADD CHECK (evstream.trap(log_id));
CREATE INDEX trap_0 ON evstream.outbox_0 (evstream.trap(user_id));
CREATE INDEX trap_1 ON evstream.outbox_1 (evstream.trap(user_id));
CREATE INDEX trap_2 ON evstream.outbox_2 (evstream.trap(user_id));
DELETE FROM public.seen;
SQL
sql('owned', 'SELECT evstream_restart()');
is(attempt($_, 'owned', q{SELECT evstream_track('u', 'view'); SELECT evstream_track_batch('[{"user_id": "u", "event_type": "view"}]')}), '', "$_ tracks") foreach qw(app postgres);
ok(wait_for_sql($node, 'owned', q{SELECT count(*) FILTER (WHERE what LIKE 'batch_log%') >= 2 AND count(*) FILTER (WHERE what = 'constraint') > 0 FROM public.seen}, 't'), 'the traps have worked');
# what a failing one has written was rolled back with it
sql('owned', q{CREATE OR REPLACE FUNCTION evstream.trap(x text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $f$ BEGIN PERFORM evstream.note('index'); RETURN x; END $f$});
is(attempt('postgres', 'owned', q{SELECT evstream_track('u', 'view'); SELECT evstream_track_batch('[{"user_id": "u", "event_type": "view"}]')}), '', 'a superuser tracks');
is(sql('owned', q{SELECT count(*) > 1 FROM public.seen WHERE what = 'index'}), 't', 'with an index on the outbox');
sql('owned', q{CREATE OR REPLACE FUNCTION evstream.trap(x text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $f$ BEGIN PERFORM set_config('application_name', 'trapped', false); RETURN lower(x); END $f$});
is(sql('owned', q{SET application_name = 'mine'; SELECT evstream_track('u', 'view') \g /dev/null
SHOW application_name}), 'mine', 'what it sets in a session ends with it');
# names of a tracker's are not those of the owner's code
sql('owned', 'CREATE SCHEMA theirs AUTHORIZATION app');
is(attempt('app', 'owned', q{CREATE FUNCTION theirs.lower(text) RETURNS text LANGUAGE plpgsql AS $f$ BEGIN INSERT INTO public.seen VALUES (current_user, 'taken over'); RETURN $1; END $f$;
	GRANT USAGE ON SCHEMA theirs TO PUBLIC; SET search_path = theirs, public, pg_catalog; SELECT evstream_track('u', 'view')}), '', 'a tracker with a path of his own');
is(sql('owned', 'SELECT current_user'), 'postgres', 'and is himself');
is(sql('owned', q{SELECT DISTINCT who FROM public.seen}), 'admin', 'with the rights of their owner');
is(sql('owned', q{SELECT count(*) FROM public.seen WHERE what IN ('taken over', 'reset')}), '0', 'and cannot take over the session');
is(sql('owned', q{SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolsuper}), 'postgres', 'nobody became superuser');

# The extension goes to another owner, who is no superuser either.
sql('owned', 'DROP FUNCTION evstream.trap(), evstream.trap(text), evstream.trap(int), evstream.note(text) CASCADE');
sql('owned', 'CREATE ROLE heir; REASSIGN OWNED BY admin TO heir; DROP OWNED BY admin; DROP ROLE admin');
is(attempt('app', 'owned', q{SELECT count(evstream_track('u-' || i, 'view', '{"item_id": "i"}', NULL, now() - i * interval '20 days')) FROM generate_series(1, 20) i}), '', 'tracked');
is(sql('owned', q{SELECT evstream_wait('30 s')}), 't', 'counted');
is(sql('owned', q{SELECT count(*), sum(event_count) FROM evstream_daily_counts WHERE user_id LIKE 'u-%'}), '20|20', 'in all months');
is(sql('owned', q{SELECT count(*) FROM pg_class c WHERE c.relnamespace = 'evstream'::regnamespace AND c.relowner <> 'heir'::regrole}), '0', 'and all tables are of the heir');
is(sql('owned', q{SELECT evstream_rebuild('2020-01-01', '2040-01-01') > 0 AND evstream_health() ->> 'status' = 'ok'}), 't', 'all is well');

# Tables that are not what they were: an error, and no crash.
sql('owned', 'ALTER TABLE evstream.outbox_0 ALTER value TYPE int USING 1; ALTER TABLE evstream.outbox_1 ALTER value TYPE int USING 1; ALTER TABLE evstream.outbox_2 ALTER value TYPE int USING 1');
like(attempt('app', 'owned', q{SELECT evstream_track('u', 'view')}), qr/is no table with the columns/, 'a column of another type');
sql('owned', q{ALTER TABLE evstream.outbox_0 ALTER value TYPE text COLLATE "C"; ALTER TABLE evstream.outbox_1 ALTER value TYPE text COLLATE "C"; ALTER TABLE evstream.outbox_2 ALTER value TYPE text COLLATE "C"});
sql('owned', "ALTER TABLE evstream.outbox_$_ RENAME TO kept_$_; CREATE VIEW evstream.outbox_$_ AS SELECT * FROM evstream.kept_$_") foreach 0 .. 2;
like(attempt('app', 'owned', q{SELECT evstream_track('u', 'view')}), qr/is no table with the columns/, 'a view');
sql('owned', "DROP VIEW evstream.outbox_$_; ALTER TABLE evstream.kept_$_ RENAME TO outbox_$_") foreach 0 .. 2;
is(attempt('app', 'owned', q{SELECT evstream_track('u', 'view')}), '', 'as they were');
is(sql('owned', q{SELECT evstream_wait('60 s')}), 't', 'all is well again');

# ---- Metrics: labels are quoted ----

is(sql('owned', q{SELECT evstream.metric('m', 'gauge', 'h', jsonb_build_array(jsonb_build_object('value', 1, 'labels', jsonb_build_object('l', E'a"b\\\\c\nm 2', 'k', ''))))}),
	qq{# HELP m h\n# TYPE m gauge\nm{k="",l="a\\"b\\\\c\\nm 2"} 1\n}, 'a label with what ends one');

# ---- Looking into a database is not for everybody to ask for ----

sql('postgres', 'ALTER SYSTEM SET log_min_messages = debug1');
$node->reload;
ok(wait_for_sql($node, 'owned', 'SHOW log_min_messages', 'debug1'), 'log more');
ok($node->wait_for_log(qr/registering background worker "evstream scout"/), 'a reload makes the launcher look') or diag('no look');
ok(wait_for_sql($node, 'owned', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'evstream scout'}, '0'), 'until it has looked');
my $log = -s $node->logfile;
is(attempt('other', 'owned', 'CREATE EXTENSION IF NOT EXISTS plpgsql; CREATE EXTENSION IF NOT EXISTS evstream;' x 20), '', 'what CREATE EXTENSION says to everybody');
sql('postgres', 'CREATE DATABASE another');
sql('another', 'CREATE EXTENSION evstream');
ok(wait_for_sql($node, 'another', 'SELECT count(pid) FROM evstream_workers', 2), 'what it says where it does something');
is(join("\n", grep { /registering background worker "evstream/ && /scout/ } split(/\n/, slurp_file($node->logfile, $log))) =~ tr/\n// + 1 < 6 ? 'few' : 'many', 'few', 'is all that the launcher follows');

# ---- Ids ----

my $id = '6a1f3c52-8f5e-4f0b-9d57-5b1d6c3e0a4f';
is(attempt('app', 'another', 'SELECT 1'), '', 'another database');
sql('another', "SELECT evstream_grant('app', 'track'), evstream_grant('other', 'track')");
my $answers = join("\n", map { my ($o, $e) = ('', ''); $node->psql('another', "SELECT evstream_track('u-$_', 'view', event_id => '$id'); SELECT evstream_wait('30 s')",
	stdout => \$o, stderr => \$e, extra_params => [ '-U', $_ ]); "$o$e" } qw(app other other));
is($answers, join("\n", map { "$id\nt" } 1 .. 3), 'an id that another has used is answered like a new one');
is(sql('another', 'SELECT user_id FROM evstream_events'), 'u-app', 'and counted once');

unlike(slurp_file($node->logfile), qr/signal 11|PANIC|TRAP/, 'no crash');
$node->stop;
done_testing();
