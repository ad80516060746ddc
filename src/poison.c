/*-------------------------------------------------------------------------
 *
 * poison.c
 *	  Records that crash or hang the consumer: finding one, setting it aside.
 *
 * A crash of a worker restarts the whole server, shared memory is lost, and the
 * record that did it is read again.  So the worker keeps in a mapped file what
 * it has in hand; the page belongs to the kernel and outlives the process, at the
 * price of a few stores for a batch and nothing on disk.  A handler of SIGSEGV,
 * SIGBUS, SIGILL and SIGABRT notes there that it was the process's own crash, and
 * at which record; then the process dies of that very signal, core dump and all.
 * Nobody else's doing is noted: kill -9, the OOM killer, an immediate shutdown and
 * the crash of another process do not come through the handler, and it passes over
 * signals that another process has sent, those of a thread of librdkafka, and a
 * PANIC, by which the server itself gives up (WAL on a full disk).
 *
 * After the first crash the record at which it happened, where that is known, is a
 * suspect and gets a batch of its own; else as many records as the batch had are
 * stored one by one.  So a server restarts three times for a bad record, once with
 * others in its batch and twice alone.
 *
 * For hangs there is a tick.  Ticks, not time: they do not come while the
 * process is stopped or waits for a disk.  A batch that saw too many of them is
 * cancelled at the next interrupt check, or within the parser, which is ours and
 * has nothing to clean up, by a jump out of it; then it goes on as after a
 * crash, but without one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

#include "common/file_perm.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timeout.h"

#include "compat.h"
#include "poison.h"
#include "worker.h"

#define NOTE_MAGIC     0x65765031 /* changes with the layout */
#define NOTE_SUSPECTS  16
#define CONDEMN_AT     2 /* crashes or hangs alone */
/*
 * In about so many pieces a batch is stored again, while it is not known which record
 * it was: after a crash, each of which costs a restart of the server; and after a hang,
 * which may also be that of a machine too slow for the batch.
 */
#define CRASHED_PIECES 10000
#define HUNG_PIECES    16

/* How long a batch may take before it hangs, in ticks that the process lived through */
#ifdef EVSTREAM_DEBUG_POINTS
#define TICK_MS    100
#define HANG_TICKS 10
#else
#define TICK_MS    10000
#define HANG_TICKS 12
#endif

#define ALT_STACK_SIZE (32 * 1024)

/*
 * What tells a record from others, also after a crash.  In the local logs the
 * offset does not: it is given when the record is read, and may be another one
 * after a crash.
 */
typedef struct RecordMark
{
	int32 log_id;
	int32 partition;
	int64 offset; /* -1: local log */
	uint64 key_len;
	uint64 value_len;
	uint32 crc;
} RecordMark;

typedef struct Suspect
{
	RecordMark mark;
	int32 alone; /* crashes and hangs with nothing else in the batch */
} Suspect;

/* The file.  One process writes it, and its successor reads it. */
typedef struct CrashNote
{
	uint32 magic;
	Oid extension;

	/* in hand */
	volatile int32 nrecords; /* 0: no batch */
	RecordMark alone;        /* if nrecords is 1 */

	/* by the signal handler */
	volatile int32 signal; /* 0: did not crash by itself */
	volatile bool known;   /* at is set */
	RecordMark at;

	/* what earlier ends have taught */
	int32 nsuspects;
	Suspect suspects[NOTE_SUSPECTS];
	int32 slow; /* so many records are to be stored in pieces of this size */
	int32 piece;
	int32 crashed_size; /* of the last batch that crashed or hung */
	int32 searches;     /* in a row, without a record found */
} CrashNote;

static CrashNote private_note = {0};
static CrashNote *note = &private_note;
static char note_path[MAXPGPATH];
static bool panicked;
static emit_log_hook_type next_log_hook;
static const int crash_signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGABRT};
static struct sigaction old_actions[lengthof(crash_signals)];

/* The batch in hand, for the handlers */
static BatchRecord *volatile hand_records;
static volatile sig_atomic_t hand_no;
static volatile sig_atomic_t ticks;
static volatile sig_atomic_t hung;

static TimeoutId tick_timeout;
static sigjmp_buf parser_exit;
static EventArena *volatile parser_arena;
const BatchRecord *volatile poison_at;

/* ---- suspects ---- */

static bool
is_local(const BatchRecord *record)
{
	return record->part->topic == NULL;
}

static RecordMark
mark_of(const BatchRecord *record)
{
	RecordMark mark;

	memset(&mark, 0, sizeof(mark));
	mark.log_id = record->part->log_id;
	mark.partition = record->part->partition;
	mark.offset = is_local(record) ? -1 : record->offset;
	mark.key_len = record->key == NULL ? 0 : record->key_len;
	mark.value_len = record->value == NULL ? 0 : record->value_len;
	mark.crc = batch_record_crc(record);
	return mark;
}

static Suspect *
find_suspect(const BatchRecord *record)
{
	for (int i = 0; i < note->nsuspects; i++)
	{
		const RecordMark *mark = &note->suspects[i].mark;

		/* the checksum last: it costs */
		if (mark->log_id == record->part->log_id && mark->partition == record->part->partition &&
			mark->offset == (is_local(record) ? -1 : record->offset) &&
			mark->key_len == (record->key == NULL ? 0 : record->key_len) &&
			mark->value_len == (record->value == NULL ? 0 : record->value_len) &&
			mark->crc == batch_record_crc(record))
			return &note->suspects[i];
	}
	return NULL;
}

static void
drop_suspect(Suspect *suspect)
{
	int i = suspect - note->suspects;

	note->nsuspects--;
	memmove(suspect, suspect + 1, (note->nsuspects - i) * sizeof(Suspect));
}

/* Adds one, or counts once more; the oldest makes room. */
static Suspect *
add_suspect(const RecordMark *mark, bool alone)
{
	Suspect *suspect = NULL;

	for (int i = 0; i < note->nsuspects; i++)
	{
		if (memcmp(&note->suspects[i].mark, mark, sizeof(*mark)) == 0)
			suspect = &note->suspects[i];
	}
	if (suspect == NULL)
	{
		if (note->nsuspects == NOTE_SUSPECTS)
			drop_suspect(&note->suspects[0]);
		suspect = &note->suspects[note->nsuspects++];
		suspect->mark = *mark;
		suspect->alone = 0;
	}
	if (alone)
		suspect->alone++;
	return suspect;
}

/*
 * The records of several partitions may come in another order now: each search
 * that has found nothing makes the next one longer.
 */
static void
go_slowly(int nrecords, int pieces)
{
	note->slow = nrecords << Min(note->searches, 8);
	note->piece = Max(1, nrecords / pieces);
	note->searches++;
}

/* A batch of so many has crashed or hung, at a record that may be known. */
static void
learn(int nrecords, const RecordMark *at, int pieces)
{
	note->crashed_size = nrecords;
	if (nrecords == 1)
		note->searches = 0;
	if (at != NULL)
		(void) add_suspect(at, nrecords == 1);
	else if (nrecords > 1)
		go_slowly(nrecords, pieces);
}

int
poison_cut(const BatchRecord *records, int nrecords)
{
	int n = nrecords;

	if (note->nsuspects == 0 && note->slow == 0)
		return nrecords;
	if (note->slow > 0)
		n = Min(n, note->piece);
	for (int i = 0; i < n; i++)
	{
		if (find_suspect(&records[i]) != NULL)
			return Max(i, 1);
	}
	return n;
}

void
poison_enter(BatchRecord *records, int nrecords)
{
	ticks = 0;
	hung = false;
	hand_records = records;
	if (nrecords == 1)
	{
		Suspect *suspect = find_suspect(&records[0]);

		if (suspect != NULL && suspect->alone >= CONDEMN_AT && records[0].condemned == EVENT_OK)
		{
			records[0].condemned = EVENT_CRASHED;
			records[0].condemned_detail = "the worker crashed or hung twice at this record alone";
			ereport(WARNING,
					(errmsg("a record was set aside, as the worker crashed or hung twice at it "
							"alone"),
					 errdetail("It was at offset " INT64_FORMAT " of partition %d of %s.",
							   records[0].offset, records[0].part->partition,
							   records[0].part->topic ? records[0].part->topic
													  : records[0].part->log_name),
					 errhint("Look at evstream_dead_letters, and at the server log for the "
							 "crashes.")));
		}
		note->alone = mark_of(&records[0]);
	}
	/* the handler looks at nothing else before this */
	pg_compiler_barrier();
	note->nrecords = nrecords;
	hand_no++;
}

bool
poison_leave(bool stored)
{
	int nrecords = note->nrecords;
	Suspect *suspect;

	note->nrecords = 0;
	pg_compiler_barrier();
	if (hung)
	{
		hung = false;
		QueryCancelPending = false;
		if (!stored)
		{
			RecordMark at;

			if (poison_at != NULL)
				at = mark_of(poison_at);
			else if (nrecords == 1)
				at = note->alone;
			learn(nrecords, poison_at != NULL || nrecords == 1 ? &at : NULL, HUNG_PIECES);
			poison_at = NULL;
			ereport(WARNING,
					(errmsg("a batch of %d records was given up after %d s", nrecords,
							HANG_TICKS * TICK_MS / 1000),
					 errdetail("The record that may have caused it is looked for, and set aside if "
							   "it does so twice alone.")));
			return true;
		}
	}
	poison_at = NULL;
	if (!stored || (note->nsuspects == 0 && note->slow == 0))
		return false;

	note->slow = Max(0, note->slow - nrecords);
	suspect = nrecords == 1 ? find_suspect(&hand_records[0]) : NULL;
	if (suspect != NULL)
	{
		/* It was another one that did it, in the same batch. */
		if (suspect->alone == 0 && note->slow == 0)
			go_slowly(note->crashed_size, CRASHED_PIECES);
		drop_suspect(suspect);
	}
	return false;
}

/* ---- crashes ---- */

/*
 * Only the process's own crash is of interest: the kernel's judgement, or
 * abort() and the like, in the main thread and not in a child.
 */
static bool
is_own_crash(const siginfo_t *info)
{
	if (getpid() != MyProcPid)
		return false;
#ifdef SYS_gettid
	if (syscall(SYS_gettid) != MyProcPid)
		return false;
#endif
	return info->si_code > 0 || info->si_pid == MyProcPid;
}

/*
 * The action of before comes back and the signal is raised again, so that
 * nothing is hidden.  Only the page is written to: the rest of memory may be in
 * any state.
 */
static void
note_crash(int signo, siginfo_t *info, void *context)
{
	for (int i = 0; i < (int) lengthof(crash_signals); i++)
	{
		if (crash_signals[i] == signo)
			(void) sigaction(signo, &old_actions[i], NULL);
	}
	if (note->nrecords > 0 && !panicked && note->signal == 0 && is_own_crash(info))
	{
		const BatchRecord *record = poison_at;

		note->known = false;
		note->signal = signo;
		if (note->nrecords == 1)
		{
			note->at = note->alone;
			note->known = true;
		}
		else if (record != NULL)
		{
			/* may fault: then the process ends here, without the record */
			note->at = mark_of(record);
			pg_compiler_barrier();
			note->known = true;
		}
	}
	(void) raise(signo);
}

static void
look_for_panic(ErrorData *error)
{
	if (error->elevel >= PANIC)
		panicked = true;
	if (next_log_hook)
		next_log_hook(error);
}

static void
watch_crashes(void)
{
	static char alt_stack[ALT_STACK_SIZE];
	struct sigaction action;
	stack_t stack;

	memset(&action, 0, sizeof(action));
	action.sa_sigaction = note_crash;
	/* a stack of its own: the other one may be what has overflowed */
	action.sa_flags = SA_SIGINFO | SA_ONSTACK;
	(void) sigemptyset(&action.sa_mask);
	if (sigaltstack(NULL, &stack) == 0 && (stack.ss_flags & SS_DISABLE))
	{
		memset(&stack, 0, sizeof(stack));
		stack.ss_sp = alt_stack;
		stack.ss_size = sizeof(alt_stack);
		(void) sigaltstack(&stack, NULL);
	}
	for (int i = 0; i < (int) lengthof(crash_signals); i++)
		(void) sigaction(crash_signals[i], &action, &old_actions[i]);

	next_log_hook = emit_log_hook;
	emit_log_hook = look_for_panic;
}

/* ---- hangs ---- */

/* In the handler of SIGALRM */
static void
check_hang(void)
{
	static sig_atomic_t seen;

	if (note->nrecords == 0 || hand_no != seen)
	{
		seen = hand_no;
		ticks = 0;
		return;
	}
	if (++ticks < HANG_TICKS)
		return;
	hung = true;
	if (poison_at != NULL)
	{
		/* but not out of malloc() */
		if (!event_arena_busy(parser_arena))
			siglongjmp(parser_exit, 1);
		return;
	}
	InterruptPending = true;
	QueryCancelPending = true;
}

static void
start_ticks(void)
{
	compat_enable_timeout_every(tick_timeout, TICK_MS);
}

static void
tick(void)
{
	check_hang();
	compat_timeout_again(tick_timeout, TICK_MS);
}

void
poison_parse(Batch *batch)
{
	uint32 holdoff = InterruptHoldoffCount;
	uint32 cancel_holdoff = QueryCancelHoldoffCount;

	parser_arena = batch->arena;
	if (sigsetjmp(parser_exit, 0) == 0)
	{
		batch_parse(batch);
		return;
	}

	/* out of tick(), which the server called with its timeouts in order */
	InterruptHoldoffCount = holdoff;
	QueryCancelHoldoffCount = cancel_holdoff;
	(void) sigprocmask(SIG_SETMASK, &UnBlockSig, NULL);
	start_ticks();
	ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED), errmsg("parsing a record does not end")));
}

/* ---- begin and end ---- */

static void
end(int code, Datum arg)
{
	note->nrecords = 0;
	if (note != &private_note && note->nsuspects == 0 && note->slow == 0)
		(void) unlink(note_path);
}

/* The file of this consumer, or what is in private memory. */
static void
open_note(void)
{
	void *page;
	struct stat state;
	int fd;

	snprintf(note_path, sizeof(note_path), "%s/evstream_consumer_%u_%d", PG_STAT_TMP_DIR,
			 MyDatabaseId, worker_self.index);
	fd = open(note_path, O_RDWR | O_CREAT | PG_BINARY, pg_file_create_mode);
	if (fd < 0)
	{
		ereport(LOG,
				(errcode_for_file_access(), errmsg("could not open file \"%s\": %m", note_path),
				 errdetail("A record that crashes the server will not be recognised.")));
		return;
	}
	/* written, not only made longer: else a full disk would show as SIGBUS */
	if (fstat(fd, &state) != 0 ||
		(state.st_size != sizeof(CrashNote) &&
		 (ftruncate(fd, 0) != 0 ||
		  write(fd, &private_note, sizeof(CrashNote)) != sizeof(CrashNote))) ||
		(page = mmap(NULL, sizeof(CrashNote), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) ==
			MAP_FAILED)
	{
		ereport(LOG, (errcode_for_file_access(), errmsg("could not use file \"%s\": %m", note_path),
					  errdetail("A record that crashes the server will not be recognised.")));
		(void) close(fd);
		return;
	}
	(void) close(fd);
	note = page;
}

void
poison_begin(void)
{
	int nrecords;

	open_note();
	if (note->magic != NOTE_MAGIC || note->extension != worker_self.extension ||
		note->nsuspects < 0 || note->nsuspects > NOTE_SUSPECTS)
	{
		memset(note, 0, sizeof(*note));
		note->magic = NOTE_MAGIC;
		note->extension = worker_self.extension;
	}
	nrecords = note->nrecords;
	if (nrecords > 0 && note->signal != 0)
	{
		learn(nrecords, note->known ? &note->at : NULL, CRASHED_PIECES);
		ereport(LOG, (errmsg("the consumer before this one crashed by signal %d while it stored a "
							 "batch of %d records",
							 (int) note->signal, nrecords),
					  errdetail("The record that may have caused it is looked for, and set "
								"aside if it does so twice alone.")));
	}
	note->nrecords = 0;
	note->signal = 0;
	note->known = false;
	/* a crash is counted once, also if the machine goes down now */
	if (note != &private_note && nrecords > 0)
		(void) msync(note, sizeof(*note), MS_SYNC);

	before_shmem_exit(end, (Datum) 0);
	watch_crashes();
	tick_timeout = RegisterTimeout(USER_TIMEOUT, tick);
	start_ticks();
}

#ifdef EVSTREAM_DEBUG_POINTS

static bool
is_event(EventReason reason, const Event *event, const char *type)
{
	return reason == EVENT_OK && event->event_type.len == strlen(type) &&
		   memcmp(event->event_type.data, type, strlen(type)) == 0;
}

static bool
is_of_type(const BatchRecord *record, const char *type)
{
	return is_event(record->reason, &record->event, type);
}

/* By its signal also in a build with sanitizers, which would end the process in order */
static void __attribute__((no_sanitize("undefined", "address"))) crash(void)
{
	*(volatile int *) NULL = 0;
}

void
poison_debug_parsed(EventReason reason, const Event *event)
{
	if (is_event(reason, event, "crash while parsing"))
		crash();
	while (is_event(reason, event, "hang while parsing"))
		pg_compiler_barrier();
}

void
poison_debug_storing(const Batch *batch)
{
	for (int i = 0; i < batch->nrecords; i++)
	{
		const BatchRecord *record = &batch->records[i];

		if (record->pass_over || record->value == NULL)
			continue;
		if (is_of_type(record, "crash while storing"))
			crash();
		if (is_of_type(record, "no memory while storing") && access("evstream_go", F_OK) != 0)
			ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
		if (is_of_type(record, "abort while storing"))
			abort();
		if (is_of_type(record, "panic while storing") && access("evstream_go", F_OK) != 0)
			elog(PANIC, "panic of a test");
		while (is_of_type(record, "hang while storing"))
		{
			CHECK_FOR_INTERRUPTS();
			pg_usleep(1000);
		}
		/* held up by something outside, not by the record */
		if (is_of_type(record, "wait while storing"))
		{
			FILE *file = fopen("evstream_waits", "w");

			fprintf(file, "%d\n", MyProcPid);
			fclose(file);
		}
		while (is_of_type(record, "wait while storing") && access("evstream_go", F_OK) != 0)
		{
			CHECK_FOR_INTERRUPTS();
			ticks = 0;
			pg_usleep(1000);
		}
	}
}

#endif
