/*-------------------------------------------------------------------------
 *
 * dedupe.h
 *	  Ids within the dedup window, in segments.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_DEDUPE_H
#define EVSTREAM_DEDUPE_H

#include "postgres.h"

#include "utils/uuid.h"

/*
 * Today in UTC, and the day on which events are received now, in SQL.  Where the clock has gone
 * back it stays what it was, so that no day is counted that ends the dedup window
 * earlier for the ids of those before.
 */
#define DEDUPE_TODAY "(pg_catalog.clock_timestamp() AT TIME ZONE 'UTC')::date"
#define DEDUPE_RECEIVED_DAY                                                                        \
	"GREATEST(" DEDUPE_TODAY ","                                                                   \
	" (SELECT pg_catalog.max(d.day) FROM evstream.received_days d))"

/*
 * Adds ids (sorted, without repetition) and tells by is_new[] which of them
 * were not there, in any segment of the window.  In a transaction with SPI
 * connected; holds a lock on the present segment until its end.
 */
extern void dedupe_ids(const pg_uuid_t *ids, int nids, bool *is_new);

/*
 * Reads the filters that dedupe_ids() would else read at its first call: some tenths of
 * a second, for a window of 50 million ids.  A unit of work.
 */
extern void dedupe_load(void *unused);

/* Closes the present segment if it is full or of an earlier day; a unit of work. */
extern void dedupe_rotate(void *unused);

/*
 * Keeps the filter of a closed segment for which there is none, as after an update
 * from 1.0; says in *kept, a bool, whether there was one.  A unit of work.
 */
extern void dedupe_keep_filter(void *kept);

#endif /* EVSTREAM_DEDUPE_H */
