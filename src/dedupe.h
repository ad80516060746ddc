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
 * Adds ids (sorted, without repetition) and tells by is_new[] which of them
 * were not there, in any segment of the window.  In a transaction with SPI
 * connected; holds a lock on the present segment until its end.
 */
extern void dedupe_ids(const pg_uuid_t *ids, int nids, bool *is_new);

/* Closes the present segment if it is full or of an earlier day; a unit of work. */
extern void dedupe_rotate(void *unused);

#endif /* EVSTREAM_DEDUPE_H */
