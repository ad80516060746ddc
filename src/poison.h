/*-------------------------------------------------------------------------
 *
 * poison.h
 *	  Records that crash or hang the consumer: finding one, setting it aside.
 *
 * For the consumer's process only, but for the last of it.  What has to outlive a crash of the server
 * is in a small file below pg_stat_tmp, which is mapped into memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_POISON_H
#define EVSTREAM_POISON_H

#include "postgres.h"

#include "batch.h"

/*
 * To be called once, when worker_self is known: reads how the process before
 * this one ended, and watches this one.  Raises nothing; where the file cannot
 * be had it says so in the log, and what is known ends with the process.
 */
extern void poison_begin(void);

/*
 * How many of these records (at least one) the next transaction may hold: all of
 * them, unless one of them, not known which, or known but to be alone, crashed or
 * hung the worker.
 */
extern int poison_cut(const BatchRecord *records, int nrecords);

/*
 * Around each try to store a batch, outside of the transaction.  Enter condemns
 * a record that was alone in its batch at two crashes or hangs.  Leave is told
 * whether the batch has committed, and returns true if it did not because it hung.
 */
extern void poison_enter(BatchRecord *records, int nrecords);
extern bool poison_leave(bool stored);

/*
 * batch_parse(); an endless loop in the parser, which sees no interrupts,
 * becomes an error here.
 */
extern void poison_parse(Batch *batch);

/* The record that is being parsed, by what cannot harm if it is left at once; NULL: none is. */
extern const BatchRecord *volatile poison_at;

/*
 * For the tests: records of certain event types crash, hang or hold up the worker, or
 * whoever parses them.  Not compiled into what is installed otherwise.
 */
#ifdef EVSTREAM_DEBUG_POINTS
extern void poison_debug_parsed(EventReason reason, const Event *event);
extern void poison_debug_storing(const Batch *batch);
#else
#define poison_debug_parsed(reason, event) ((void) 0)
#define poison_debug_storing(batch)        ((void) 0)
#endif

#endif /* EVSTREAM_POISON_H */
