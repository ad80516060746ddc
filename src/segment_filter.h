/*-------------------------------------------------------------------------
 *
 * segment_filter.h
 *	  Which ids a segment may have: its filter, read from the segment's table,
 *	  or kept in evstream.id_filters when the segment was closed.
 *
 * All functions run in a transaction with SPI connected, and raise errors as
 * SQL does.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_SEGMENT_FILTER_H
#define EVSTREAM_SEGMENT_FILTER_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "utils/relcache.h"

#include "id_filter.h"

/* A segment is full with so many ids, on so many pages: 48 bytes a row and 4 for its pointer. */
#define SEGMENT_IDS   2000000
#define SEGMENT_PAGES 13000

/*
 * All ids in the table, committed or not, as a filter in the present memory
 * context with room for what it has, and for nids at least.  Locks nothing:
 * ids that are written meanwhile may be missing.
 */
extern IdFilter *segment_filter_read(Relation rel, int64 nids);

/* Adds the ids of pages that were changed since then, at the latest. */
extern void segment_filter_read_changed(IdFilter *filter, Relation rel, XLogRecPtr since);

/* The filter that is kept for the segment, in the present memory context, or NULL. */
extern IdFilter *segment_filter_kept(int32 segment_id, Relation rel);

/* Keeps a filter that has all ids of the segment, to which none will be added any more. */
extern void segment_filter_keep(int32 segment_id, Relation rel, const IdFilter *filter);

/* A closed segment whose filter is to be kept, and is not; 0: none. */
extern int32 segment_filter_missing(void);

/* Removes those of segments that are gone. */
extern void segment_filter_forget(void);

#endif /* EVSTREAM_SEGMENT_FILTER_H */
