/*-------------------------------------------------------------------------
 *
 * id_filter.c
 *	  A Bloom filter of which a look seldom costs more than one cache line.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "id_filter.h"

/* With 48, an eighth less memory, three times as many ids would be looked up for nothing. */
#define BLOCK_IDS 42

IdFilter *
id_filter_create_sized(size_t size)
{
	IdFilter *filter = palloc(sizeof(IdFilter));
	char *memory;

	filter->nblocks = (uint32) (size / sizeof(IdFilterBlock));
	memory = MemoryContextAllocExtended(CurrentMemoryContext,
										(filter->nblocks + (size_t) 1) * sizeof(IdFilterBlock),
										MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	filter->blocks = (IdFilterBlock *) TYPEALIGN(sizeof(IdFilterBlock), memory);
	return filter;
}

IdFilter *
id_filter_create(int64 nids)
{
	return id_filter_create_sized(Max(1, nids / BLOCK_IDS) * sizeof(IdFilterBlock));
}

size_t
id_filter_size(const IdFilter *filter)
{
	return filter->nblocks * sizeof(IdFilterBlock);
}

void
id_filter_fill(IdFilter *filter)
{
	memset(filter->blocks, 0xFF, filter->nblocks * sizeof(IdFilterBlock));
}
