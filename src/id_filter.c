/*-------------------------------------------------------------------------
 *
 * id_filter.c
 *	  A Bloom filter of which a look costs one cache line.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "id_filter.h"

#define BLOCK_IDS 32

IdFilter *
id_filter_create(int64 nids)
{
	IdFilter *filter = palloc(sizeof(IdFilter));
	char *memory;

	filter->nblocks = (uint32) Max(1, nids / BLOCK_IDS);
	memory = MemoryContextAllocExtended(CurrentMemoryContext,
										(filter->nblocks + 1) * sizeof(IdFilterBlock),
										MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	filter->blocks = (IdFilterBlock *) TYPEALIGN(sizeof(IdFilterBlock), memory);
	return filter;
}

void
id_filter_fill(IdFilter *filter)
{
	memset(filter->blocks, 0xFF, filter->nblocks * sizeof(IdFilterBlock));
}
