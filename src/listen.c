/*-------------------------------------------------------------------------
 *
 * listen.c
 *	  NOTIFY for a worker: listening, and the notifications that wait.
 *
 * The server refuses LISTEN in a background worker only because nobody would
 * read what it sends to the client.  Here that is read: while the server
 * processes its queue, the client's place is taken by a table of functions of
 * our own, which keep the messages.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/async.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/ps_status.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "listen.h"
#include "settings.h"
#include "worker.h"

/* The last include: see there. */
#define COMPAT_WANT_COMM_METHODS
#include "compat.h"

#define BLOCK_BYTES (256 * 1024)
#define RETRY_MS    1000

/*
 * The queue is a list of blocks with entries one behind the other: what it
 * takes is what it counts, whatever the size of the notifications.
 */
typedef struct Block
{
	struct Block *next;
	size_t used; /* bytes written, from the start of data */
	size_t read; /* bytes read or dropped */
	char data[FLEXIBLE_ARRAY_MEMBER];
} Block;

/* An entry: this, the channel, a NUL, the payload, a NUL; not aligned. */
typedef struct EntryHead
{
	uint32 channel_len;
	uint32 payload_len;
} EntryHead;

/* A notification is shorter than a page of the server's queue. */
#define ENTRY_MAX (sizeof(EntryHead) + BLCKSZ)

static Block *oldest = NULL;
static Block *newest = NULL;
static int64 waiting_bytes = 0;
static int64 dropped = 0;
static bool dropping = false; /* since the queue was last empty */

static char taken[ENTRY_MAX];
static size_t taken_size = 0; /* 0: none */

static MemoryContext names_context = NULL;
static List *wanted = NIL;
static List *listening = NIL;
static char *wanted_setting = NULL; /* evstream.notify_channels, as of then */
static bool in_arrears = false;     /* wanted is not what we listen to */
static int64 next_try = 0;

/* ---- the queue in memory ---- */

static size_t
entry_size(const EntryHead *head)
{
	return sizeof(EntryHead) + head->channel_len + 1 + head->payload_len + 1;
}

/* The oldest entry goes out of the queue, into dst or nowhere; gives its size. */
static size_t
queue_shift(char *dst)
{
	Block *block = oldest;
	EntryHead head;
	size_t size;

	memcpy(&head, block->data + block->read, sizeof(head));
	size = entry_size(&head);
	if (dst != NULL)
		memcpy(dst, block->data + block->read, size);
	block->read += size;
	waiting_bytes -= size;

	if (block->read == block->used)
	{
		if (block->next == NULL)
			block->read = block->used = 0; /* the only one stays */
		else
		{
			oldest = block->next;
			pfree(block);
		}
	}
	return size;
}

static bool
queue_empty(void)
{
	return oldest == NULL || oldest->read == oldest->used;
}

/*
 * Never raises: it runs within the server's reading of its queue.  Where there
 * is no memory, the new one is dropped.
 */
static void
queue_push(const char *channel, size_t channel_len, const char *payload, size_t payload_len)
{
	EntryHead head = {.channel_len = channel_len, .payload_len = payload_len};
	size_t size = entry_size(&head);
	char *pos;

	if (size > ENTRY_MAX)
	{
		dropped++;
		return;
	}
	while (waiting_bytes + (int64) taken_size + (int64) size > LISTEN_MAX_BYTES && !queue_empty())
	{
		queue_shift(NULL);
		dropped++;
	}
	if (newest == NULL || newest->used + size > BLOCK_BYTES)
	{
		Block *block = MemoryContextAllocExtended(
			TopMemoryContext, offsetof(Block, data) + BLOCK_BYTES, MCXT_ALLOC_NO_OOM);

		if (block == NULL)
		{
			dropped++;
			return;
		}
		block->next = NULL;
		block->used = block->read = 0;
		if (newest == NULL)
			oldest = block;
		else
			newest->next = block;
		newest = block;
	}
	pos = newest->data + newest->used;
	memcpy(pos, &head, sizeof(head));
	pos += sizeof(head);
	memcpy(pos, channel, channel_len + 1);
	memcpy(pos + channel_len + 1, payload, payload_len + 1);
	newest->used += size;
	waiting_bytes += size;
}

bool
listen_take(const char **channel, const char **payload, size_t *len)
{
	EntryHead head;

	if (taken_size == 0)
	{
		if (queue_empty())
			return false;
		taken_size = queue_shift(taken);
	}
	memcpy(&head, taken, sizeof(head));
	*channel = taken + sizeof(head);
	*payload = *channel + head.channel_len + 1;
	*len = head.payload_len;
	return true;
}

void
listen_done(void)
{
	taken_size = 0;
	if (dropping && queue_empty())
	{
		dropping = false;
		ereport(LOG, (errmsg("no notifications wait any more; " INT64_FORMAT
							 " were dropped since the worker's start",
							 dropped)));
	}
}

int64
listen_dropped(void)
{
	return dropped;
}

int64
listen_waiting_bytes(void)
{
	return waiting_bytes + taken_size;
}

/* ---- in the client's place ---- */

static bool more_came;

static void
comm_reset(void)
{
}

/*
 * The server calls it behind each round, and then goes on as long as it is
 * signalled, which may be for ever: the next round is left to the next turn.
 */
static int
comm_flush(void)
{
	if (notifyInterruptPending)
	{
		more_came = true;
		notifyInterruptPending = false;
	}
	return 0;
}

static int
comm_flush_if_writable(void)
{
	return 0;
}

static bool
comm_is_send_pending(void)
{
	return false;
}

/* A NotificationResponse: process id, channel, payload.  All others are logged anyway. */
static int
comm_putmessage(char msgtype, const char *s, size_t len)
{
	const char *end = s + len;
	const char *channel = s + sizeof(int32);
	const char *channel_end;
	const char *payload;
	const char *payload_end;

	if (msgtype != 'A' || len <= sizeof(int32))
		return 0;
	channel_end = memchr(channel, '\0', end - channel);
	if (channel_end == NULL)
		return 0;
	payload = channel_end + 1;
	payload_end = memchr(payload, '\0', end - payload);
	if (payload_end == NULL)
		return 0;
	queue_push(channel, channel_end - channel, payload, payload_end - payload);
	return 0;
}

static void
comm_putmessage_noblock(char msgtype, const char *s, size_t len)
{
	(void) comm_putmessage(msgtype, s, len);
}

static const PQcommMethods comm_methods = {
	.comm_reset = comm_reset,
	.flush = comm_flush,
	.flush_if_writable = comm_flush_if_writable,
	.is_send_pending = comm_is_send_pending,
	.putmessage = comm_putmessage,
	.putmessage_noblock = comm_putmessage_noblock,
};

/* One round: all that is in the server's queue now. */
static void
read_server_queue(void)
{
	MemoryContext caller = CurrentMemoryContext;
	const PQcommMethods *client = PqCommMethods;
	CommandDest dest = whereToSendOutput;
	int64 dropped_before = dropped;

	more_came = false;
	PG_TRY();
	{
		PqCommMethods = &comm_methods;
		whereToSendOutput = DestRemote;
		ProcessNotifyInterrupt(true);
		set_ps_display(""); /* it says "idle", as of a session */
		PqCommMethods = client;
		whereToSendOutput = dest;
	}
	PG_CATCH();
	{
		ErrorData *error;

		PqCommMethods = client;
		whereToSendOutput = dest;
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(worker_self.scratch);
		error = CopyErrorData();
		EmitErrorReport();
		AbortOutOfAnyTransaction();
		FlushErrorState();
		status_error(error->message ? error->message : "unknown error");
		FreeErrorData(error);
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);

	if (more_came)
	{
		notifyInterruptPending = true;
		SetLatch(MyLatch);
	}
	if (dropped > dropped_before && !dropping)
	{
		dropping = true;
		ereport(WARNING,
				(errmsg("more than %d MB of notifications wait for Redis: the oldest are dropped",
						LISTEN_MAX_BYTES / (1024 * 1024)),
				 errhint("Redis is away or too slow for what is sent to the channels of "
						 "evstream.notify_channels.")));
	}
}

/* ---- which channels ---- */

static bool
contains(const List *names, const char *name)
{
	const ListCell *cell;

	foreach (cell, names)
	{
		if (strcmp(lfirst(cell), name) == 0)
			return true;
	}
	return false;
}

static List *
copy_names(const List *names)
{
	List *copy = NIL;
	const ListCell *cell;

	foreach (cell, names)
	{
		if (!contains(copy, lfirst(cell)))
			copy = lappend(copy, pstrdup(lfirst(cell)));
	}
	return copy;
}

static void
listen_unit(void *arg)
{
	const ListCell *cell;

	/* The server converts what it sends to a client; bytes are what we want. */
	SetConfigOption("client_encoding", GetDatabaseEncodingName(), PGC_SUSET, PGC_S_OVERRIDE);

	foreach (cell, listening)
	{
		if (!contains(wanted, lfirst(cell)))
			Async_Unlisten(lfirst(cell));
	}
	foreach (cell, wanted)
	{
		if (!contains(listening, lfirst(cell)))
			Async_Listen(lfirst(cell));
	}
}

static void
listen_anew(void)
{
	MemoryContext caller;

	in_arrears = false;
	if (wanted == NIL && listening == NIL)
		return;
	if (!worker_run("listening to the channels of evstream.notify_channels", listen_unit, NULL,
					NULL))
	{
		in_arrears = true;
		next_try = clock_us() + RETRY_MS * INT64CONST(1000);
		return;
	}
	list_free_deep(listening);
	caller = MemoryContextSwitchTo(names_context);
	listening = copy_names(wanted);
	MemoryContextSwitchTo(caller);
}

void
listen_begin(List *channels)
{
	MemoryContext caller;

	if (names_context == NULL)
		names_context =
			AllocSetContextCreate(TopMemoryContext, "evstream channels", ALLOCSET_SMALL_SIZES);
	caller = MemoryContextSwitchTo(names_context);
	if (wanted_setting != NULL)
		pfree(wanted_setting);
	wanted_setting = pstrdup(setting_notify_channels);
	list_free_deep(wanted);
	wanted = copy_names(channels);
	MemoryContextSwitchTo(caller);

	listen_anew();
}

void
listen_process(void)
{
	Assert(!IsTransactionState());
	if (wanted_setting == NULL)
		return;
	if (strcmp(wanted_setting, setting_notify_channels) != 0)
	{
		List *channels = setting_list(setting_notify_channels);

		listen_begin(channels);
		list_free_deep(channels);
	}
	else if (in_arrears && clock_us() >= next_try)
		listen_anew();

	if (notifyInterruptPending)
		read_server_queue();
}
