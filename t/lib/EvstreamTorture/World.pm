
=pod

=head1 NAME

EvstreamTorture::World - the servers around one run: PostgreSQL, Kafka, Redis, proxies

=head1 SYNOPSIS

  my $world = EvstreamTorture::World->new($run);   # started, as the run's plan says
  $world->sql('SELECT 1');                  # asked until there is an answer
  $world->try_sql('SELECT 1');              # undef where there is none
  my @pids = $world->workers('consumer');
  $world->discard;                          # ended and removed

The broker and Redis serve all runs of a process, the server of PostgreSQL and the proxies
are a run's own. With EVSTREAM_TORTURE_DISK, a small file system of its own, data
directory and WAL live there, so that it can be filled.

=cut

package EvstreamTorture::World;

use strict;
use warnings;

use Carp qw(croak);
use Cwd qw(abs_path);
use EvstreamProxy;
use EvstreamMock;
use EvstreamTest;
use File::Basename qw(dirname);
use File::Path ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Time::HiRes qw(sleep time);

my $bench = abs_path(dirname(__FILE__) . '/../../..') . '/bench';
my $clockstep = "$bench/clockstep.so";
my ($broker, $redis, %ports, %templates);

sub new
{
	my ($class, $run) = @_;
	my $self = bless { run => $run, name => $run->{name}, kafka => '', redis => '' }, $class;
	$self->_start_broker if $run->{mode} eq 'kafka';
	$self->_start_mock if $run->{mode} eq 'mock';
	$self->_start_redis if $run->{redis};
	$self->_start_server;
	return $self;
}

# ---- PostgreSQL ----

sub _copy
{
	my ($from, $to) = @_;
	system_or_bail('cp', '-a', $from, $to);
	return;
}

# A new server, as a copy of one that initdb made once. Copies have the same system identifier
# and oids, and of the extensions made in them the last one goes on: servers that should meet
# as strangers need templates of their own.
sub make_node
{
	my ($name, $from, %settings) = @_;
	my $template = $templates{$from} //= new_node($from, start => 0);
	my $node = PostgreSQL::Test::Cluster->new($name);
	my $data = $node->data_dir;
	File::Path::make_path(dirname($data));
	_copy($template->data_dir, $data);
	$node->append_conf('postgresql.conf',
		'port = ' . $node->port . "\n" . join('', map { "$_ = '$settings{$_}'\n" } sort keys %settings));
	return $node;
}

sub _start_server
{
	my ($self) = @_;
	my $run = $self->{run};
	my %settings = (
		# few, so that they can all be taken
		max_connections => 20,
		deadlock_timeout => '100ms',
		autovacuum_naptime => '5s',
		checkpoint_timeout => '30s',
		'evstream.consumers' => $run->{consumers},
		'evstream.batch_size' => $run->{batch_size},
		'evstream.stream_maxlen' => 1_000_000,
		'evstream.redis_url' => $self->{redis},
		'evstream.redis_prefix' => "$self->{name}:",
		'evstream.kafka_brokers' => $self->{kafka},
		'evstream.kafka_topic' => $self->topic,
		'evstream.kafka_read_topics' => $run->{mode} eq 'kafka' ? $self->side_topic : '',
		'evstream.kafka_group' => $self->group);
	# steps of the clock make more days than pass
	$settings{'evstream.dedup_window'} = '20 days' if $run->{clock};
	if ($run->{disk})
	{
		$settings{max_wal_size} = '48MB';
		$settings{min_wal_size} = '32MB';
	}
	my $node = $self->{node} = make_node($self->{name}, 'template', %settings);
	if ($run->{disk})
	{
		$self->{disk} = "$ENV{EVSTREAM_TORTURE_DISK}/data/$self->{name}";
		$self->{wal} = "$ENV{EVSTREAM_TORTURE_DISK}/wal/$self->{name}";
		_copy($node->data_dir . '/pg_wal', $self->{wal});
		File::Path::remove_tree($node->data_dir . '/pg_wal');
		symlink($self->{wal}, $node->data_dir . '/pg_wal') or croak "symlink: $!";
		_copy($node->data_dir, $self->{disk});
		File::Path::remove_tree($node->data_dir);
		symlink($self->{disk}, $node->data_dir) or croak "symlink: $!";
	}
	$self->set_clock(0) if $run->{clock};
	$self->_start_node;
	$node->safe_psql('postgres', 'CREATE TABLE public.ledger (client text, no int, PRIMARY KEY (client, no)); CREATE EXTENSION evstream');
	return;
}

sub _start_node
{
	my ($self, @opts) = @_;
	# the server gets what is in the environment here
	local $ENV{CLOCKSTEP} = "$self->{run}{dir}/clock";
	local $ENV{LD_PRELOAD} = $clockstep if $self->{run}{clock};
	return $self->{node}->start(@opts);
}

# The server's clock is off by so many seconds from now on.
sub set_clock
{
	my ($self, $seconds) = @_;
	my $file = "$self->{run}{dir}/clock";
	open(my $out, -e $file ? '+<' : '>', $file) or croak "$file: $!";
	syswrite($out, pack('q', $seconds * 1_000_000));
	close($out);
	return;
}

sub connstr { return $_[0]{node}->connstr('postgres'); }

# The answer, or undef where there is none.
sub try_sql
{
	my ($self, $sql, $timeout) = @_;
	my ($out, $err) = ('', '');
	my $rc = eval { $self->{node}->psql('postgres', $sql, stdout => \$out, stderr => \$err, timeout => $timeout // 30); };
	$self->{said} = $err . ($@ || '');
	return defined $rc && $rc eq '0' ? $out : undef;
}

# The answer; the server may be on its way up.
sub sql
{
	my ($self, $sql, $timeout) = @_;
	my $end = time() + ($timeout // 90);
	while (1)
	{
		my $out = $self->try_sql($sql);
		return $out if defined $out;
		die "no answer to $sql: $self->{said}\n" if time() > $end;
		sleep(0.1);
	}
}

# Asks until the answer is the expected one.
sub wait_sql
{
	my ($self, $sql, $expected, $timeout) = @_;
	my $end = time() + $timeout;
	my $out;
	while (1)
	{
		$out = $self->try_sql($sql);
		return 1 if defined $out && $out eq $expected;
		last if time() > $end;
		sleep(0.05);
	}
	die "waited $timeout s for $sql\n  to give $expected, last: " . ($out // $self->{said}) . "\n";
}

# Process ids of the workers of a role, in an order that does not depend on them.
sub workers
{
	my ($self, $role) = @_;
	return split(/\n/, $self->sql(qq{SELECT pid FROM pg_stat_activity WHERE backend_type = 'evstream launcher'})) if $role eq 'launcher';
	return split(/\n/, $self->sql(qq{SELECT pid FROM evstream_workers WHERE role = '$role' AND pid IS NOT NULL ORDER BY started_at}));
}

# The server's clock can be moved where bench/clockstep.so is built.
sub has_clock { return -e $clockstep; }

# Starts the server where it does not run.
sub up
{
	my ($self) = @_;
	my $node = $self->{node};
	$node->_update_pid(-1);
	return if defined $node->{_pid};
	unlink($node->data_dir . '/postmaster.pid');
	foreach (1 .. 3)
	{
		return if $self->_start_node(fail_ok => 1);
		sleep(1);
	}
	die "the server does not start\n";
}

# ---- Kafka ----

sub topic { return "$_[0]{name}.main"; }
sub side_topic { return "$_[0]{name}.side"; }
sub group { return "$_[0]{name}.group"; }
sub direct { return $_[0]{direct}; }

# A second listener is the one that evstream sees, through a proxy.
sub _start_broker
{
	my ($self) = @_;
	if (!$broker)
	{
		$ports{$_} = PostgreSQL::Test::Cluster::get_free_port() foreach qw(plain behind controller proxy);
		$broker = kafka_start(
			$ports{plain},
			"listeners=PLAINTEXT://127.0.0.1:$ports{plain},PROXIED://127.0.0.1:$ports{behind},CONTROLLER://127.0.0.1:$ports{controller}",
			"advertised.listeners=PROXIED://127.0.0.1:$ports{proxy},PLAINTEXT://127.0.0.1:$ports{plain}",
			'listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT',
			"controller.quorum.voters=1\@127.0.0.1:$ports{controller}",
			'inter.broker.listener.name=PLAINTEXT',
			'log.retention.ms=-1');
	}
	# a run that failed may have left it dead or frozen
	kafka_start();
	$self->{direct} = kafka_use($broker);
	$self->{kafka_proxy} = EvstreamProxy->new('kafka-proxy', $self->{run}{seed}, $ports{behind}, $ports{proxy});
	$self->{kafka} = "127.0.0.1:$ports{proxy}";
	make_topic($self->topic, $self->{run}{partitions});
	make_topic($self->side_topic, 2);
	return;
}

sub _start_mock
{
	my ($self) = @_;
	$self->{mock} = EvstreamMock->new(3, "$self->{run}{dir}/kmock.log");
	$self->{kafka} = $self->{direct} = $self->{mock}->address;
	$self->mock('topic', $self->topic, $self->{run}{partitions});
	return;
}

# Tells the mock cluster what to do.
sub mock
{
	my ($self, @words) = @_;
	$self->{mock}->tell(@words);
	return;
}

# ---- Redis ----

sub _start_redis
{
	my ($self) = @_;
	# a run that failed may have left it in any state
	$redis //= redis_start();
	redis_kill();
	redis_start();
	redis_cli('REPLICAOF', 'NO', 'ONE');
	redis_cli('FLUSHALL');
	$self->{redis_proxy} = EvstreamProxy->new('redis-proxy', $self->{run}{seed}, redis_port(), $ports{redis});
	$ports{redis} = $self->{redis_proxy}->port;
	$self->{redis} = "redis://127.0.0.1:$ports{redis}/0";
	return;
}

# ---- The end ----

# Ends all that is this run's own; a server that is kept leaves its files.
sub discard
{
	my ($self, $keep) = @_;
	my $node = $self->{node};
	if ($node)
	{
		$node->stop('immediate', fail_ok => 1);
		if ($self->{disk})
		{
			unlink($node->data_dir);
			_copy($self->{disk}, $node->data_dir) if $keep;
			File::Path::remove_tree($self->{disk}, $self->{wal});
		}
		if (!$keep)
		{
			$node->clean_node;
			unlink($node->logfile);
		}
	}
	$_->end foreach grep { $_ } @{$self}{qw(kafka_proxy redis_proxy)};
	if ($self->{run}{mode} eq 'kafka')
	{
		# so that the broker does not grow
		eval { delete_topic($_) } foreach $self->topic, $self->side_topic;
	}
	$self->{mock}->end if $self->{mock};
	return;
}

1;
