/*-------------------------------------------------------------------------
 *
 * outbox_int.h
 *	  What the rooms of the outbox share with each other only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_OUTBOX_INT_H
#define EVSTREAM_OUTBOX_INT_H

#include "postgres.h"

#include "outbox.h"

#define OUTBOX_TABLES 3

/*
 * Set while evstream_wait() looks with the active snapshot; otherwise each
 * query takes its own, as its rows have to be newer than the locks before it.
 */
extern bool outbox_use_active_snapshot;

/* sql_execute() that honours it. */
extern uint64 outbox_execute(const char *sql, int nargs, Oid *types, Datum *values, int expected);

/* Likewise sql_execute_kept(). */
extern uint64 outbox_execute_kept(const char *sql, int nargs, Oid *types, Datum *values,
								  int expected);

extern Datum outbox_xid_datum(uint64 xid);

/* Behind what the relay has delivered, and what was read without it. */
extern OutboxPosition outbox_sent_position(void);

/* The snapshot of a tick, or 0 where there is none; in the present context. */
extern Datum outbox_tick_snapshot(int64 tick);

/* Are the xids in the outbox those of this system and database? */
extern bool outbox_is_ours(void);

#endif /* EVSTREAM_OUTBOX_INT_H */
