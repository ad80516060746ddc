# What others can lay in the way: what is there before CREATE EXTENSION, and objects that lie in
# wait in schemas that are searched.

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
	my ($role, $database, $sql) = @_;
	my ($out, $err) = ('', '');
	my $rc = $node->psql($database, $sql, stdout => \$out, stderr => \$err, extra_params => [ '-U', $role, '-v', 'VERBOSITY=default' ]);
	return $rc == 0 ? '' : $err;
}

sql('postgres', 'CREATE ROLE attacker LOGIN; CREATE ROLE owner LOGIN; CREATE ROLE app LOGIN');

# ---- Before CREATE EXTENSION ----

sql('postgres', 'CREATE DATABASE owned OWNER owner');
like(attempt('owner', 'owned', 'CREATE EXTENSION evstream'), qr/permission denied to create extension "evstream"\nHINT:  Must be superuser/,
	'the owner of a database cannot install it');
is(sql('postgres', q{SELECT bool_or(v.trusted) FROM pg_available_extension_versions v WHERE v.name = 'evstream'}), 'f', 'it is not trusted, in any version');

is(attempt('owner', 'owned', 'CREATE SCHEMA evstream; CREATE TABLE evstream.identity (mark uuid); GRANT ALL ON SCHEMA evstream TO PUBLIC'), '', 'a schema lies in wait');
foreach my $command ('CREATE EXTENSION evstream', 'CREATE EXTENSION evstream SCHEMA evstream')
{
	my ($rc, $out, $err) = $node->psql('owned', $command);
	like($err, qr/schema "evstream" (belongs to another role|already exists)\nHINT:/, "$command: refused");
}
sql('owned', 'DROP SCHEMA evstream CASCADE');
sql('owned', 'GRANT CREATE ON SCHEMA public TO PUBLIC');
foreach my $trap (
	[ 'FUNCTION', q{CREATE FUNCTION public.evstream_track(user_id text, event_type text, properties jsonb DEFAULT '{}', event_id uuid DEFAULT NULL, occurred_at timestamptz DEFAULT NULL)
		RETURNS uuid LANGUAGE sql AS 'SELECT NULL::uuid'}, 'public.evstream_track' ],
	[ 'FUNCTION', q{CREATE FUNCTION public.evstream_revoke(role regrole, privilege text) RETURNS void LANGUAGE sql AS ''}, 'public.evstream_revoke' ],
	[ 'VIEW', 'CREATE VIEW public.evstream_events AS SELECT 1 AS x', 'public.evstream_events' ])
{
	is(attempt('attacker', 'owned', $trap->[1]), '', "$trap->[2]: lies in wait");
	my ($rc, $out, $err) = $node->psql('owned', 'CREATE EXTENSION evstream');
	like($err, qr/already exists/, "$trap->[2]: is not taken over");
	is(attempt('attacker', 'owned', "DROP $trap->[0] $trap->[2]"), '', "$trap->[2]: is still its owner's");
}
# a schema made for it, in which others may create
sql('owned', 'CREATE SCHEMA evstream; GRANT ALL ON SCHEMA evstream TO attacker; GRANT ALL ON SCHEMA evstream TO app; GRANT USAGE ON SCHEMA evstream TO app');
sql('owned', 'CREATE EXTENSION evstream SCHEMA evstream');
like(attempt('attacker', 'owned', 'CREATE TABLE evstream.events_20990101 (x int)'), qr/permission denied for schema evstream/, 'nobody creates anything between its tables');
sql('owned', 'DROP EXTENSION evstream; DROP SCHEMA IF EXISTS evstream');

# ---- Objects of the names that we use, in each schema that comes first ----

# A copy of each function, operator, type and table of pg_catalog that a user can make
# a copy of, and that raises an error when it is used.
my $traps = <<'SQL';
CREATE FUNCTION SCHEMA.trapped(what text) RETURNS text LANGUAGE plpgsql COST 1 AS $f$ BEGIN RAISE EXCEPTION USING MESSAGE = pg_catalog.concat('trapped by ', what); END $f$;
DO $do$
DECLARE
	item record;
	made pg_catalog.int4 := 0;
BEGIN
	FOR item IN
		SELECT DISTINCT ON (p.proname, p.proargtypes) p.oid, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid) AS arguments,
			pg_catalog.oidvectortypes(p.proargtypes) AS types, pg_catalog.format_type(p.prorettype, NULL) AS result, p.proretset
		FROM pg_catalog.pg_proc p
		WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND p.prokind IN ('f', 'a', 'w')
			AND p.proname !~ '_(in|out|recv|send|typanalyze|support|handler)$'
		ORDER BY p.proname, p.proargtypes
	LOOP
		BEGIN
			EXECUTE pg_catalog.format('CREATE FUNCTION SCHEMA.%I(%s) RETURNS %s%s LANGUAGE plpgsql AS %L', item.proname, item.types,
				CASE WHEN item.proretset THEN 'SETOF ' ELSE '' END, item.result,
				pg_catalog.format('BEGIN RAISE EXCEPTION %L; END', 'trapped by function ' || item.proname));
			made := made + 1;
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
	END LOOP;
	FOR item IN
		SELECT o.oprname, NULLIF(o.oprleft, 0)::pg_catalog.regtype AS l, o.oprright::pg_catalog.regtype AS r, o.oprresult::pg_catalog.regtype AS result
		FROM pg_catalog.pg_operator o WHERE o.oprnamespace = 'pg_catalog'::pg_catalog.regnamespace
	LOOP
		BEGIN
			EXECUTE pg_catalog.format('CREATE FUNCTION SCHEMA.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', 'op' || made,
				pg_catalog.concat_ws(', ', item.l, item.r), item.result,
				pg_catalog.format('BEGIN RAISE EXCEPTION %L; END', 'trapped by operator ' || item.oprname));
			EXECUTE pg_catalog.format('CREATE OPERATOR SCHEMA.%s (FUNCTION = SCHEMA.%I, %s RIGHTARG = %s)', item.oprname, 'op' || made,
				'LEFTARG = ' || item.l || ',', item.r);
			made := made + 1;
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
	END LOOP;
	FOR item IN
		SELECT c.relname FROM pg_catalog.pg_class c WHERE c.relnamespace = 'pg_catalog'::pg_catalog.regnamespace AND c.relkind IN ('r', 'v')
	LOOP
		EXECUTE pg_catalog.format('CREATE VIEW SCHEMA.%I AS SELECT SCHEMA.trapped(%L::pg_catalog.text) AS oid', item.relname, 'table ' || item.relname);
		EXECUTE pg_catalog.format('GRANT SELECT ON SCHEMA.%I TO PUBLIC', item.relname);
		made := made + 1;
	END LOOP;
	FOR item IN
		SELECT t.typname FROM pg_catalog.pg_type t
		WHERE t.typnamespace = 'pg_catalog'::pg_catalog.regnamespace AND t.typtype IN ('b', 'r', 'm') AND t.typelem = 0 AND t.typname !~ '^pg_|^_'
	LOOP
		BEGIN
			EXECUTE pg_catalog.format('CREATE DOMAIN SCHEMA.%I AS pg_catalog.%I CHECK (SCHEMA.trapped(%L::pg_catalog.text) IS NULL)', item.typname, item.typname, 'type ' || item.typname);
			made := made + 1;
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
	END LOOP;
	IF made < 2000 THEN
		RAISE EXCEPTION 'only % traps', made;
	END IF;
END
$do$;
SQL
(my $public_traps = $traps) =~ s/SCHEMA\./public./g;
(my $temporary_traps = $traps) =~ s/SCHEMA\./pg_temp./g;
my $path = 'SET search_path = pg_temp, public, pg_catalog;';

sql('postgres', 'CREATE DATABASE trapped');
sql('trapped', 'GRANT CREATE ON SCHEMA public TO attacker');
is(attempt('attacker', 'trapped', "SET search_path = pg_catalog; $public_traps"), '', 'traps are laid');
sql('trapped', 'GRANT ALL ON SCHEMA public TO PUBLIC');
like((attempt('app', 'trapped', "$path SELECT lower('X'::pg_catalog.text)")), qr/trapped by function lower/, 'and they work: a function');
like((attempt('app', 'trapped', "$path SELECT 1::pg_catalog.int4 + 1::pg_catalog.int4")), qr/trapped by operator \+/, 'an operator');
like((attempt('app', 'trapped', "$path SELECT 'x'::text")), qr/trapped by type text/, 'a type');
like((attempt('app', 'trapped', "$path SELECT * FROM pg_class")), qr/trapped by table pg_class/, 'a table');

sql('postgres', 'ALTER DATABASE trapped SET search_path = public, pg_catalog, pg_temp');
$node->psql('trapped', 'CREATE EXTENSION evstream', stderr => \my $error);
is($error, '', 'CREATE EXTENSION does not step into one');
sql('trapped', "SELECT public.evstream_grant('app', privilege) FROM pg_catalog.unnest('{track,read,subscribe,operate}'::pg_catalog.text[]) privilege");

# a user whose own temporary objects come before all others
my $calls = <<'END';
BEGIN;
SELECT public.evstream_track('u-1', 'view', '{"item_id": "i", "n": 1}', NULL, pg_catalog.now());
SELECT public.evstream_track(42, 'purchase', '{"amount": 3.5, "user_tier": "gold"}');
SELECT public.evstream_track_batch('[{"user_id": "u-1", "event_type": "click"}, {"user_id": ""}, {"event": "login", "userId": 7, "timestamp": 1795250000}]', 'dead_letter');
SELECT public.evstream_event_id('key');
SELECT public.evstream_subscribe('s', event_types => '{purchase,view}', user_tiers => '{gold}', min_amount => 1, user_ids => '{42}', properties => '{}');
SELECT public.evstream_subscribe('s', properties => '{"n": 1}');
SELECT public.evstream_filter_update(1, min_amount => 2);
SELECT public.evstream_filter_remove(2);
COMMIT;
SELECT public.evstream_wait('60 s');
SELECT * FROM public.evstream_daily_summary;
SELECT * FROM public.evstream_daily_counts;
SELECT * FROM public.evstream_daily_item_summary;
SELECT * FROM public.evstream_daily_totals;
SELECT * FROM public.evstream_events;
SELECT * FROM public.evstream_filters;
SELECT * FROM public.evstream_dead_letters;
SELECT * FROM public.evstream_workers;
SELECT * FROM public.evstream_lag;
SELECT * FROM public.evstream_backfill('s', '2020-01-01');
SELECT public.evstream_unsubscribe('s');
SELECT public.evstream_pause();
SELECT public.evstream_health();
SELECT public.evstream_resume();
SELECT public.evstream_metrics();
SELECT public.evstream_dead_letter_retry(1);
UPDATE public.evstream_dead_letters SET record_value = '{"user_id": "u", "event_type": "view"}';
SELECT public.evstream_dead_letter_retry(1);
SELECT public.evstream_dead_letter_discard(0);
SELECT public.evstream_rebuild('2020-01-01', '2030-01-01');
SELECT public.evstream_take_over();
SELECT public.evstream_restart();
END
is(attempt('app', 'trapped', "SET search_path = pg_catalog; $temporary_traps $path $calls"), '', 'no function or view steps into one');
like(attempt('app', 'trapped', "SET search_path = pg_catalog; $temporary_traps $path SELECT public.evstream_seek(pg_catalog.now())"), qr/the embedded log has no offsets/, 'nor this one');
sql('trapped', "SELECT public.evstream_revoke('app', 'operate')");
ok(wait_for_sql($node, 'trapped', "SET search_path = pg_catalog; SELECT public.evstream_wait('60 s')", 't'), 'the workers go on');
is(sql('trapped', q{SET search_path = pg_catalog; SELECT sum(event_count), count(*) FILTER (WHERE user_id = 'u') FROM public.evstream_daily_counts}), '5|1', 'and count');
is(sql('trapped', 'SET search_path = pg_catalog; SELECT sum(errors) FROM public.evstream_workers'), '0', 'and step into none');
is(count_log($node, qr/trapped by/), 4, 'as the log has it');

$node->stop;
done_testing();
