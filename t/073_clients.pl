# The example clients: each event once, also after a gap.

use strict;
use warnings;
use utf8;

use Cwd qw(abs_path);
use Encode qw(encode);
use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamRedis;
use EvstreamTest;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $examples = abs_path("$FindBin::Bin/../examples");
my %programs = (py => 'python3', js => 'node');
my @clients;
foreach my $ending (sort keys %programs)
{
	my $there = grep { -x "$_/$programs{$ending}" } split(/:/, $ENV{PATH});
	BAIL_OUT("no $programs{$ending}") if !$there && $ENV{CI};
	push @clients, $ending if $there;
}
plan skip_all => 'neither python3 nor node' unless @clients;
note("clients: @clients");

my $who = "it's-mé";
my $node = new_node('main',
	'evstream.redis_url' => redis_start(),
	'evstream.stream_maxlen' => 10,
	extension => 1);
my $dir = scratch_dir();
my %handles;

# Starts them, and waits until they listen.
sub clients_come
{
	my @since = @_;
	my $url = 'redis://127.0.0.1:' . redis_port() . '/0';
	foreach my $ending (@clients)
	{
		local %ENV = (%ENV, REDIS_URL => $url, PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => 'postgres');
		$handles{$ending} = IPC::Run::start(
			[ $programs{$ending}, "$examples/subscriber.$ending", encode('UTF-8', $who), "$dir/got.$ending", @since ],
			'<', \undef, '>>', "$dir/out.$ending", '2>>', "$dir/err.$ending");
	}
	my $redis = redis_connect();
	my $end = time() + 60;
	while (time() < $end)
	{
		last if @clients == grep { /cmd=xread/ } split(/\n/, $redis->command('CLIENT', 'LIST'));
		sleep(0.05);
	}
	return;
}

sub clients_go
{
	foreach my $ending (@clients)
	{
		$handles{$ending}->signal('TERM');
		eval { $handles{$ending}->finish; };
	}
	return;
}

sub lines
{
	my ($ending) = @_;
	return () unless -e "$dir/got.$ending";
	return split(/\n/, PostgreSQL::Test::Utils::slurp_file("$dir/got.$ending"));
}

sub ids { return join(',', sort map { /"event_id": ?"([^"]*)"/ ? $1 : "broken: $_" } @_); }

# Tracks events, of which those numbered by a multiple of $every match.
sub track
{
	my ($from, $to, $every) = @_;
	$node->safe_psql('postgres', encode('UTF-8', qq{SET client_encoding = utf8;
		SELECT count(evstream_track('ü-' || i, CASE WHEN i % $every = 0 THEN 'purchase' ELSE 'view' END,
			jsonb_build_object('amount', i + 0.1234567891, 'note', E'a "b"\\n\\u2028')))
		FROM generate_series($from, $to) i}));
	return;
}

# Does each client get all that match, each once?
sub all_get
{
	my ($name) = @_;
	is($node->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', "$name: sent");
	my $truth = ids(map { qq{"event_id":"$_"} }
		split(/\n/, $node->safe_psql('postgres', q{SELECT event_id FROM evstream_events WHERE event_type = 'purchase'})));
	my $number = () = $truth =~ /,/g;
	foreach my $ending (@clients)
	{
		my $end = time() + 60;
		sleep(0.05) while lines($ending) <= $number && time() < $end;
		ok(ids(lines($ending)) eq $truth, "$name: $programs{$ending} has all " . ($number + 1) . ', each once')
		  or diag(scalar(lines($ending)) . ' lines; ' . PostgreSQL::Test::Utils::slurp_file("$dir/err.$ending"));
	}
	return;
}

$node->safe_psql('postgres', encode('UTF-8', qq{SET client_encoding = utf8;
	SELECT evstream_subscribe(\$\$$who\$\$, event_types => '{purchase}')}));

# ---- Live ----

clients_come();
track(1, 100, 2);
all_get('live');
foreach my $ending (@clients)
{
	is(scalar(grep { /"amount": ?2\.1234567891\b/ } lines($ending)), 1, "$programs{$ending}: amounts as they are");
}

# ---- Away, while the stream goes on beyond its length ----

clients_go();
foreach my $ending (@clients)
{
	# Its machine crashed: a line broke off.
	my $file = "$dir/got.$ending";
	truncate($file, (-s $file) - 20) or die "truncate: $!";
}
track(101, 5000, 2);
is($node->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', 'a long absence');
my $key = encode('UTF-8', "evstream:stream:$who");
cmp_ok(redis_connect()->command('XLEN', $key), '<', 1000, 'most of it is not in the stream any more');
clients_come();
all_get('after an absence');
foreach my $ending (@clients)
{
	my $backfilled = () = PostgreSQL::Test::Utils::slurp_file("$dir/out.$ending") =~ /^backfill /mg;
	cmp_ok($backfilled, '>=', 2450, "$programs{$ending}: several pages by backfill");
}

# ---- Redis is emptied, and comes back after a crash ----

redis_connect()->command('FLUSHALL');
track(5001, 5100, 2);
all_get('an emptied Redis');

redis_kill();
track(5101, 5200, 2);
redis_start();
track(5201, 5300, 2);
all_get('Redis away');

# ---- A burst that trims what was not read yet ----

foreach my $ending (@clients) { $handles{$ending}->signal('STOP'); }
track(5301, 9000, 2);
is($node->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', 'clients that stand still');
foreach my $ending (@clients) { $handles{$ending}->signal('CONT'); }
track(9001, 9010, 2);
all_get('slow clients');

# ---- A client that has nothing, and wants all ----

clients_go();
foreach my $ending (@clients) { unlink("$dir/got.$ending") or die "unlink: $!"; }
clients_come('-infinity');
all_get('from the beginning');

clients_go();
$node->stop;
done_testing();
