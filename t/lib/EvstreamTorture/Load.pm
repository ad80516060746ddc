
=pod

=head1 NAME

EvstreamTorture::Load - streams of events at work while faults happen, and their truth

=head1 SYNOPSIS

  my $load = EvstreamTorture::Load->new($dir);
  $load->producer('p', 1, 6000, '--brokers', $kafka, '--topic', $topic);
  $load->tracker('c1', 2, 4000, $connstr, 500);   # events a second
  $load->allow(0.4);             # of each stream; it goes on in the background
  $load->allow(1);
  $load->finish(60);             # all of it was sent; dies where it was not
  $load->filler('side', 1000);   # so many events of our own, of a type of their own
  my $prefix = $load->truth;     # for compare_truth()

A producer is evgen, which writes to Kafka. A tracker calls evstream_track_batch() in
transactions, some of which it rolls back, and tries each again until it has committed: a
ledger in the database, written in the same transaction, tells what had become of one
whose answer was lost.

=cut

package EvstreamTorture::Load;

use strict;
use warnings;

use Carp qw(croak);
use Cwd qw(abs_path);
use EvstreamTest;
use EvstreamTorture::Dice;
use File::Basename qw(dirname);
use IO::Handle;
use IO::Select;
use IPC::Run ();
use POSIX ();
use PostgreSQL::Test::Utils;
use Time::HiRes qw(sleep time);

my $evgen = abs_path(dirname(__FILE__) . '/../../..') . '/bench/evgen';
my %pids;

# What all streams have in common: days of the past, so that every run of a seed has the same.
my @common = ('--until', '2026-10-31T12:00:00Z', '--users', 300, '--items', 100, '--zipf', 0.8, '--duplicates', 4,
	'--broken', 1, '--late', 2, '--future', 0.3);

sub new
{
	my ($class, $dir) = @_;
	return bless { dir => $dir, streams => [], fillers => {} }, $class;
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

# A process that reads numbers from a pipe and answers each when it is done.
sub _stream
{
	my ($self, $name, $events, $code) = @_;
	pipe(my $from_us, my $to_it) or croak "pipe: $!";
	pipe(my $from_it, my $to_us) or croak "pipe: $!";
	my $pid = fork() // croak "fork: $!";
	if ($pid == 0)
	{
		# nothing here may run our END blocks
		eval {
			close($to_it);
			close($from_it);
			open(STDERR, '>>', "$self->{dir}/$name.log");
			open(STDIN, '<&', $from_us);
			open(STDOUT, '>&', $to_us);
			STDOUT->autoflush(1);
			$code->();
		};
		print STDERR $@;
		POSIX::_exit($@ ? 1 : 0);
	}
	$pids{$pid} = 1;
	close($from_us);
	close($to_us);
	$to_it->autoflush(1);
	push @{ $self->{streams} }, { name => $name, pid => $pid, events => $events, allowed => 0, to => $to_it, from => $from_it };
	$self->{events} += $events;
	return;
}

sub producer
{
	my ($self, $name, $seed, $events, @target) = @_;
	my @command = ($evgen, @common, '--seed', $seed, '--events', $events, '--tombstones', 1, '--paced',
		'--truth', "$self->{dir}/$name", @target);
	return $self->_stream($name, $events, sub { exec(@command) or die "exec: $!"; });
}

sub tracker
{
	my ($self, $name, $seed, $events, $connstr, $rate) = @_;
	my $file = "$self->{dir}/$name.sql";
	evgen('--batch-sql', $file, '--batch', 20, @common, '--seed', $seed, '--events', $events, '--truth', "$self->{dir}/$name");
	return $self->_stream($name, $events, sub { _track($name, $seed, $file, $connstr, $rate); });
}

# Which batches have committed; asked until there is an answer.
sub _committed
{
	my ($name, $connstr) = @_;
	while (1)
	{
		my $out = '';
		return map { $_ => 1 } split(/\n/, $out)
		  if eval {
			IPC::Run::run([ 'psql', '-XAtq', '-d', $connstr, '-c', "SELECT no FROM public.ledger WHERE client = '$name'" ],
				'<', \undef, '>', \$out, '2>', '/dev/null');
		  };
		sleep(0.1);
	}
}

sub _track
{
	my ($name, $seed, $file, $connstr, $rate) = @_;
	my $dice = EvstreamTorture::Dice->new("$seed/$name");
	my @batches = slurp_file($file) =~ /^(SELECT .*?\]\$evgen\$::jsonb, 'dead_letter'\);\n)/msg;
	my @rolled_back = map { $dice->below(5) } @batches;
	my $allowed = 0;
	while (my $line = <STDIN>)
	{
		# in thousandths
		$allowed = int($line / 1000 * @batches + 0.5);
		while (1)
		{
			my %done = _committed($name, $connstr);
			my @todo = grep { !$done{$_} } 0 .. $allowed - 1;
			last if !@todo;
			my $script = '';
			foreach my $no (@todo)
			{
				my $way = $rolled_back[$no];
				$script .= "BEGIN; $batches[$no] ROLLBACK;\n" if $way == 0;
				$script .= 'BEGIN;';
				$script .= "SAVEPOINT s; $batches[$no] ROLLBACK TO s;\n" if $way == 1;
				$script .= "INSERT INTO public.ledger VALUES ('$name', $no); $batches[$no] COMMIT;\n";
				# pg_sleep() would wait for a clock that was set back
				$script .= sprintf("\\! sleep %.3f\n", 20 / $rate) if $rate;
			}
			my $said = '';
			eval {
				IPC::Run::run([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $connstr ],
					'<', \$script, '>', '/dev/null', '2>', \$said);
			};
			print STDERR $said, $@;
			sleep(0.05) if $said;
		}
		print "$allowed\n";
	}
	return;
}

# Each stream may go on up to this share of it.
sub allow
{
	my ($self, $share) = @_;
	foreach my $stream (@{ $self->{streams} })
	{
		my $thousandths = int($share * 1000);
		next if $thousandths <= $stream->{allowed};
		local $SIG{PIPE} = 'IGNORE';
		if (-e "$self->{dir}/$stream->{name}.sql")
		{
			print { $stream->{to} } "$thousandths\n";
		}
		else
		{
			# records are a bit more than events; 0 is the rest
			my $records = $thousandths == 1000 ? 0 : int(($thousandths - $stream->{allowed}) * $stream->{events} * 1.08 / 1000) || 1;
			print { $stream->{to} } "$records\n";
		}
		$stream->{allowed} = $thousandths;
	}
	return;
}

# All has been sent and committed.
sub finish
{
	my ($self, $timeout) = @_;
	my $end = time() + $timeout;
	$self->allow(1);
	# a later one holds the pipes of an earlier one open
	close(delete $_->{to}) foreach @{ $self->{streams} };
	foreach my $stream (@{ $self->{streams} })
	{
		while (waitpid($stream->{pid}, POSIX::WNOHANG()) == 0)
		{
			die "stream $stream->{name} did not end within $timeout seconds\n" if time() > $end;
			sleep(0.02);
		}
		delete $pids{ $stream->{pid} };
		die "stream $stream->{name} failed, see $self->{dir}/$stream->{name}.log\n" if $?;
	}
	return;
}

# Ends what still runs.
sub stop
{
	my ($self) = @_;
	foreach my $pid (grep { $pids{$_} } map { $_->{pid} } @{ $self->{streams} })
	{
		kill('KILL', $pid);
		waitpid($pid, 0);
		delete $pids{$pid};
	}
	return;
}

# ---- The truth ----

# So many events more of a type of their own, all of one user and time: produced or tracked
# by the caller with the values that this gives.
sub filler
{
	my ($self, $type, $count) = @_;
	$self->{fillers}{$type} += $count;
	return qq({"user_id":"filler","event_type":"$type","occurred_at":"2026-10-30T12:00:00Z"});
}

sub filled
{
	my ($self) = @_;
	my $sum = 0;
	$sum += $_ foreach values %{ $self->{fillers} };
	return $sum;
}

sub _rows
{
	my ($file) = @_;
	my @lines = split(/\n/, slurp_file($file));
	shift @lines;
	return map { [ split(/,/, $_, -1) ] } @lines;
}

sub _write
{
	my ($file, $head, @lines) = @_;
	open(my $out, '>', $file) or croak "$file: $!";
	print $out map { "$_\n" } $head, @lines;
	close($out);
	return;
}

# Of amounts with two digits behind the point, exactly.
sub _cents { my ($amount) = @_; return 0 if $amount eq ''; my $n = sprintf('%.0f', $amount * 100); return $n; }
sub _amount { my ($cents) = @_; return sprintf('%s%d.%02d', $cents < 0 ? '-' : '', abs($cents) / 100, abs($cents) % 100); }

# The truth of all streams together, in files as evgen writes them; gives their prefix.
sub truth
{
	my ($self) = @_;
	my (%counts, %items, %totals, %dead);
	my $filled_at = '2026-10-30T12:00:00.000000Z';

	foreach my $name (map { $_->{name} } @{ $self->{streams} })
	{
		foreach my $row (_rows("$self->{dir}/$name.counts.csv"))
		{
			my ($user, $day, $type, $count, $amount, $first, $last) = @$row;
			my $sum = $counts{"$user,$day,$type"} //= [ 0, 0, $first, $last ];
			$sum->[0] += $count;
			$sum->[1] += _cents($amount);
			$sum->[2] = $first if $first lt $sum->[2];
			$sum->[3] = $last if $last gt $sum->[3];
		}
		foreach my $row (_rows("$self->{dir}/$name.items.csv"))
		{
			my ($user, $item, $day, @numbers) = @$row;
			my $sum = $items{"$user,$item,$day"} //= [ 0, 0, 0, 0 ];
			$sum->[$_] += $numbers[$_] foreach 0 .. 3;
		}
		$dead{ $_->[0] } += $_->[1] foreach _rows("$self->{dir}/$name.dead.csv");
	}
	foreach my $type (keys %{ $self->{fillers} })
	{
		$counts{"filler,2026-10-30,$type"} = [ $self->{fillers}{$type}, 0, $filled_at, $filled_at ]
		  if $self->{fillers}{$type} > 0;
	}
	foreach my $key (keys %counts)
	{
		my (undef, $day, $type) = split(/,/, $key);
		my $sum = $totals{"$day,$type"} //= [ 0, 0, 0 ];
		$sum->[0] += $counts{$key}[0];
		$sum->[1]++;
		$sum->[2] += $counts{$key}[1];
	}

	my $prefix = "$self->{dir}/truth";
	_write("$prefix.counts.csv", 'user_id,day,event_type,event_count,amount_total,first_event_at,last_event_at',
		map { join(',', $_, $counts{$_}[0], _amount($counts{$_}[1]), $counts{$_}[2], $counts{$_}[3]) } sort keys %counts);
	_write("$prefix.items.csv", 'user_id,item_id,day,view_count,click_count,purchase_count,event_count',
		map { join(',', $_, @{ $items{$_} }) } sort keys %items);
	_write("$prefix.totals.csv", 'day,event_type,event_count,user_count,amount_total',
		map { join(',', $_, $totals{$_}[0], $totals{$_}[1], _amount($totals{$_}[2])) } sort keys %totals);
	_write("$prefix.dead.csv", 'reason,count', map { "$_,$dead{$_}" } grep { $dead{$_} > 0 } sort keys %dead);
	return $prefix;
}

1;
