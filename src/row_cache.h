/*-------------------------------------------------------------------------
 *
 * row_cache.h
 *	  Where this process found rows by their keys: a cache, of which each answer
 *	  is to be looked at before it is believed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_ROW_CACHE_H
#define EVSTREAM_ROW_CACHE_H

#include "postgres.h"

#include "storage/itemptr.h"

/*
 * The place that was kept for a hash of a key in a table, or false.  There may be
 * another row by now, or none, or not even the page.
 */
extern bool row_cache_get(Oid relid, uint64 hash, ItemPointer tid);

/* Has the processor fetch what the next call for this hash will look at. */
extern void row_cache_prefetch(Oid relid, uint64 hash);

/* Keeps a place; where there is no room, one is forgotten that was not asked for lately. */
extern void row_cache_put(Oid relid, uint64 hash, const ItemPointerData *tid);

#endif /* EVSTREAM_ROW_CACHE_H */
