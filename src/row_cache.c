/*-------------------------------------------------------------------------
 *
 * row_cache.c
 *	  Where this process found rows by their keys.
 *
 * Each hash has one place in an array; the later one takes it.  The array lives
 * as long as the process does, as nothing in it can be wrong in a way that the
 * caller does not see.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "row_cache.h"

/* 16 bytes each, 8 MB */
#define CACHE_ROWS ((uint64) 512 * 1024)

typedef struct CachedRow
{
	Oid relid;
	uint32 hash; /* the half that does not choose the place */
	ItemPointerData tid;
} CachedRow;

static CachedRow *cache = NULL;

static CachedRow *
place_of(Oid relid, uint64 hash)
{
	return &cache[((hash >> 32) ^ relid) % CACHE_ROWS];
}

bool
row_cache_get(Oid relid, uint64 hash, ItemPointer tid)
{
	const CachedRow *row;

	if (cache == NULL)
		return false;
	row = place_of(relid, hash);
	if (row->relid != relid || row->hash != (uint32) hash)
		return false;
	*tid = row->tid;
	return true;
}

void
row_cache_put(Oid relid, uint64 hash, const ItemPointerData *tid)
{
	CachedRow *row;

	if (cache == NULL)
		cache = MemoryContextAllocZero(TopMemoryContext, CACHE_ROWS * sizeof(CachedRow));
	row = place_of(relid, hash);
	row->relid = relid;
	row->hash = (uint32) hash;
	row->tid = *tid;
}
