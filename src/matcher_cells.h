/*-------------------------------------------------------------------------
 *
 * matcher_cells.h
 *	  The matcher's hash tables, and the cells in them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_MATCHER_CELLS_H
#define EVSTREAM_MATCHER_CELLS_H

#include "postgres.h"

#include "common/hashfn.h"

#include "matcher_int.h"

/* ---- hash tables ---- */

static inline bool
texts_equal(EventText a, EventText b)
{
	return a.len == b.len && memcmp(a.data, b.data, a.len) == 0;
}

/* 64 bits to 32, each of which depends on all (the finalizer of MurmurHash3). */
static inline uint32
fold(uint64 hash)
{
	hash ^= hash >> 33;
	hash *= UINT64CONST(0xff51afd7ed558ccd);
	hash ^= hash >> 33;
	hash *= UINT64CONST(0xc4ceb9fe1a85ec53);
	return (uint32) (hash ^ (hash >> 32));
}

static inline uint32
hash_looked_for(const Words *words)
{
	return hash_bytes((const unsigned char *) words->looked_for.data, (int) words->looked_for.len);
}

#define SH_PREFIX            words
#define SH_ELEMENT_TYPE      Word
#define SH_KEY_TYPE          uint32
#define SH_KEY               id
#define SH_HASH_KEY(tb, key) hash_looked_for((const Words *) (tb)->private_data)
#define SH_EQUAL(tb, a, b)                                                                         \
	texts_equal(((const Words *) (tb)->private_data)->texts[a],                                    \
				((const Words *) (tb)->private_data)->looked_for)
#define SH_STORE_HASH
#define SH_GET_HASH(tb, a) (a)->hash
#define SH_SCOPE           static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

#define SH_PREFIX            pairs
#define SH_ELEMENT_TYPE      Pair
#define SH_KEY_TYPE          uint64
#define SH_KEY               hash
#define SH_HASH_KEY(tb, key) fold(key)
#define SH_EQUAL(tb, a, b)   ((a) == (b))
#define SH_SCOPE             static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

#define SH_PREFIX            cells
#define SH_ELEMENT_TYPE      CellHash
#define SH_KEY_TYPE          uint64
#define SH_KEY               hash
#define SH_HASH_KEY(tb, key) fold(key)
#define SH_EQUAL(tb, a, b)   ((a) == (b))
#define SH_SCOPE             static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

#define SH_PREFIX            ids
#define SH_ELEMENT_TYPE      VersionId
#define SH_KEY_TYPE          uint32
#define SH_KEY               index
#define SH_HASH_KEY(tb, key) fold((uint64) ((const Matcher *) (tb)->private_data)->looked_for_id)
#define SH_EQUAL(tb, a, b)                                                                         \
	(matcher_version((const Matcher *) (tb)->private_data, a)->version_id ==                       \
	 ((const Matcher *) (tb)->private_data)->looked_for_id)
#define SH_STORE_HASH
#define SH_GET_HASH(tb, a) (a)->hash
#define SH_SCOPE           static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* The word of that text, or NULL. */
static inline Word *
find_word(Words *words, EventText text)
{
	words->looked_for = text;
	return words_lookup(words->hash, LOOKED_FOR);
}

static inline VersionId *
find_version_id(Matcher *matcher, int64 version_id)
{
	matcher->looked_for_id = version_id;
	return ids_lookup(matcher->ids, LOOKED_FOR);
}

/* ---- cells ---- */

static inline char *
cell_texts(Cell *cell)
{
	return (char *) cell + MAXALIGN(sizeof(Cell));
}

static inline Entry *
cell_entries(Cell *cell)
{
	return (Entry *) (cell_texts(cell) + cell->text_bytes);
}

static inline uint64
hash_text(EventText text)
{
	return hash_bytes_extended((const unsigned char *) text.data, (int) text.len, 0);
}

/* The hash of a cell's key, given those of its texts; bits of mask: the texts that count. */
static inline uint64
hash_key(const uint64 *hashes, int mask, uint64 pair)
{
	uint64 hash = hash_combine64(pair, mask);

	for (int d = 0; d < DIM_COUNT; d++)
	{
		if (mask & (1 << d))
			hash = hash_combine64(hash, hashes[d]);
	}
	return hash;
}

static inline bool
cell_is(Cell *cell, const CellKey *key)
{
	const char *text = cell_texts(cell);

	for (int d = 0; d < DIM_COUNT; d++)
	{
		uint32 len = key->texts[d].data ? (uint32) key->texts[d].len : CELL_ANY;

		if (cell->lens[d] != len)
			return false;
		if (len == CELL_ANY)
			continue;
		if (memcmp(text, key->texts[d].data, len) != 0)
			return false;
		text += len;
	}
	return true;
}

#ifdef __GNUC__
#define prefetch(address) __builtin_prefetch(address)
#else
#define prefetch(address) ((void) 0)
#endif

/* Where the pointer to the cell of that key is, or would be. */
static inline Cell **
find_cell(CellHash *entry, const CellKey *key)
{
	Cell **cell = &entry->first;

	/* the entries, which come next */
	for (int offset = 64; offset <= 256 && *cell != NULL; offset += 64)
		prefetch((char *) *cell + offset);
	while (*cell != NULL && !cell_is(*cell, key))
		cell = &(*cell)->next;
	return cell;
}

/* ---- matcher_index.c ---- */

/* Brings what was added behind the ordered part into its place. */
extern void matcher_sort_cell(Matcher *matcher, Cell *cell);

/*
 * Rounding keeps the order: of two that differ afterwards, the greater one was so
 * before.  *exact: of the numbers of at most DBL_DIG digits no other one is
 * rounded to the same.
 */
extern double matcher_nearest_double(Numeric number, bool *exact);

/* For sorting numbers of words, and looking for one. */
extern int matcher_compare_words(const void *a, const void *b);

#endif /* EVSTREAM_MATCHER_CELLS_H */
