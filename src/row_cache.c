/*-------------------------------------------------------------------------
 *
 * row_cache.c
 *	  Where this process found rows by their keys.
 *
 * Each hash has four places in an array, in one line of the processor's cache.  A row
 * comes in at the third, and goes to the first when it is asked for: so those that
 * are seen again and again stay, however many others pass by that are seen but once.
 * The array lives as long as the process does, as nothing in it can be wrong in a way
 * that the caller does not see.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "row_cache.h"

#define WAYS    4
#define FRESH   2 /* the way by which a row comes in */
/* 64 bytes each, 8 MB */
#define BUCKETS ((uint64) 128 * 1024)

typedef struct CachedRow
{
	Oid relid;
	uint32 hash; /* the half that does not choose the bucket */
	ItemPointerData tid;
} CachedRow;

typedef CachedRow Bucket[WAYS];

static Bucket *cache = NULL;

static CachedRow *
bucket_of(Oid relid, uint64 hash)
{
	return cache[((hash >> 32) ^ relid) % BUCKETS];
}

static int
way_of(const CachedRow *bucket, Oid relid, uint64 hash)
{
	int way = 0;

	while (way < WAYS && (bucket[way].hash != (uint32) hash || bucket[way].relid != relid))
		way++;
	return way;
}

void
row_cache_prefetch(Oid relid, uint64 hash)
{
	if (cache != NULL)
		__builtin_prefetch(bucket_of(relid, hash), 1);
}

bool
row_cache_get(Oid relid, uint64 hash, ItemPointer tid)
{
	CachedRow *bucket;
	CachedRow row;
	int way;

	if (cache == NULL)
		return false;
	bucket = bucket_of(relid, hash);
	way = way_of(bucket, relid, hash);
	if (way == WAYS)
		return false;
	row = bucket[way];
	memmove(&bucket[1], &bucket[0], way * sizeof(CachedRow));
	bucket[0] = row;
	*tid = row.tid;
	return true;
}

void
row_cache_put(Oid relid, uint64 hash, const ItemPointerData *tid)
{
	CachedRow *bucket;
	int way;

	if (cache == NULL)
		cache = (Bucket *) CACHELINEALIGN(MemoryContextAllocZero(
			TopMemoryContext, BUCKETS * sizeof(Bucket) + PG_CACHE_LINE_SIZE));
	bucket = bucket_of(relid, hash);
	way = way_of(bucket, relid, hash);
	if (way == WAYS)
	{
		way = FRESH;
		memmove(&bucket[FRESH + 1], &bucket[FRESH], (WAYS - FRESH - 1) * sizeof(CachedRow));
		bucket[way].relid = relid;
		bucket[way].hash = (uint32) hash;
	}
	bucket[way].tid = *tid;
}
