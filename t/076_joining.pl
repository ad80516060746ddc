# A client that joins and leaves a hundred times, under load and across an emptied Redis:
# every event once, none missed.

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
use Time::HiRes qw(sleep time);

use constant JOINS => 100;

my $examples = abs_path("$FindBin::Bin/../examples");
my ($client) = grep { my $program = $_->[0]; grep { -x "$_/$program" } split(/:/, $ENV{PATH}) }
  ([ 'python3', 'py' ], [ 'node', 'js' ]);
BAIL_OUT('neither python3 nor node') if !$client && $ENV{CI};
plan skip_all => 'neither python3 nor node' unless $client;

# The stream is short: who is away for a moment finds a part of it trimmed.
my $url = redis_start();
my $node = new_node('main', 'evstream.redis_url' => $url, 'evstream.stream_maxlen' => 50, extension => 1);
my $dir = scratch_dir();
my $file = "$dir/got";

sub sql { return $node->safe_psql('postgres', @_); }
sub size { return -s $file // 0; }

sql(q{SELECT evstream_subscribe('me', '{purchase}')});

# Load: a few events at a time, and every fifth is for us.
my $stop = "$dir/stop";
my $load = IPC::Run::start([ 'sh', '-c',
		q{while [ ! -e "$1" ]; do psql -X -q -d "$2" -c "$3" >/dev/null 2>&1; sleep 0.05; done},
		'sh', $stop, $node->connstr('postgres'),
		q{SELECT count(evstream_track('u' || i, CASE WHEN i % 5 = 0 THEN 'purchase' ELSE 'view' END)) FROM generate_series(1, 20) i} ],
	'<', \undef);

my ($emptied, $late) = (0, 0);
foreach my $join (1 .. JOINS)
{
	local %ENV = (%ENV, REDIS_URL => $url, PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => 'postgres');
	my $size = size();
	my $handle = IPC::Run::start([ $client->[0], "$examples/subscriber.$client->[1]", 'me', $file, '-infinity' ],
		'<', \undef, '>>', "$dir/out", '2>>', "$dir/err");
	if ($join % 30 == 0)
	{
		# while it joins
		redis_cli('FLUSHALL');
		$emptied++;
	}
	if ($join == 50)
	{
		redis_kill();
		redis_start();
	}
	# It stays until something new has come, at times for some more.
	my $end = time() + 60;
	foreach (0 .. $join % 3)
	{
		sleep(0.005) while size() <= $size && time() < $end;
		$size = size();
	}
	$late++ if time() >= $end;
	# At times it has no time to say good-bye, and breaks off in the middle of a line.
	$handle->signal($join % 4 ? 'TERM' : 'KILL');
	eval { $handle->finish; };
	if ($join % 10 == 5 && size() > 20)
	{
		truncate($file, size() - 20) or die "truncate: $!";
	}
}
is($late, 0, 'each time something came');
is($emptied, 3, 'Redis was emptied several times');
append_to_file($stop, 'stop');
$load->finish;
is(sql(q{SELECT evstream_wait('60 s')}), 't', 'all is sent');

# Once more, to catch up with all of it.
my @truth = split(/\n/, sql(q{SELECT event_id FROM evstream_events WHERE event_type = 'purchase' ORDER BY 1}));
{
	local %ENV = (%ENV, REDIS_URL => $url, PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => 'postgres');
	my $handle = IPC::Run::start([ $client->[0], "$examples/subscriber.$client->[1]", 'me', $file ], '<', \undef, '>>', "$dir/out", '2>>', "$dir/err");
	my $end = time() + 60;
	my $count = 0;
	while ($count < @truth && time() < $end)
	{
		sleep(0.1);
		$count = () = slurp_file($file) =~ /\n/g;
	}
	$handle->signal('TERM');
	eval { $handle->finish; };
}
my @got = map { /"event_id": ?"([^"]*)"/ ? $1 : "broken: $_" } split(/\n/, slurp_file($file));
my %count;
$count{$_}++ foreach @got;
is(join(' ', grep { $count{$_} > 1 } keys %count), '', 'none twice');
is(join(' ', grep { !$count{$_} } @truth), '', 'none missed');
is(scalar(@got), scalar(@truth), 'and nothing else');
cmp_ok(scalar(@truth), '>=', JOINS, scalar(@truth) . ' events');
my $said = slurp_file("$dir/out");
cmp_ok(scalar(() = $said =~ /^backfill /mg), '>', 0, 'some by backfill');
cmp_ok(scalar(() = $said =~ /^\d+-\d+ /mg), '>', 0, 'some from the stream');

unlike(slurp_file($node->logfile), qr/signal 11|PANIC|TRAP/, 'no crash');
$node->stop;
done_testing();
