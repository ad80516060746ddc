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

static IdFilter *
create(uint32 nblocks)
{
	IdFilter *filter = palloc(sizeof(IdFilter));
	char *memory;

	filter->nblocks = nblocks;
	memory = MemoryContextAllocExtended(CurrentMemoryContext,
										(filter->nblocks + 1) * sizeof(IdFilterBlock),
										MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	filter->blocks = (IdFilterBlock *) TYPEALIGN(sizeof(IdFilterBlock), memory);
	return filter;
}

IdFilter *
id_filter_create(int64 nids)
{
	return create((uint32) Max(1, nids / BLOCK_IDS));
}

size_t
id_filter_size(const IdFilter *filter)
{
	return filter->nblocks * sizeof(IdFilterBlock);
}

IdFilter *
id_filter_from_bytes(const char *bytes, size_t size)
{
	IdFilter *filter = create((uint32) (size / sizeof(IdFilterBlock)));

	memcpy(filter->blocks, bytes, id_filter_size(filter));
	return filter;
}

void
id_filter_fill(IdFilter *filter)
{
	memset(filter->blocks, 0xFF, filter->nblocks * sizeof(IdFilterBlock));
}
