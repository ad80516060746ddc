
=pod

=head1 NAME

EvstreamTest - helpers for the TAP tests, on top of PostgreSQL::Test::Cluster

=head1 SYNOPSIS

  use FindBin;
  use lib "$FindBin::Bin/lib";
  use EvstreamTest;
  use Test::More;

  my $kafka = kafka_start();          # skips the file, or fails under CI, where there is none
  my $node = new_node('main', 'evstream.kafka_brokers' => $kafka, extension => 1);
  make_topic('other', 2);
  produce('other', [ ['u-1', '{"user_id":"u-1","event":"view"}'], [undef, "\x00"] ]);
  ok(wait_for_sql($node, 'postgres', 'SELECT count(*) FROM evstream_events', 1));
  evgen('--count', 1000, ...);
  is_deeply([ compare_truth($node, 'postgres', $prefix) ], [], 'counts are the truth');

=cut

package EvstreamTest;

use strict;
use warnings;

use Carp qw(croak);
use Cwd qw(abs_path);
use Encode ();
use Exporter qw(import);
use File::Basename qw(dirname);
use File::Temp ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More ();
use Time::HiRes qw(sleep time);

our @EXPORT = qw(
  new_node wait_for_sql count_log log_lines scratch_dir
  kafka_start kafka_stop kafka_kill kafka_pause kafka_continue kafka_address kafka_use kafka_secure
  make_topic alter_topic delete_topic trim_topic watermarks group_offsets commit_offset
  produce consume
  redis_start redis_stop redis_kill redis_freeze redis_thaw redis_cli redis_lines redis_stream redis_port
  evgen evgen_start compare_truth
);

my $repo = abs_path(dirname(__FILE__) . '/../..');
my ($kafka_dir, $kafka_address);

# A directory of this test's own, removed at its end.
my $scratch;

sub scratch_dir
{
	$scratch //= PostgreSQL::Test::Utils::tempdir('evstream');
	return $scratch;
}

# ---- Servers ----

# A server that preloads evstream. Options are settings by name; further:
#   start => 0       do not start it
#   preload => 0     without shared_preload_libraries
#   extension => 1   CREATE EXTENSION in database postgres
#   streaming => 1   allows_streaming of PostgreSQL::Test::Cluster
#   install => DIR   of the PostgreSQL that is below DIR
#   initdb => [...]  further arguments
sub new_node
{
	my ($name, %opts) = @_;
	my $start = delete $opts{start} // 1;
	my $preload = delete $opts{preload} // 1;
	my $extension = delete $opts{extension};
	my $streaming = delete $opts{streaming};
	my $install = delete $opts{install};
	my $initdb = delete $opts{initdb} // [];

	my $node = PostgreSQL::Test::Cluster->new($name, $install ? (install_path => $install) : ());
	$node->init(
		extra => [ '--encoding=UTF8', '--locale=C', @$initdb ],
		$streaming ? (allows_streaming => 1) : ());
	my %conf = (
		fsync => 'off',
		listen_addresses => '',
		log_line_prefix => '%m [%p] %b %q%a %d ',
		log_statement => 'none',
		log_checkpoints => 'off',
		max_connections => 50,
		max_prepared_transactions => 10,
		max_worker_processes => 20,
		max_wal_size => '1GB',
		restart_after_crash => 'on',
		shared_buffers => '64MB',
		$preload ? (shared_preload_libraries => 'evstream') : (),
		%opts);
	$node->append_conf('postgresql.conf',
		join('', map { (my $v = $conf{$_}) =~ s/'/''/g; "$_ = '$v'\n" } sort keys %conf));
	if ($start)
	{
		$node->start;
		$node->safe_psql('postgres', 'CREATE EXTENSION evstream') if $extension;
	}
	return $node;
}

# Ask until the answer is the expected one; false, with a diagnostic, after the
# timeout (seconds, 60 by default). A server that is away is asked again.
sub wait_for_sql
{
	my ($node, $db, $sql, $expected, $timeout) = @_;
	my $end = time() + ($timeout // 60);
	my $pause = 0.02;
	my ($rc, $out, $err);

	while (1)
	{
		# The exit code in a list context keeps psql() from dying when the server is away.
		($rc, $out, $err) = ('', '', '');
		$rc = eval { $node->psql($db, $sql, stdout => \$out, stderr => \$err, timeout => 60); };
		$err .= $@ if $@;
		return 1 if defined $rc && $rc ne '' && $rc == 0 && $out eq $expected;
		last if time() >= $end;
		sleep($pause);
		$pause = $pause * 1.5 > 0.25 ? 0.25 : $pause * 1.5;
	}
	Test::More::diag("waited in vain for: $sql\nexpected: $expected\nlast: $out $err");
	return 0;
}

sub _matching_lines
{
	my ($node, $regex, $offset) = @_;
	my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile, $offset // 0);
	return grep { /$regex/ } split(/\n/, $log);
}

# How many lines of the server's log match, from an offset in bytes on.
sub count_log
{
	return scalar(my @lines = _matching_lines(@_));
}

# Those lines themselves, so that a test that wants none shows which it got. Without what
# the server says of each worker that is in the midst of a statement when it stops.
sub log_lines
{
	return join("\n", grep { !/ FATAL:  terminating background worker "[^"]*" due to administrator command/ } _matching_lines(@_));
}

# ---- The broker: one for each test file ----

sub _kafka
{
	my ($action, @args) = @_;
	my ($out, $err) = ('', '');
	$kafka_dir //= scratch_dir() . '/kafka';
	IPC::Run::run([ "$repo/scripts/kafka.sh", $action, $kafka_dir, @args ],
		'<', \undef, '>', \$out, '2>', \$err);
	my $rc = $? >> 8;
	chomp($out, $err);
	return ($rc, $out, $err);
}

sub _kafka_must
{
	my ($rc, $out, $err) = _kafka(@_);
	croak "kafka.sh $_[0]: $err" if $rc != 0;
	return $out;
}

# Start the broker, or start it again with its data; gives "127.0.0.1:PORT". The
# arguments are KEY=VALUE lines for server.properties at the first start.
sub kafka_start
{
	my ($rc, $out, $err) = _kafka('start', @_);
	if ($rc == 77 && !$ENV{CI})
	{
		my $builder = Test::More->builder;
		if (!$builder->has_plan && !$builder->current_test)
		{
			Test::More::plan(skip_all => "no Kafka: $err");
		}
	}
	Test::More::BAIL_OUT("Kafka did not start: $err") if $rc != 0;
	return $kafka_address = $out;
}

sub kafka_address { return $kafka_address; }

# What follows speaks to the broker at this address: one that kafka_start() gave, or
# any other.
sub kafka_use { return $kafka_address = $_[0]; }

# With users=NAME:PASSWORD at the first start: the address of the listener with TLS and
# SASL, and the file of its authority.
sub kafka_secure { return (_kafka_must('secure'), abs_path("$kafka_dir/ca.crt")); }

sub kafka_stop { return _kafka_must('stop'); }
sub kafka_kill { return _kafka_must('kill'); }
sub kafka_pause { return _kafka_must('pause'); }
sub kafka_continue { return _kafka_must('continue'); }

END
{
	# The exit status of the test must survive the system call.
	my $status = $?;
	_kafka('kill') if defined $kafka_dir && -e "$kafka_dir/kafka.pid";
	$? = $status;
}

sub _kprobe
{
	my ($stdin, @args) = @_;
	my ($out, $err) = ('', '');
	croak 'no broker was started' unless $kafka_address;
	IPC::Run::run([ "$repo/bench/kprobe", '-b', $kafka_address, @args ],
		'<', \$stdin, '>', \$out, '2>', \$err)
	  or croak "kprobe @args: $err";
	return $out;
}

# make_topic($name, $partitions, 'max.message.bytes=1000', ...)
sub make_topic { return _kprobe('', 'create', @_); }
sub alter_topic { return _kprobe('', 'alter', @_); }
sub delete_topic { return _kprobe('', 'delete', @_); }

# Drop a partition's records before an offset: trim_topic($name, $partition, $offset)
sub trim_topic { return _kprobe('', 'trim', @_); }

# A list of [partition, first offset, end offset].
sub watermarks { return map { [ split /\t/ ] } split(/\n/, _kprobe('', 'watermarks', @_)); }

# A list of [topic, partition, offset, metadata] that a group has committed.
sub group_offsets { return map { [ split(/\t/, $_, -1) ] } split(/\n/, _kprobe('', 'offsets', @_)); }

# commit_offset($group, $topic, $partition, $offset [, $metadata])
sub commit_offset { return _kprobe('', 'commit', @_); }

sub _escape
{
	my ($text) = @_;
	$text = Encode::encode('UTF-8', $text) if utf8::is_utf8($text);
	$text =~ s/([^\x20-\x5b\x5d-\x7e])/sprintf('\\x%02x', ord($1))/ge;
	return $text;
}

sub _unescape
{
	my ($text) = @_;
	my %plain = (t => "\t", n => "\n", r => "\r", '\\' => '\\');
	$text =~ s/\\(?:x(..)|(.))/defined $1 ? chr(hex($1)) : $plain{$2}/ge;
	return $text;
}

# produce($topic, [ [$key, $value, $partition, $timestamp_ms, $headers], ... ]): undef
# leaves a part out (of key and value it makes null); headers are a list of pairs or
# a hash. Bytes go out as they are, character strings as UTF-8.
sub produce
{
	my ($topic, $records) = @_;
	my $lines = '';
	foreach my $record (@$records)
	{
		my ($key, $value, $partition, $time, $headers) = @$record;
		my @fields;
		push @fields, 'key=' . _escape($key) if defined $key;
		push @fields, "partition=$partition" if defined $partition;
		push @fields, "time=$time" if defined $time;
		my @pairs = ref $headers eq 'HASH' ? %$headers : @{ $headers // [] };
		while (my ($name, $text) = splice(@pairs, 0, 2))
		{
			push @fields, "header:$name" . (defined $text ? '=' . _escape($text) : '');
		}
		push @fields, 'value=' . _escape($value) if defined $value;
		$lines .= join("\t", @fields) . "\n";
	}
	return _kprobe($lines, 'produce', $topic);
}

# consume($topic [, $partition [, $offset [, $max]]]): a list of records as hashes with
# partition, offset, time, key, value (undef: null), headers (a hash).
sub consume
{
	my @records;
	foreach my $line (split(/\n/, _kprobe('', 'consume', @_)))
	{
		my %record = (key => undef, value => undef, headers => {});
		foreach my $field (split(/\t/, $line))
		{
			my ($name, $text) = split(/=/, $field, 2);
			$text = _unescape($text) if defined $text;
			if ($name =~ /^header:(.*)/)
			{
				$record{headers}{$1} = $text;
			}
			else
			{
				$record{$name} = $text;
			}
		}
		push @records, \%record;
	}
	return @records;
}

# ---- Redis: one for each test file ----

my ($redis_dir, $redis_port, $redis_pid, $redis_password);

# Start Redis, with an append-only file that is written at each command, or start
# it again with its data; gives its URL. The arguments are lines of configuration,
# kept until others are given; only => "..." replaces ours.
my @redis_conf;

sub redis_start
{
	my @lines = @_;
	my $server = (grep { -x "$_/redis-server" } split(/:/, $ENV{PATH} . ':/usr/bin:/usr/local/bin'))[0];
	if (!defined $server)
	{
		Test::More::BAIL_OUT('no redis-server') if $ENV{CI};
		Test::More::plan(skip_all => 'no redis-server') if !Test::More->builder->has_plan && !Test::More->builder->current_test;
	}
	croak 'Redis runs already' if defined $redis_pid && kill(0, $redis_pid);
	$redis_dir //= abs_path(scratch_dir()) . '/redis';
	mkdir $redis_dir;
	$redis_port //= PostgreSQL::Test::Cluster::get_free_port();
	@redis_conf = @lines if @lines;
	PostgreSQL::Test::Utils::append_to_file("$redis_dir/redis.log", '');
	open(my $conf, '>', "$redis_dir/redis.conf") or croak "redis.conf: $!";
	print $conf join("\n", "port $redis_port", 'bind 127.0.0.1', "dir $redis_dir", 'daemonize no', 'save ""',
		'appendonly yes', 'appendfsync always', "logfile $redis_dir/redis.log", @redis_conf), "\n";
	close($conf);

	$redis_pid = fork();
	croak "fork: $!" unless defined $redis_pid;
	if ($redis_pid == 0)
	{
		open(STDIN, '<', '/dev/null');
		open(STDOUT, '>>', "$redis_dir/out.log");
		open(STDERR, '>&', \*STDOUT);
		exec("$server/redis-server", "$redis_dir/redis.conf") or POSIX::_exit(1);
	}
	my $end = time() + 30;
	while (redis_cli('PING') !~ /PONG|NOAUTH|LOADING/)
	{
		croak 'Redis did not start' if time() > $end;
		sleep(0.02);
	}
	return "redis://127.0.0.1:$redis_port/0";
}

sub redis_port { return $redis_port; }

sub _redis_end
{
	my ($signal) = @_;
	return unless defined $redis_pid;
	kill($signal, $redis_pid);
	my $status = $?;
	waitpid($redis_pid, 0);
	$? = $status;
	undef $redis_pid;
	return;
}

sub redis_stop { return _redis_end('TERM'); }
sub redis_kill { return _redis_end('KILL'); }
sub redis_freeze { return kill('STOP', $redis_pid); }
sub redis_thaw { return kill('CONT', $redis_pid); }

# The output of redis-cli, without the last newline; undef as the first argument
# is followed by options for it, as in redis_cli(undef, ['-a', 'secret'], 'PING').
sub redis_cli
{
	my @args = @_;
	my @options;
	if (@args && !defined $args[0])
	{
		shift @args;
		@options = @{ shift @args };
	}
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'redis-cli', '-h', '127.0.0.1', '-p', $redis_port, @options, @args ],
		'<', \undef, '>', \$out, '2>', \$err);
	chomp($out);
	return $out;
}

sub redis_lines { return split(/\n/, redis_cli(@_)); }

# Entries of a stream, as pairs of id and event (JSON text).
sub redis_stream
{
	my ($key) = @_;
	my @lines = redis_lines('XRANGE', $key, '-', '+');
	my @entries;
	while (my ($id, $name, $event) = splice(@lines, 0, 3))
	{
		push @entries, [ $id, $event ];
	}
	return @entries;
}

END
{
	redis_thaw() if defined $redis_pid;
	_redis_end('KILL');
}

# ---- Streams and their truth ----

# Run the generator; gives its stdout.
sub evgen
{
	my ($out, $err) = ('', '');
	IPC::Run::run([ "$repo/bench/evgen", @_ ], '<', \undef, '>', \$out, '2>', \$err)
	  or croak "evgen @_: $err";
	return $out;
}

# The same in the background; gives a handle of IPC::Run, to be finish()ed.
sub evgen_start
{
	my $log = scratch_dir() . '/evgen.log';
	return IPC::Run::start([ "$repo/bench/evgen", @_ ], '<', \undef, '>>', $log, '2>>', $log);
}

# Lines that say where the views of a database differ from the truth that evgen
# wrote to PREFIX.*.csv; none where they agree.
sub compare_truth
{
	my ($node, $db, $prefix) = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run(
		[
			'psql', '-X', '-A', '-t', '-q',
			'-d', $node->connstr($db),
			'-v', 'ON_ERROR_STOP=1', '-v', "prefix=$prefix",
			'-f', "$repo/scripts/compare.sql"
		],
		'<', \undef, '>', \$out, '2>', \$err) or croak "compare.sql: $err";
	return split(/\n/, $out);
}

1;
