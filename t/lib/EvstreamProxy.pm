
=pod

=head1 NAME

EvstreamProxy - stands between evstream and the test's Redis, and injects faults

=head1 SYNOPSIS

  use EvstreamTest;
  use EvstreamProxy;

  redis_start();
  my $url = proxy_start(42);               # of random numbers
  proxy_mode('cut', 3000);                 # connections end after up to so many bytes
  proxy_mode('say', '-LOADING Redis is loading the dataset in memory');
  proxy_mode('refuse');                    # connections end at once
  proxy_mode('pass');
  my $count = proxy_count('cut');          # how often that was done

A connection that is cut ends after a random number of bytes in a random direction:
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

my ($pid, $dir);

sub _write
{
	my ($name, $text) = @_;
	open(my $file, '>', "$dir/$name.new") or croak "$dir/$name: $!";
	print $file $text;
	close($file);
	rename("$dir/$name.new", "$dir/$name") or croak "$dir/$name: $!";
	return;
}

sub _read
{
	my ($name) = @_;
	open(my $file, '<', "$dir/$name") or return '';
	my $text = <$file>;
	return $text // '';
}

sub proxy_mode { return _write('mode', join(' ', @_)); }
sub proxy_count { return _read($_[0]) || 0; }

sub proxy_start
{
	my ($seed) = @_;
	$dir = scratch_dir() . '/proxy';
	mkdir($dir);
	proxy_mode('pass');
	my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 20, ReuseAddr => 1)
	  or croak "proxy: $!";
	$pid = fork() // croak "fork: $!";
	if ($pid == 0)
	{
		srand($seed);
		local $SIG{PIPE} = 'IGNORE';
		eval { _serve($listener); };
		POSIX::_exit(1);
	}
	my $port = $listener->sockport;
	close($listener);
	return "redis://127.0.0.1:$port/0";
}

END
{
	if (defined $pid && $pid)
	{
		my $status = $?;
		kill('KILL', $pid);
		waitpid($pid, 0);
		$? = $status;
	}
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
	my ($listener) = @_;
	my $select = IO::Select->new($listener);
	my (%pairs, %count);
	my $add = sub { _write($_[0], ++$count{ $_[0] }); };
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
			my ($mode, $rest) = split(/ /, _read('mode'), 2);
			if ($socket == $listener)
			{
				my $client = $listener->accept or next;
				my $server = $mode eq 'refuse' ? undef : IO::Socket::INET->new(PeerAddr => '127.0.0.1:' . redis_port());
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
				if (($pair->{limit} // 0) != $rest)
				{
					# answers are short
					$pair->{limit} = $rest;
					$pair->{way} = int(rand(2));
					$pair->{left} = int(rand($pair->{way} ? $rest : 300));
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
