/*-------------------------------------------------------------------------
 *
 * id_filter.h
 *	  Which ids a set may hold: a Bloom filter of which a look costs one cache
 *	  line.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_ID_FILTER_H
#define EVSTREAM_ID_FILTER_H

#include "postgres.h"

#include "common/hashfn.h"
#include "utils/uuid.h"

/* How ids are hashed, and what the bits mean: another number if any of that changes */
#define ID_FILTER_KIND 1

/* 512 bits, a cache line */
typedef struct IdFilterBlock
{
	uint64 words[8];
} IdFilterBlock;

typedef struct IdFilter
{
	uint32 nblocks;
	IdFilterBlock *blocks;
} IdFilter;

/*
 * A filter for about nids ids in the present memory context, 3 bytes for each:
 * of ids that are not in it about one in 12,000 looks as if it was.
 */
extern IdFilter *id_filter_create(int64 nids);

/* From now on it looks as if all ids were in it. */
extern void id_filter_fill(IdFilter *filter);

/* One whose blocks have so many bytes, at least those of a block; and how many they are. */
extern IdFilter *id_filter_create_sized(size_t size);
extern size_t id_filter_size(const IdFilter *filter);

/* One hash of an id serves all filters. */
static inline uint64
id_filter_hash(const pg_uuid_t *id)
{
	return hash_bytes_extended(id->data, UUID_LEN, 0);
}

/* One bit in each of the eight words of its block, by 6 bits of the hash each. */
static inline IdFilterBlock *
id_filter_block(const IdFilter *filter, uint64 hash)
{
	return &filter->blocks[((hash >> 32) * filter->nblocks) >> 32];
}

static inline uint64
id_filter_bits(uint64 hash)
{
	/* the upper half has chosen the block: spread the lower one over all bits */
	return (hash & PG_UINT32_MAX) * UINT64CONST(0x9E3779B97F4A7C15);
}

static inline void
id_filter_add(IdFilter *filter, uint64 hash)
{
	IdFilterBlock *block = id_filter_block(filter, hash);
	uint64 bits = id_filter_bits(hash);

	for (int i = 0; i < 8; i++)
		block->words[i] |= UINT64CONST(1) << ((bits >> (8 + 7 * i)) & 63);
}

static inline bool
id_filter_may_have(const IdFilter *filter, uint64 hash)
{
	const IdFilterBlock *block = id_filter_block(filter, hash);
	uint64 bits = id_filter_bits(hash);
	uint64 all = 1;

	for (int i = 0; i < 4; i++)
		all &= block->words[i] >> ((bits >> (8 + 7 * i)) & 63);
	/* of those that are not in it, about one in 135 comes by */
	if (likely(all == 0))
		return false;
	for (int i = 4; i < 8; i++)
		all &= block->words[i] >> ((bits >> (8 + 7 * i)) & 63);
	return all != 0;
}

/* Fetches the block ahead of the look. */
static inline void
id_filter_prefetch(const IdFilter *filter, uint64 hash)
{
#if defined(__GNUC__)
	__builtin_prefetch(id_filter_block(filter, hash));
#endif
}

#endif /* EVSTREAM_ID_FILTER_H */
