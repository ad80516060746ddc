/*-------------------------------------------------------------------------
 *
 * notifier.h
 *	  What the rooms of the notifier share: its state, chunks and calls.
 *
 * The notifier follows each partition of the stored events with a cursor, and
 * sends them in chunks: one call of a script in Redis moves the cursor and
 * writes the streams, or does neither.  What is in Redis counts; the tables
 * mirror it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_NOTIFIER_H
#define EVSTREAM_NOTIFIER_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "event.h"
#include "matcher.h"
#include "owner.h"
#include "redis.h"

/* "<microseconds since 1970> <event_id> <log_offset>" */
#define CURSOR_SIZE 96

/* Limits of one chunk; a single event may go beyond them. */
#define CHUNK_DELIVERIES 5000
#define CHUNK_BYTES      (4 * 1024 * 1024)
#define CHUNK_EVENTS     10000 /* below 65536, as two bytes name one to the script */
#define CHUNK_PARTS      32

/* An event up to which all were sent. */
typedef struct NotifierCursor
{
	bool any;
	TimestampTz received_at;
	pg_uuid_t event_id;
	int64 log_offset; /* -1: not known */
} NotifierCursor;

/* How far reading has got, which is the cursor and the batch that it is in. */
typedef struct NotifierPlace
{
	NotifierCursor cursor;
	bool placed; /* false: the batch is to be found by its time */
	int32 generation;
	int64 from_offset; /* first batch that was not read to its end */
	bool by_time;      /* events may be in no batch that is still known */
	/* the batch that was read in part, if inside, and the next offset in it */
	bool inside;
	int64 inside_from;
	int64 inside_next;
	TimestampTz passed_at; /* all received until then were passed; 0: not known */
} NotifierPlace;

typedef struct NotifierPartition
{
	int32 log_id;
	int32 partition;
	char *topic; /* NULL: the embedded or the retry log */
	NotifierPlace place;
	char sent[CURSOR_SIZE]; /* the cursor as it is in Redis; "": none */
	/* the mirror */
	bool has_mirror;
	NotifierCursor mirror;
	TimestampTz mirrored_at; /* passed_at as mirrored */
} NotifierPartition;

/* Both are numbers within the chunk, from 0. */
typedef struct NotifierDelivery
{
	int event;
	int subscriber;
} NotifierDelivery;

/* A partition that a chunk has events of, and where it is behind them. */
typedef struct NotifierPart
{
	NotifierPartition *part;
	NotifierPlace after;
	char cursor[CURSOR_SIZE]; /* that, as Redis has it */
} NotifierPart;

/* What one call of the script sends, in its context and arena. */
typedef struct NotifierChunk
{
	MemoryContext context;
	EventArena *arena;
	int nparts; /* 0: there is nothing to send */
	NotifierPart parts[CHUNK_PARTS];
	bool any_new;      /* partitions were found that are to be compared with Redis */
	bool full;         /* there is likely to be more */
	bool more;         /* likewise, or not all was looked at */
	XLogRecPtr logged; /* so far the log holds what was read */
	int64 nread;       /* events that it passes */
	int64 ndeliveries;
	Size bytes;
	int nevents; /* those that somebody gets */
	int events_size;
	EventText *events; /* as JSON */
	int64 deliveries_size;
	NotifierDelivery *deliveries; /* in the order of events */
	int nsubscribers;
	int subscribers_size;
	char **subscribers;
} NotifierChunk;

/* In the order of their weight: the first one that stands is shown. */
typedef enum NotifierProblem
{
	NP_CONFIG,
	NP_FOREIGN,
	NP_AWAY,
	NP_NOAUTH,
	NP_LOADING,
	NP_READONLY,
	NP_OOM,
	NP_MISCONF,
	NP_BUSY,
	NP_NOPERM,
	NP_STATE_KEY,
	NP_FAILED,
	NP_ASIDE,
	NP_PUBLISH,
	NP_BRIDGE,
	NP_DROPPED,
	NP_WENT_BACK,
	NP_EMPTIED,
	NP_COUNT
} NotifierProblem;

typedef struct Notifier
{
	MemoryContext context; /* as long as the process */
	MemoryContext scratch; /* of what is done between chunks */
	NotifierChunk chunks[2];
	NotifierChunk *ahead; /* read while the one before it was sent; NULL: none */
	Matcher *matcher;
	RedisClient *client;
	bool checked; /* owner and cursors were compared since the connection */

	NotifierPartition **parts;
	int nparts;
	int next_part;
	int alone; /* so many chunks are to be of one partition, as one could not be read */

	Owner owner; /* this database, as last read */
	int64 epoch; /* milliseconds; the highest that was given, or more */
	int64 mirrored_epoch;
	int64 mirrored; /* when, by clock_us() */
} Notifier;

extern Notifier notifier;

/* ---- notifier.c ---- */

/*
 * Begins or ends (message = NULL) a standing problem; said once in the log for
 * each state.
 */
extern void notifier_problem(NotifierProblem problem, const char *message);

/* Waits on the latch and serves notifications, for about so long or shorter. */
extern void notifier_wait(long ms);

/* ---- notifier_link.c ---- */

/*
 * Connects where there is no connection.  False: Redis cannot be used just now,
 * which health says.
 */
extern bool link_connect(void);
extern void link_close(void);

/*
 * Sends a command and waits for its answer, at most timeout_ms, serving
 * interrupts; outside of transactions.  On RSTATUS_OK *reply is the caller's to
 * free.  Any other result is told to health; where the connection cannot go on
 * it has been closed.
 */
extern RedisStatus link_call(int argc, const char **argv, const size_t *lens, long timeout_ms,
							 RedisReply **reply);

/* The same for a script of notifier_script.c; KEYS and ARGV as EVAL has them. */
extern RedisStatus link_script(const char *script, int nkeys, int argc, const char **argv,
							   const size_t *lens, long timeout_ms, RedisReply **reply);

/*
 * The same in two steps, between which Redis works: the call goes out, and then its
 * answer is waited for.  All that was given has to live until then.
 */
extern RedisStatus link_script_begin(const char *script, int nkeys, int argc, const char **argv,
									 const size_t *lens, long timeout_ms);
extern RedisStatus link_script_end(RedisReply **reply);

/* Computes what Redis calls the scripts; in a transaction, before the first of them. */
extern void link_name_scripts(void);

/* Sends the notifications that wait; false if the connection was lost. */
extern bool link_forward(void);

/* Does the connection still stand, as far as the socket knows? */
extern bool link_alive(void);

#define LINK_LOOKUP_MS  15000
#define LINK_CONNECT_MS 1000
#define LINK_COMMAND_MS 2000

/* ---- notifier_read.c ---- */

/* Finds the partitions; a unit of work. True in *arg: there are new ones. */
extern void read_partitions_unit(void *arg);

typedef struct ReadUnit
{
	NotifierChunk *chunk;
	const NotifierChunk *before; /* on its way to Redis, or NULL */
} ReadUnit;

/* The next chunk; a unit of work on a ReadUnit. */
extern void read_chunk_unit(void *arg);

/* ---- notifier_cursor.c ---- */

/* Compares owner and cursors with those in Redis; false: not now. */
extern bool cursor_check(void);

/* Notes that what Redis holds is not what we know: compare again. */
extern void cursor_doubt(void);

/* Writes the mirror where it has moved, about once a second. */
extern void cursor_mirror(void);

/* Text of a cursor as Redis has it; buf has CURSOR_SIZE bytes. */
extern void cursor_format(const NotifierCursor *cursor, char *buf);

/* ---- notifier_send.c ---- */

/* Sends a chunk; false: not now, and what came of it is to be asked for. */
extern bool send_chunk_begin(NotifierChunk *chunk);

/* Waits for the answer; true if the chunk was taken. */
extern bool send_chunk_end(NotifierChunk *chunk);

/* Are there keys that are not in the way of a stream any more? */
extern void send_look_at_asides(void);

/* Lets the streams of former subscribers expire; now and then. */
extern void send_expiry(void);

/* ---- notifier_script.c ---- */

extern const char *const notifier_script_send;
extern const char *const notifier_script_anchor;
extern const char *const notifier_script_expire;

/* Key or channel below the prefix, palloc'd. */
extern char *notifier_name(const char *kind, const char *rest);

#endif /* EVSTREAM_NOTIFIER_H */
