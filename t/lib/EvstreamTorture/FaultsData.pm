
=pod

=head1 NAME

EvstreamTorture::FaultsData - locks, connections, memory and disks that are taken

=cut

package EvstreamTorture::FaultsData;

use strict;
use warnings;

use EvstreamTest;
use EvstreamTorture::Faults;
use EvstreamTorture::FaultsServer;
use IO::Select;
use IPC::Run ();
use Time::HiRes qw(sleep time);

# ---- Locks ----

fault table_locked => (
	of => ['locks'],
	code => sub {
		my ($run, $dice) = @_;
		my $table = $dice->pick(qw(daily_counts daily_items daily_totals events ids batch_log partitions dead_letters outbox_current received_days));
		return hold($run, "LOCK TABLE evstream.$table IN ACCESS EXCLUSIVE MODE", 0.7 + 2 * $dice->share);
	});

# Rows of the stats, in the opposite order to that of the workers.
fault deadlocks => (
	of => ['locks'],
	code => sub {
		my ($run, $dice) = @_;
		my $turns = $dice->between(5, 20);
		my $script = q{
			DO $$
			DECLARE r record;
			BEGIN
				FOR r IN SELECT * FROM evstream.daily_totals ORDER BY day DESC, event_type DESC, writer DESC LIMIT 40 LOOP
					UPDATE evstream.daily_totals SET event_count = event_count
						WHERE day = r.day AND event_type = r.event_type AND writer = r.writer;
					PERFORM pg_sleep(0.005);
				END LOOP;
				FOR r IN SELECT * FROM evstream.daily_counts ORDER BY user_id DESC, day DESC, event_type DESC LIMIT 100 LOOP
					UPDATE evstream.daily_counts SET event_count = event_count
						WHERE user_id = r.user_id AND day = r.day AND event_type = r.event_type;
				END LOOP;
			END $$;
			SELECT pg_sleep(0.05);
		} x $turns;
		return background($run, $script);
	});

fault tables_rewritten => (
	of => ['locks'],
	code => sub {
		my ($run, $dice) = @_;
		my @tables = $dice->shuffle(qw(daily_totals batch_log ids events daily_counts relay_log partitions outbox_0));
		my $script = join('', map { $dice->pick('VACUUM FULL', 'REINDEX TABLE', 'VACUUM FREEZE') . " evstream.$_;\n" } @tables);
		return background($run, $script);
	});

fault snapshot_held => (
	of => ['snapshot'],
	code => sub {
		my ($run, $dice) = @_;
		return hold($run, 'SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM evstream.daily_totals', $dice->between(2, 6));
	});

# Tracked in a transaction that is prepared, and decided at the end.
fault prepared => (
	of => ['prepared'],
	code => sub {
		my ($run, $dice) = @_;
		my $world = $run->{world};
		my $commit = $dice->chance(0.5);
		my $count = $dice->between(1, 50);
		my $name = 'torture' . ++$run->{prepared};
		my $event = $run->{load}->filler('prepared', $commit ? $count : 0);
		until ($world->sql("SELECT count(*) FROM pg_prepared_xacts WHERE gid = '$name'"))
		{
			$world->try_sql("BEGIN; SELECT evstream_track_batch((SELECT jsonb_agg('$event'::jsonb) FROM generate_series(1, $count))); PREPARE TRANSACTION '$name'");
		}
		push @{ $run->{at_end} }, sub {
			while ($world->sql("SELECT count(*) FROM pg_prepared_xacts WHERE gid = '$name'"))
			{
				$world->try_sql(($commit ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$name'");
			}
		};
		return;
	});

# ---- Connections ----

# One connection of the server's; false where there is none left.
sub _connect
{
	my ($run) = @_;
	my $socket = eval { $run->{world}{node}->raw_connect } or return;
	my $text = "user\0" . (getpwuid($<))[0] . "\0database\0postgres\0\0";
	$socket->autoflush(1);
	print $socket pack('NN', 8 + length($text), 196608) . $text;
	my ($select, $said) = (IO::Select->new($socket), '');
	while ($select->can_read(5))
	{
		sysread($socket, $said, 4096, length $said) or return;
		return if $said =~ /^E/;
		return $socket if $said =~ /Z\x00\x00\x00\x05I$/;
	}
	return;
}

fault connections_taken => (
	of => ['connections'],
	down => 1,
	code => sub {
		my ($run) = @_;
		my @taken;
		$run->{world}->sql('SELECT 1');
		my $end = time() + 5;
		# streams in hand go on; who comes anew has to wait
		while (time() < $end && @taken < 30)
		{
			my $socket = _connect($run) or last;
			push @taken, $socket;
		}
		$run->note(@taken . ' connections');
		return sub { close($_) foreach @taken; };
	});

# ---- Memory ----

sub _vm_kb
{
	my ($pid) = @_;
	open(my $status, '<', "/proc/$pid/status") or return;
	local $/ = undef;
	return <$status> =~ /^VmSize:\s*(\d+)/m ? $1 : undef;
}

# What a worker asks of the system beyond a bit is refused. librdkafka aborts then.
fault worker_out_of_memory => (
	of => ['memory'],
	code => sub {
		my ($run, $dice) = @_;
		my $role = $dice->pick(qw(consumer consumer notifier relay maintenance));
		my $pid = $dice->pick($run->{world}->workers($role)) or return;
		my $size = _vm_kb($pid) or return;
		my $limit = ($size + $dice->pick(0, 100, 1000, 4000)) * 1024;
		system('prlimit', '--pid', $pid, "--as=$limit:") == 0 or return;
		$run->{signals}{6} = 1;
		return sub { system("prlimit --pid $pid --as=unlimited: 2>/dev/null") if kill(0, $pid); };
	});

# A backend that fails in the middle of tracking, and goes on afterwards.
fault backend_out_of_memory => (
	of => ['memory'],
	code => sub {
		my ($run) = @_;
		my $event = $run->{load}->filler('memory', 0);
		my $script = qq{
			SELECT pg_backend_pid() AS pid \\gset
			\\setenv PID :pid
			SELECT evstream_track('filler', 'memory') FROM generate_series(1, 0);
			\\! prlimit --pid \$PID --as=\$(( (\$(sed -n 's/^VmSize:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/\$PID/status) + 20000) * 1024 )):
			SELECT evstream_track_batch((SELECT jsonb_agg('$event'::jsonb || jsonb_build_object('n', repeat('x', 200) || i))
				FROM generate_series(1, 150000) i));
			\\! prlimit --pid \$PID --as=unlimited:
			SELECT 'alive';
		};
		my ($out, $err) = ('', '');
		IPC::Run::run([ 'psql', '-XAtq', '-d', $run->{world}->connstr ], '<', \$script, '>', \$out, '2>', \$err);
		$run->note('out of memory') if $err =~ /out of memory/;
		return;
	});

# ---- Disks ----

# Fills the file system below a directory; gives the sub that frees it.
sub _fill
{
	my ($run, $part) = @_;
	my $file = "$ENV{EVSTREAM_TORTURE_DISK}/$part/ballast";
	open(my $out, '>', $file) or die "$file: $!\n";
	foreach my $size (1 << 20, 1 << 12)
	{
		my $block = "\0" x $size;
		1 while (syswrite($out, $block) // 0) == $size;
	}
	close($out);
	$run->{disk_filled} = 1;
	# what a PANIC ends with
	$run->{signals}{6} = 1;
	return sub { unlink($file); $run->{world}->up; };
}

fault data_full => (of => [qw(disk server)], disk => 1, down => 2, code => sub { return _fill($_[0], 'data'); });

fault wal_full => (
	of => [qw(disk server)],
	disk => 1,
	down => 2,
	code => sub {
		my ($run) = @_;
		my $end = _fill($run, 'wal');
		foreach (1 .. 6)
		{
			$run->{world}->try_sql('SELECT pg_switch_wal()', 5);
			$run->{world}->try_sql(q{INSERT INTO public.ledger SELECT 'wal', 1 WHERE false; CHECKPOINT}, 5) if $_ == 1;
		}
		return $end;
	});

1;
