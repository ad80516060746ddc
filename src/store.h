/*-------------------------------------------------------------------------
 *
 * store.h
 *	  Rows of evstream.events and evstream.dead_letters.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_STORE_H
#define EVSTREAM_STORE_H

#include "postgres.h"

#include "batch.h"

/* Writes the good, new records into the partitions of their received day. */
extern void store_events(const Batch *batch);

/* Writes the refused records; returns how many. */
extern int64 store_dead_letters(const Batch *batch);

#endif /* EVSTREAM_STORE_H */
