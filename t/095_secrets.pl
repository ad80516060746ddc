# Secrets: where they are not to be found, and what a bad secrets file does.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use POSIX qw(mkfifo);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $acl = 'user evstream on >sesame-Xyzzy ~evstream:* &evstream:* +@all';
my @admin = (undef, [ '--user', 'admin', '--pass', 'admin', '--no-auth-warning' ]);
my $url = redis_start($acl, 'user admin on >admin ~* &* +@all', 'user default off');

my $node = new_node('main', log_statement => 'all', 'evstream.redis_url' => $url, extension => 1);
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

sub connections { return scalar(grep { !/ user=admin / } redis_lines(@admin, 'CLIENT', 'LIST')); }
sub settle { return is(sql(q{SELECT evstream_wait('60 s')}), 't', $_[0]); }

# ---- Where secrets are not ----

my $good = "redis_user = evstream\nredis_password = sesame-Xyzzy\n";
sql(q{SELECT evstream_subscribe('all')});
set_secrets($good);
sql('SELECT evstream_track(1, $$view$$)');
settle('all is well');

sql('ALTER SYSTEM SET log_min_messages = debug5');
$node->reload;
ok(wait_for_sql($node, 'postgres', 'SHOW log_min_messages', 'debug5'), 'log everything');
sql('SELECT evstream_restart(); SELECT evstream_track(1, $$view$$)');
settle('at log level debug5');
redis_kill();
sql('SELECT evstream_track(1, $$view$$)');
health('degraded', 'could not reach Redis', 'away');
redis_start();
settle('and back');
sql('ALTER SYSTEM RESET log_min_messages');
$node->reload;
foreach my $place ('evstream_health()', 'evstream_metrics()', '(SELECT string_agg(s::text, $$ $$) FROM pg_settings s)', '(SELECT string_agg(s::text, $$ $$) FROM pg_db_role_setting s)',
	'(SELECT string_agg(s::text, $$ $$) FROM pg_file_settings s)', '(SELECT string_agg(s::text, $$ $$) FROM evstream_workers s)', '(SELECT string_agg(s::text, $$ $$) FROM pg_stat_activity s)',
	'(SELECT string_agg(s::text, $$ $$) FROM evstream.problems() s)')
{
	unlike(sql("SELECT $place"), qr/Xyzzy/, "not in $place");
}
my @found;
foreach my $pid (split(/\n/, sql('SELECT pid FROM pg_stat_activity UNION SELECT pid FROM evstream_workers')), slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/)
{
	foreach my $file (grep { -r } "/proc/$pid/cmdline", "/proc/$pid/environ") { push @found, $file if slurp_file($file) =~ /Xyzzy/; }
}
is("@found", '', 'not in the titles of processes');
sql('CHECKPOINT');
my ($grep, $error) = run_command([ 'grep', '-rlF', 'Xyzzy', $node->data_dir, $node->logfile, map { '--exclude=' . $_ } 'postmaster.pid' ]);
is($grep, $secrets, 'in no file of the server but its own, the log, tables and WAL among them') or diag($error);

# A secret in a setting is refused, and the log does not have the statement either.
sql('ALTER SYSTEM SET log_statement = none');
$node->reload;
ok(wait_for_sql($node, 'postgres', 'SHOW log_statement', 'none'), 'log_statement = none');
foreach my $set ('SET evstream.redis_url =', 'ALTER SYSTEM SET evstream.redis_url =', 'ALTER DATABASE postgres SET evstream.redis_url =', 'ALTER ROLE postgres SET evstream.redis_url =',
	'CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$SELECT 1$$ SET evstream.redis_url =')
{
	my ($rc, $out, $err) = $node->psql('postgres', "$set 'redis://me:hunter-Plugh\@127.0.0.1'");
	like($err, qr/ERROR:  evstream.redis_url must not contain a user or a password\nHINT/, "$set: refused");
	unlike($err, qr/Plugh/, 'without repeating it');
}
foreach my $value ("kafka_brokers = 'sasl://me:hunter-Plugh\@h'", "kafka_options = 'sasl.password=hunter-Plugh'", "kafka_options = 'hunter-Plugh'", "redis_url = 'hunter-Plugh'", "redis_url = 'redis://hunter-Plugh:x'",
	"kafka_options = 'ssl.key.pem=Plugh'", "kafka_options = 'sasl.oauthbearer.config=Plugh'", "kafka_options = 'https.ca.location=http://u:Plugh\@h'")
{
	my ($rc, $out, $err) = $node->psql('postgres', "SET evstream.$value");
	isnt($rc, 0, "$value: refused");
	unlike($err, qr/Plugh/, 'without repeating it') unless $value =~ /https/;
}
$node->psql('postgres', q{DO $$ BEGIN PERFORM set_config('evstream.redis_url', 'redis://me:hunter-Plugh@h', false); END $$});
is(log_lines($node, qr/Plugh/), '', 'nor does the log have one');
# one that came by the file
append_to_file($node->data_dir . '/postgresql.conf', "evstream.redis_url = 'redis://me:hunter-Plugh\@127.0.0.1'\n");
$node->reload;
ok($node->wait_for_log(qr/evstream\.redis_url must not contain a user or a password/), 'one in postgresql.conf');
append_to_file($node->data_dir . '/postgresql.conf', "evstream.redis_url = '$url'\n");
$node->reload;
is(log_lines($node, qr/Plugh/), '', 'is not logged either');

# ---- A file that is no good ----

# Now everybody is let in: whoever went on without the password would be seen.
redis_cli(@admin, 'ACL', 'SETUSER', 'default', 'on', 'nopass', '~*', '&*', '+@all');
my $pem = join("\n", 'MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQCXyzzyx', 'c2VjcmV0LTQ3MTE0NzExNDcxMTQ3MTE0NzExNDcxMQXyzzy==', '');
foreach my $case (
	[ 'others may read it', sub { chmod(0640, $secrets); } ],
	[ 'others may write it', sub { chmod(0602, $secrets); } ],
	[ 'a directory', sub { unlink($secrets); mkdir($secrets); } ],
	[ 'a pipe', sub { mkfifo($secrets, 0600); } ],
	[ 'a link to what is another\'s', sub { symlink('/etc/passwd', $secrets); } ],
	[ 'a link to nothing but itself', sub { symlink('evstream.secrets', $secrets); } ],
	[ 'a link to nothing', sub { symlink('nowhere', $secrets); } ],
	[ 'too large', sub { append_to_file($secrets, '#' x 70000); chmod(0600, $secrets); } ],
	[ 'a key over several lines', sub { append_to_file($secrets, "${good}ssl.key.pem = -----BEGIN PRIVATE KEY-----\n$pem"); chmod(0600, $secrets); } ],
	[ 'a line that says nothing', sub { append_to_file($secrets, "${good}sesame-Xyzzy\n"); chmod(0600, $secrets); } ],
	[ 'a key that is misspelt', sub { append_to_file($secrets, "redis_user = evstream\nredis_pasword = sesame-Xyzzy\n"); chmod(0600, $secrets); } ],
	[ 'a heading that does not end', sub { append_to_file($secrets, "[postgres\n$good"); chmod(0600, $secrets); } ])
{
	my ($name, $make) = @$case;
	rmdir($secrets) if -d $secrets;
	set_secrets($good);
	if ($name !~ /others may/) { unlink($secrets); }
	my $log = -s $node->logfile;
	$make->();
	$node->reload;
	if ($name =~ /several lines/)
	{
		# this is about Kafka alone
		ok($node->wait_for_log(qr/line \d+ of secrets file "evstream\.secrets" is no good/, $log), "$name: said");
		settle("$name: Redis goes on");
		next;
	}
	health('degraded', 'Redis cannot be used as configured: secrets file "evstream\.secrets" is not used: ', "$name: nothing connects");
	is(connections(), 0, "$name: not as another user either");
	ok($node->wait_for_log(qr/WARNING: .*secrets file/, $log), "$name: a warning");
	cmp_ok(count_log($node, qr/WARNING: .*secrets file/, $log), '<=', 4, "$name: and no flood");
}
rmdir($secrets) if -d $secrets;
set_secrets($good);
settle('a good one');
health('ok', '', 'and all is well');
append_to_file($node->data_dir . '/postgresql.conf', "evstream.secrets_file = 'nowhere.secrets'\n");
unlink($secrets);
$node->reload;
health('degraded', 'secrets file "nowhere\.secrets" is not used: it cannot be opened', 'one that was named, and is not there');
append_to_file($node->data_dir . '/postgresql.conf', "evstream.secrets_file = 'evstream.secrets'\n");
set_secrets($good);
settle('the one that is');
is(log_lines($node, qr/Xyzzy/), '', 'nothing of them in the log');

# ---- A Redis that repeats what it does not understand ----

redis_stop();
redis_start('rename-command AUTH ""');
sql(q{SELECT evstream_track('u', 'view')});
health('degraded', 'unknown command', 'AUTH is not known');
unlike(sql('SELECT evstream_health()::text || string_agg(w::text, $$ $$) FROM evstream_workers w'), qr/Xyzzy/, 'the answer is not repeated');
is(log_lines($node, qr/Xyzzy/), '', 'in the log either');

unlike(slurp_file($node->logfile), qr/signal 11|PANIC|TRAP/, 'no crash');
$node->stop;
done_testing();
