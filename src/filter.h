/*-------------------------------------------------------------------------
 *
 * filter.h
 *	  Changes of evstream.filters: their lock, and who is told of them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_FILTER_H
#define EVSTREAM_FILTER_H

#include "postgres.h"

/* evstream.filters; raises where the extension is not there. */
extern Oid filter_table(void);

/*
 * Whether every transaction that has changed filters, and that other snapshots
 * see, has told of it: then the callbacks of the relation cache have been called
 * for it when this returns true.  False: there may be one that has not yet.
 */
extern bool filter_changes_told(Oid table);

/* Grows with every change of filters by this session, also one that is rolled back. */
extern uint64 filter_own_changes(void);

#endif /* EVSTREAM_FILTER_H */
