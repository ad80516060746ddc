/*-------------------------------------------------------------------------
 *
 * id_filter.h
 *	  Which ids a set may hold: a Bloom filter of which a look seldom costs more
 *	  than one cache line.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_ID_FILTER_H
#define EVSTREAM_ID_FILTER_H

#include "postgres.h"

#include "common/hashfn.h"
#include "utils/uuid.h"

/* How ids are hashed, and what the bits mean: another number if any of that changes */
#define ID_FILTER_KIND 2

/* 1,024 bits, two cache lines, of which a look seldom needs the second */
#define ID_FILTER_WORDS 16

typedef struct IdFilterBlock
{
	uint64 words[ID_FILTER_WORDS];
} IdFilterBlock;

typedef struct IdFilter
{
	uint32 nblocks;
	IdFilterBlock *blocks;
} IdFilter;

/*
 * A filter for about nids ids in the present memory context, 3 bytes for each:
 * of ids that are not in it about one in 36,000 looks as if it was.
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

static inline IdFilterBlock *
id_filter_block(const IdFilter *filter, uint64 hash)
{
	return &filter->blocks[((hash >> 32) * filter->nblocks) >> 32];
}

/*
 * In each word of its block an id has one bit.  The upper half of the hash has chosen the
 * block; the lower one is spread over all bits, of which six are for each of eight words.
 */
static inline uint64
id_filter_bits(uint64 hash, int word)
{
	return (hash & PG_UINT32_MAX) *
		   (word < 8 ? UINT64CONST(0x9E3779B97F4A7C15) : UINT64CONST(0xD6E8FEB86659FD93));
}

static inline int
id_filter_bit(uint64 bits, int word)
{
	return (bits >> (8 + 7 * (word % 8))) & 63;
}

static inline void
id_filter_add(IdFilter *filter, uint64 hash)
{
	IdFilterBlock *block = id_filter_block(filter, hash);

	for (int i = 0; i < ID_FILTER_WORDS; i++)
		block->words[i] |= UINT64CONST(1) << id_filter_bit(id_filter_bits(hash, i), i);
}

static inline bool
id_filter_may_have(const IdFilter *filter, uint64 hash)
{
	const IdFilterBlock *block = id_filter_block(filter, hash);

	/* of those that are not in it, one in four comes by the first two */
	for (int first = 0; first < ID_FILTER_WORDS; first += 2)
	{
		uint64 all = 1;

		for (int i = first; i < first + 2; i++)
			all &= block->words[i] >> id_filter_bit(id_filter_bits(hash, i), i);
		if (likely(all == 0))
			return false;
	}
	return true;
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
