# Redis through TLS: whose certificates are taken; and what a build without TLS says.

use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use File::Copy ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $openssl = grep { -x "$_/openssl" } split(/:/, $ENV{PATH});
BAIL_OUT('no openssl') if !$openssl && $ENV{CI};
plan skip_all => 'no openssl' unless $openssl;

# ---- Certificates ----

my $dir = abs_path(scratch_dir()) . '/tls';
mkdir($dir) or die "$dir: $!";

sub openssl
{
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'openssl', @_ ], '<', \undef, '>', \$out, '2>', \$err) or die "openssl @_: $err";
	return;
}

my @new_key = ('-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes');

sub make_ca
{
	my ($name) = @_;
	openssl('req', '-x509', @new_key, '-days', 2, '-subj', "/CN=$name", '-keyout', "$dir/$name.key", '-out', "$dir/$name.crt");
	return;
}

sub make_certificate
{
	my ($ca, $name, $hosts) = @_;
	append_to_file("$dir/$name.ext", "subjectAltName = $hosts\n");
	openssl('req', @new_key, '-subj', "/CN=$name", '-keyout', "$dir/$name.key", '-out', "$dir/$name.csr");
	openssl('x509', '-req', '-in', "$dir/$name.csr", '-days', 2, '-CA', "$dir/$ca.crt", '-CAkey', "$dir/$ca.key",
		'-CAcreateserial', '-extfile', "$dir/$name.ext", '-out', "$dir/$name.crt");
	return;
}

make_ca('ours');
make_ca('theirs');
make_certificate('ours', 'server', 'DNS:localhost, IP:127.0.0.1');
make_certificate('ours', 'elsewhere', 'DNS:elsewhere.example, IP:192.0.2.1');

# ---- Servers ----

my $tls_port = PostgreSQL::Test::Cluster::get_free_port();
my $plain = redis_start("tls-port $tls_port", "tls-cert-file $dir/server.crt", "tls-key-file $dir/server.key",
	"tls-ca-cert-file $dir/ours.crt", 'tls-auth-clients no', 'user ev on >sesame ~evstream:* &evstream:* +@all');
my $node = new_node('main', 'evstream.stream_maxlen' => 1000000, extension => 1);
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

sub settle { return is(sql(q{SELECT evstream_wait('60 s')}), 't', $_[0]); }

my $n = 0;

sub track
{
	my ($count) = @_;
	my $from = $n + 1;
	$n += $count;
	sql("SELECT count(evstream_track('u' || i % 7, 'view', jsonb_build_object('n', i))) FROM generate_series($from, $n) i");
	return;
}

# The stream has all events, each once, in one epoch.
sub has_all
{
	my ($name) = @_;
	settle($name);
	my @entries = redis_stream('evstream:stream:all');
	my ($epoch) = @entries ? $entries[0][0] =~ /^(\d+)-/ : (0);
	is(join(' ', map { "$_->[0]:" . ($_->[1] =~ /"n": ?(\d+)/)[0] } @entries),
		join(' ', map { "$epoch-$_:$_" } 1 .. $n), "$name: each once");
	return;
}

sub set_url
{
	my ($url) = @_;
	append_to_file($node->data_dir . '/postgresql.conf', "evstream.redis_url = '$url'\n");
	$node->reload;
	return;
}

sub set_secrets
{
	unlink($secrets);
	append_to_file($secrets, join('', map { "$_\n" } @_));
	chmod(0600, $secrets);
	$node->reload;
	return;
}

my $url = "rediss://127.0.0.1:$tls_port/0";
sql(q{SELECT evstream_subscribe('all')});

# ---- A build without TLS ----

my ($out, $err) = ('', '');
if ($node->psql('postgres', qq{ALTER SYSTEM SET evstream.redis_url = '$url'}, stdout => \$out, stderr => \$err) != 0)
{
	like($err, qr/ERROR:  this build of evstream has no TLS for Redis/, 'rediss:// without TLS is refused');
	like($err, qr/hiredis.*\n?HINT:.*redis:\/\//s, 'with the reason and a way on');
	set_url($plain);
	health('ok', '', 'Redis is well');
	set_url($url);
	ok($node->wait_for_log(qr/LOG:  this build of evstream has no TLS for Redis/), 'refused at a reload, too');
	track(5);
	has_all('the worker goes on as it was');
	health('ok', '', 'and is well');
	SKIP: { skip 'the library hiredis has no TLS (it came with 1.0)', 1; }
	$node->stop;
	done_testing();
	exit(0);
}
sql('ALTER SYSTEM RESET evstream.redis_url');

# ---- Whom to trust ----

set_url($url);
track(5);
health('degraded', 'certificate of 127\.0\.0\.1 is not accepted', 'a CA that is not known to the system');
is(sql(q{SELECT evstream_wait('30 s', false)}), 't', 'counting goes on');
my $log = -s $node->logfile;
set_secrets('redis_user = ev', 'redis_password = sesame', "redis_ca = $dir/theirs.crt");
ok($node->wait_for_log(qr/WARNING: .*certificate of 127\.0\.0\.1 is not accepted/, $log), 'another CA');
health('degraded', 'certificate of 127\.0\.0\.1 is not accepted', 'is no better');
set_secrets('redis_user = ev', 'redis_password = sesame', "redis_ca = $dir/none.crt");
health('degraded', 'redis_ca .*none\.crt', 'a file that is not there');
set_secrets('redis_user = ev', 'redis_password = wrong', "redis_ca = $dir/ours.crt");
health('degraded', 'does not accept the user or password', 'the right CA, and a wrong password');
is(redis_cli('EXISTS', 'evstream:state'), '0', 'nothing was written until now');
set_secrets('redis_user = ev', 'redis_password = sesame', "redis_ca = $dir/ours.crt");
has_all('both are right');
health('ok', '', 'Redis is well');
like(redis_cli('CLIENT', 'LIST'), qr/ user=ev /, 'the connection is that of the user');

# A path below the data directory
File::Copy::copy("$dir/ours.crt", $node->data_dir . '/redis.crt') or die "copy: $!";
set_secrets('redis_user = ev', 'redis_password = sesame', 'redis_ca = redis.crt');
track(5);
has_all('a path within the data directory');

# ---- The host's name ----

set_url("rediss://localhost:$tls_port/0");
track(5);
has_all('by its name');
redis_cli('CONFIG', 'SET', 'tls-cert-file', "$dir/elsewhere.crt", 'tls-key-file', "$dir/elsewhere.key");
redis_cli('CLIENT', 'KILL', 'TYPE', 'normal');
health('degraded', 'certificate of localhost is not accepted', "another host's certificate");
set_url($url);
track(5);
health('degraded', 'certificate of 127\.0\.0\.1 is not accepted', "or another address's");
redis_cli('CONFIG', 'SET', 'tls-cert-file', "$dir/server.crt", 'tls-key-file', "$dir/server.key");
has_all('its own again');

# ---- Much, and faults ----

track(20000);
has_all('large calls');
redis_kill();
track(1000);
health('degraded', 'could not reach Redis', 'away');
redis_start();
has_all('and back');
redis_freeze();
track(1000);
health('degraded', 'could not reach Redis', 'frozen');
redis_thaw();
has_all('and thawed');

# TLS towards a server without, and the other way round
set_url('rediss://127.0.0.1:' . redis_port());
track(5);
health('degraded', 'could not reach Redis', 'a server that speaks no TLS');
set_url("redis://127.0.0.1:$tls_port");
health('degraded', 'could not reach Redis', 'a server that wants it');
set_url($url);
has_all('as it should be');
health('ok', '', 'Redis is well');

unlike(slurp_file($node->logfile) . sql('SELECT evstream_health()::text'), qr/sesame/, 'no password is told');
unlike(slurp_file($node->logfile), qr/signal 11|PANIC|TRAP/, 'no crash');
$node->stop;
done_testing();
