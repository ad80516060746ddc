# Kafka through TLS, with a user and a password: what is refused, and that nothing goes in the clear.

use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $plain = kafka_start('users=evstream:sesame-4711,scram:sesame-4712');
my ($secure, $ca) = kafka_secure();
my ($port) = $secure =~ /:(\d+)$/;

my $node = new_node('main', 'evstream.kafka_brokers' => $secure, log_min_messages => 'debug1', extension => 1);
my $secrets = $node->data_dir . '/evstream.secrets';
my $n = 0;

sub sql { return $node->safe_psql('postgres', @_); }

sub health
{
	my ($status, $why, $name) = @_;
	ok(wait_for_sql($node, 'postgres', qq{SELECT (k ->> 'status') ~ '$status' AND COALESCE(k ->> 'why', '') ~ \$r\$$why\$r\$
		FROM (SELECT evstream_health() -> 'components' -> 'kafka') h (k)}, 't', 60), $name)
	  or diag(sql('SELECT evstream_health()'));
	return;
}

sub set_secrets
{
	unlink("$secrets.new");
	append_to_file("$secrets.new", join('', map { "$_\n" } @_));
	chmod(0600, "$secrets.new");
	rename("$secrets.new", $secrets);
	$node->reload;
	return;
}

sub set_conf
{
	append_to_file($node->data_dir . '/postgresql.conf', join('', map { "$_\n" } @_));
	$node->reload;
	return;
}

sub track
{
	my $from = $n + 1;
	$n += 10;
	sql("SELECT count(evstream_track('u' || i % 7, 'view', jsonb_build_object('n', i))) FROM generate_series($from, $n) i");
	return;
}

sub has_all
{
	my ($name) = @_;
	is(sql(q{SELECT evstream_wait('90 s')}), 't', $name);
	is(sql(q{SELECT count(*), count(DISTINCT properties -> 'n'), (SELECT sum(event_count) FROM evstream_daily_totals) FROM evstream_events}), "$n|$n|$n", "$name: each once");
	return;
}

# Another authority, for what it did not sign
my $theirs = abs_path(scratch_dir()) . '/theirs.crt';
{
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', 2, '-subj', '/CN=authority',
		'-keyout', "$theirs.key", '-out', $theirs ], '<', \undef, '>', \$out, '2>', \$err) or BAIL_OUT("openssl: $err");
}

my @user = ('sasl.mechanism = PLAIN', 'sasl.username = evstream', 'sasl.password = sesame-4711');

# ---- Nothing in the clear ----

track();
health('degraded|down', 'could not reach Kafka', 'no TLS to a listener with TLS');
my $log = -s $node->logfile;
set_secrets(@user);
health('degraded|down', 'librdkafka property "sasl\.\w+" is of no effect, as "security\.protocol" is not given: it has to be "sasl_ssl"', 'a password without the protocol');
set_secrets(@user, 'security.protocol = plaintext');
health('degraded|down', 'as "security\.protocol" is plaintext', 'or with one that has no use for it');
set_secrets("ssl.ca.location = $ca");
health('degraded|down', '"ssl\.ca\.location" is of no effect, as "security\.protocol" is not given: it has to be "ssl"', 'an authority without TLS');
set_secrets(@user, 'security.protocol = ssl', "ssl.ca.location = $ca");
health('degraded|down', 'it has to be "sasl_ssl"', 'TLS without the password');

# The listener in the clear takes everybody: whoever falls back would get there.
set_conf("evstream.kafka_brokers = '$plain'");
set_secrets(@user, "ssl.ca.location = $ca");
health('degraded|down', 'is of no effect', 'not to a listener in the clear either');
set_secrets(@user, 'security.protocol = sasl_ssl', "ssl.ca.location = $ca");
health('degraded|down', 'could not reach Kafka|denies access', 'TLS to a listener without');
set_secrets(@user, 'security.protocol = sasl_ssl', "ssl.ca.location = $ca", 'sasl.pasword = sesame-4711');
health('degraded|down', 'secrets file "evstream\.secrets" is not used: line 6 is no good', 'a key that is misspelt');
is(scalar(grep { $_->[0] eq 'evstream.events' } eval { watermarks('evstream.events') }), 0, 'nothing was sent');
set_conf("evstream.kafka_brokers = '$secure'");

# ---- Who is who ----

set_secrets(@user, 'security.protocol = sasl_ssl');
health('degraded|down', 'denies access.*(certificate|SSL)', 'an authority that the system does not know');
set_secrets(@user, 'security.protocol = sasl_ssl', "ssl.ca.location = $theirs");
health('degraded|down', 'denies access.*certificate', 'another authority of that name');
set_secrets(@user, 'security.protocol = sasl_ssl', "ssl.ca.location = $ca.none");
health('degraded|down', 'ssl\.ca\.location', 'a file that is not there');
set_secrets(@user, 'security.protocol = sasl_ssl', "ssl.ca.location = $ca");
set_conf("evstream.kafka_brokers = 'localhost:$port'");
health('degraded|down', 'denies access.*certificate', 'a certificate of another name');
set_conf("evstream.kafka_brokers = '$secure'");
set_secrets('sasl.mechanism = PLAIN', 'sasl.username = evstream', 'sasl.password = wrong-4711', 'security.protocol = sasl_ssl', "ssl.ca.location = $ca");
health('degraded|down', 'denies access.*SASL', 'a wrong password');
set_secrets('sasl.mechanism = PLAIN', 'sasl.username = nobody', 'sasl.password = sesame-4711', 'security.protocol = sasl_ssl', "ssl.ca.location = $ca");
health('degraded|down', 'denies access.*SASL', 'a user that there is not');
cmp_ok(scalar(grep { /evstream (relay|consumer)/ && / (LOG|WARNING|ERROR):/ && !/started for database/ } split(/\n/, slurp_file($node->logfile, $log))), '<', 60, 'no flood in the log');
is(sql('SELECT count(*) FROM evstream_events'), '0', 'and nothing has come through');

# librdkafka says all that it knows
set_conf("evstream.kafka_options = 'debug=all'");
set_secrets(@user, 'security.protocol = sasl_ssl', "ssl.ca.location = $ca");
has_all('the right ones');
health('ok', '', 'all is well');
track();
has_all('and on');
set_conf("evstream.kafka_options = ''");
like(slurp_file($node->logfile, $log), qr/DEBUG:  librdkafka: /, 'it has said something');

# A password that changes
set_secrets('sasl.mechanism = PLAIN', 'sasl.username = evstream', 'sasl.password = old-4711', 'security.protocol = sasl_ssl', "ssl.ca.location = $ca");
track();
health('degraded|down', 'denies access.*SASL', 'a password that holds no more');
set_secrets(@user, 'security.protocol = sasl_ssl', "ssl.ca.location = $ca");
track();
has_all('the new one');
health('ok', '', 'all is well again');

# ---- SCRAM-SHA-512 ----

my $version = `pkg-config --modversion rdkafka 2>/dev/null`;
my @version = $version =~ /^(\d+)\.(\d+)\.(\d+)/;
SKIP:
{
	skip 'the version of librdkafka is not known (pkg-config)', 1 unless @version;
	set_secrets('sasl.mechanism = SCRAM-SHA-512', 'sasl.username = scram', 'sasl.password = sesame-4712', 'security.protocol = sasl_ssl', "ssl.ca.location = $ca");
	track();
	if ($version[0] * 10000 + $version[1] * 100 + $version[2] < 20601)
	{
		ok($node->wait_for_log(qr/WARNING: .*SCRAM of this librdkafka is not understood by Apache Kafka 4/), "librdkafka $version has no SCRAM for Kafka 4, and a warning says so");
		skip "librdkafka before 2.6.1 and Kafka 4 do not understand each other's SCRAM", 4;
	}
	has_all('SCRAM-SHA-512');
	health('ok', '', 'all is well');
	set_secrets('sasl.mechanism = SCRAM-SHA-512', 'sasl.username = scram', 'sasl.password = wrong-4712', 'security.protocol = sasl_ssl', "ssl.ca.location = $ca");
	health('degraded|down', 'denies access.*SASL', 'SCRAM-SHA-512 with a wrong password');
}
set_secrets(@user, 'security.protocol = sasl_ssl', "ssl.ca.location = $ca");
has_all('PLAIN again');

my $said = slurp_file($node->logfile) . sql('SELECT evstream_health()::text || evstream_metrics() || (SELECT string_agg(w::text, $$ $$) FROM evstream_workers w)');
unlike($said, qr/(sesame|wrong|old)-47/, 'no password is told');
unlike($said, qr/\bc2VzYW1lLT|\0evstream\0/, 'nor in base64');
unlike(slurp_file($node->logfile), qr/signal 11|PANIC|TRAP/, 'no crash');
$node->stop;
done_testing();
