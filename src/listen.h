/*-------------------------------------------------------------------------
 *
 * listen.h
 *	  NOTIFY for a worker: listening, and the notifications that wait.
 *
 * The only user of the server's LISTEN machinery.  Whoever listens holds the
 * server's one queue for all databases until it has read it: so the worker
 * calls listen_process() at each turn, whatever else it cannot do just then,
 * and what it cannot pass on yet waits in its own memory, up to a limit.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_LISTEN_H
#define EVSTREAM_LISTEN_H

#include "postgres.h"

#include "nodes/pg_list.h"

/* So many bytes wait at most; beyond them the oldest notifications go. */
#define LISTEN_MAX_BYTES (64 * 1024 * 1024)

/*
 * Listens to these channels (a list of strings, as setting_list() gives it,
 * copied) and to no others, in a transaction of its own.  In a worker after
 * worker_begin(), outside of a transaction; again with another list.  Does not
 * raise: where the transaction fails, which is logged, listen_process() tries
 * it again.
 */
extern void listen_begin(List *channels);

/*
 * Takes over what the server has for us; cheap where that is nothing.  After
 * each wait (a notification sets the latch), outside of a transaction.  Also
 * listens anew where evstream.notify_channels has changed since listen_begin().
 * Takes one round at a time: while more comes in, the latch is set again, so
 * that the worker goes on serving its signals.  Does not raise.
 */
extern void listen_process(void);

/*
 * The oldest notification that waits, or false.  The strings are static memory
 * until listen_done(), before which the same one is given again; len is that
 * of the payload, which ends with a NUL, too.
 */
extern bool listen_take(const char **channel, const char **payload, size_t *len);

/* The one taken was sent, or given up.  Without one taken it does nothing. */
extern void listen_done(void);

/* How many were dropped since the start of the process, as too many waited. */
extern int64 listen_dropped(void);

/* Bytes that wait: channels, payloads and a few bytes for each. */
extern int64 listen_waiting_bytes(void);

#endif /* EVSTREAM_LISTEN_H */
