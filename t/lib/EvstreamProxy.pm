
=pod

=head1 NAME

EvstreamProxy - stands between evstream and another server, and injects faults

=head1 SYNOPSIS

  use EvstreamTest;
  use EvstreamProxy;

  redis_start();
  my $url = proxy_start(42);               # of random numbers
  proxy_mode('cut', 3000);                 # connections end after up to so many bytes
  proxy_mode('cut', 3000, 9000);           # of answers 9000; 300 where it is not said
  proxy_mode('say', '-LOADING Redis is loading the dataset in memory');
  proxy_mode('refuse');                    # connections end at once
  proxy_mode('swallow');                   # the answer to a script is lost, then as refuse
  proxy_mode('pass');
  proxy_mode('delay', 50);                 # what comes in waits so many milliseconds
  my $count = proxy_count('cut');          # how often that was done

  my $proxy = EvstreamProxy->new('kafka', 42, $port);     # one more, before another port
  my $address = '127.0.0.1:' . $proxy->port;
  $proxy->mode('cut', 20000);

Commands that C<say> answers are those of Redis. A connection that is cut ends after a random number of bytes in a random direction:
what comes in within that chunk up to the byte is still passed on. Each mode holds for
bytes that come from then on, also of connections that are open.

=cut

package EvstreamProxy;

use strict;
use warnings;

use Carp qw(croak);
use EvstreamTest;
use Exporter qw(import);
use IO::Select;
use IO::Socket::INET;
use POSIX ();

our @EXPORT = qw(proxy_start proxy_mode proxy_count);

my ($default, %pids);

# ---- The one before the test's Redis ----

sub proxy_start
{
	my ($seed) = @_;
	$default = EvstreamProxy->new('proxy', $seed, redis_port());
	return 'redis://127.0.0.1:' . $default->port . '/0';
}

sub proxy_mode { return $default->mode(@_); }
sub proxy_count { return $default->count(@_); }

# ---- Any ----

# Stands before a port of 127.0.0.1, on one of its own, or on that which is given. The
# seed is that of its random numbers.
sub new
{
	my ($class, $name, $seed, $target, $port) = @_;
	my $self = bless { dir => scratch_dir() . "/$name", target => $target }, $class;
	mkdir($self->{dir});
	$self->mode('pass');
	my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port // 0, Listen => 20, ReuseAddr => 1)
	  or croak "proxy: $!";
	my $pid = fork() // croak "fork: $!";
	if ($pid == 0)
	{
		srand($seed);
		local $SIG{PIPE} = 'IGNORE';
		eval { $self->_serve($listener); };
		POSIX::_exit(1);
	}
	$pids{$pid} = 1;
	$self->{pid} = $pid;
	$self->{port} = $listener->sockport;
	close($listener);
	return $self;
}

sub port { return $_[0]{port}; }
sub mode { my ($self, @words) = @_; return $self->_write('mode', join(' ', @words)); }
sub count { return $_[0]->_read($_[1]) || 0; }

# A new one may then have the port.
sub end
{
	my ($self) = @_;
	kill('KILL', $self->{pid});
	waitpid($self->{pid}, 0);
	delete $pids{ $self->{pid} };
	return;
}

END
{
	my $status = $?;
	foreach my $pid (keys %pids)
	{
		kill('KILL', $pid);
		waitpid($pid, 0);
	}
	$? = $status;
}

sub _write
{
	my ($self, $name, $text) = @_;
	my $path = "$self->{dir}/$name";
	open(my $file, '>', "$path.new") or croak "$path: $!";
	print $file $text;
	close($file);
	rename("$path.new", $path) or croak "$path: $!";
	return;
}

sub _read
{
	my ($self, $name) = @_;
	open(my $file, '<', "$self->{dir}/$name") or return '';
	my $text = <$file>;
	return $text // '';
}

# How many whole commands a text of RESP begins with; they are taken from it.
sub _commands
{
	my ($data) = @_;
	my $count = 0;
	while (1)
	{
		pos($$data) = 0;
		$$data =~ /\G\*(\d+)\r\n/gc or return $count;
		for (1 .. $1)
		{
			$$data =~ /\G\$(\d+)\r\n/gc or return $count;
			return $count if length($$data) < pos($$data) + $1 + 2;
			pos($$data) += $1 + 2;
		}
		substr($$data, 0, pos($$data), '');
		$count++;
	}
}

sub _send
{
	my ($socket, $data) = @_;
	while (length $data)
	{
		my $n = syswrite($socket, $data) or return 0;
		substr($data, 0, $n, '');
	}
	return 1;
}

sub _serve
{
	my ($self, $listener) = @_;
	my $select = IO::Select->new($listener);
	my (%pairs, %count);
	my $add = sub { $self->_write($_[0], ++$count{ $_[0] }); };
	my $drop = sub {
		my ($pair) = @_;
		foreach my $socket (grep { defined } @{$pair}{qw(client server)})
		{
			$select->remove($socket);
			delete $pairs{$socket};
			close($socket);
		}
	};

	while (1)
	{
		foreach my $socket ($select->can_read)
		{
			my ($mode, $rest) = split(/ /, $self->_read('mode'), 2);
			if ($socket == $listener)
			{
				my $client = $listener->accept or next;
				my $server = $mode eq 'refuse' ? undef : IO::Socket::INET->new(PeerAddr => "127.0.0.1:$self->{target}");
				if (!$server)
				{
					$add->('refuse') if $mode eq 'refuse';
					close($client);
					next;
				}
				$pairs{$client} = $pairs{$server} = { client => $client, server => $server, asked => '' };
				$select->add($client, $server);
				next;
			}
			my $pair = $pairs{$socket} or next;
			my $from_client = $socket == $pair->{client};
			my $n = sysread($socket, my $data, 65536);
			if (!$n || $mode eq 'refuse')
			{
				$add->('refuse') if $n;
				$drop->($pair);
				next;
			}
			select(undef, undef, undef, $rest / 1000) if $mode eq 'delay';
			if ($mode eq 'swallow')
			{
				$pair->{script} = 1 if $from_client && $data =~ /EVALSHA/;
				if (!$from_client && $pair->{script})
				{
					$self->mode('refuse');
					$drop->($pair);
					$add->('swallow');
					next;
				}
			}
			if ($mode eq 'say' && $from_client)
			{
				$pair->{asked} .= $data;
				my $commands = _commands(\$pair->{asked});
				_send($socket, "$rest\r\n" x $commands) or $drop->($pair);
				$add->('say') for 1 .. $commands;
				next;
			}
			if ($mode eq 'cut')
			{
				if (($pair->{limit} // '') ne $rest)
				{
					my ($asked, $answered) = split(/ /, $rest);
					$pair->{limit} = $rest;
					$pair->{way} = int(rand(2));
					$pair->{left} = int(rand($pair->{way} ? $asked : $answered // 300));
				}
				if ($pair->{way} == $from_client)
				{
					my $end = $pair->{left} < length($data);
					$data = substr($data, 0, $pair->{left}) if $end;
					$pair->{left} -= length($data);
					if ($end)
					{
						_send($from_client ? $pair->{server} : $pair->{client}, $data);
						$drop->($pair);
						$add->('cut');
						next;
					}
				}
			}
			else
			{
				delete $pair->{limit};
			}
			_send($from_client ? $pair->{server} : $pair->{client}, $data) or $drop->($pair);
		}
	}
}

1;
