/*-------------------------------------------------------------------------
 *
 * matcher_int.h
 *	  What the parts of the matcher share.
 *
 * Each scalar within `properties` makes, together with the path that leads to
 * it, a pair, known by its hash.  A version of a filter lies in the cells of
 * its (type, user, tier, pair), as far as it asks for each; a cell is sorted by
 * min_amount.  An event looks into those cells that may concern it, and checks
 * what is left of each condition.  With many filters each step to another place
 * in memory costs more than all that is computed there, so a cell has all that
 * an event needs side by side.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_MATCHER_INT_H
#define EVSTREAM_MATCHER_INT_H

#include "postgres.h"

#include "matcher.h"

/* What a filter asks by a list of words. */
typedef enum Dimension
{
	DIM_TYPE,
	DIM_USER,
	DIM_TIER,
	DIM_COUNT
} Dimension;

#define DIM_MASKS (1 << DIM_COUNT)

/* A filter as it is read from the table. */
typedef struct FilterRow
{
	int64 version_id;
	uint64 made_xid;
	uint64 ended_xid; /* 0: it holds */
	EventText subscriber;
	EventText *values[DIM_COUNT];
	int nvalues[DIM_COUNT]; /* 0: any */
	Numeric min_amount;     /* or NULL */
	Jsonb *properties;      /* or NULL */
} FilterRow;

typedef struct Version
{
	int64 version_id; /* 0: the place is free */
	uint64 made_xid;
	uint64 ended_xid;
	Numeric min_amount;
	struct Content *content;
	uint32 *words; /* of all dimensions, one after the other, each ascending */
	uint64 pair;   /* 0: none */
	uint32 nwords[DIM_COUNT];
	uint32 subscriber : 29;
	uint32 unkeyed : DIM_COUNT; /* dimensions (bits) whose lists are not in the key */
} Version;

/* `properties` of filters; those that ask for the same share one. */
typedef struct Content
{
	uint32 event; /* the last that was compared */
	bool contained;
	Jsonb properties; /* of any length */
} Content;

/*
 * What an event needs to see of a version in a cell.  It should not have to go
 * any further: each version that it does look at is likely out of the cache.
 */
#define ENTRY_UNKEYED    0x80000000U /* the version has lists to check */
#define ENTRY_THRESHOLD  0x40000000U /* has min_amount */
#define ENTRY_EXACT      0x20000000U /* no other number of few digits has that double */
#define ENTRY_SUBSCRIBER 0x1FFFFFFFU

typedef struct Entry
{
	uint32 version;
	uint32 subscriber; /* with the flags */
	double threshold;  /* the nearest to min_amount */
	Content *content;  /* or NULL */
} Entry;

#define CELL_ANY PG_UINT32_MAX

/* Behind it its texts, one after the other, and its entries. */
typedef struct Cell
{
	struct Cell *next; /* another one that happens to have the same hash */
	uint32 nentries;
	uint32 nsorted; /* the first of them are in order */
	uint32 size;    /* entries that there is room for */
	uint32 text_bytes;
	uint32 event;           /* the last that looked here */
	uint32 lens[DIM_COUNT]; /* of the texts, or CELL_ANY */
} Cell;

typedef struct CellHash
{
	uint64 hash; /* of the texts and the pair */
	Cell *first;
	char status;
} CellHash;

/* What a cell is made for, and looked for by. */
typedef struct CellKey
{
	EventText texts[DIM_COUNT]; /* data is NULL: any */
	uint64 pair;
	uint64 hash;
} CellKey;

/*
 * Of the two largest hash tables the elements are small: they have numbers in
 * place of keys, and this one stands for the key that is looked for.
 */
#define LOOKED_FOR 0x7FFFFFFFU

typedef struct Word
{
	uint32 hash;
	uint32 id : 31; /* from 0 on */
	uint32 status : 1;
} Word;

/* Texts that are there once, and have numbers. */
typedef struct Words
{
	struct words_hash *hash;
	EventText *texts; /* by their numbers, with a NUL behind them */
	uint32 size;
	EventText looked_for;
} Words;

typedef struct Pair
{
	uint64 hash;
	uint32 uses; /* versions that ask for it */
	uint8 masks; /* bit m: there may be cells with the dimensions m */
	char status;
} Pair;

typedef struct VersionId
{
	uint32 hash; /* of the version's id */
	uint32 index : 31;
	uint32 status : 1;
} VersionId;

#define VERSIONS_PER_CHUNK 1024

/*
 * Memory that goes with the next rebuild, for things of one kind side by side, in
 * pieces of up to ARENA_LARGE; what is larger is allocated by itself.
 */
#define ARENA_CHUNK (64 * 1024)
#define ARENA_LARGE (ARENA_CHUNK / 8)

typedef struct Arena
{
	char *next;
	Size left;
} Arena;

struct Matcher
{
	MemoryContext context;
	MemoryContext data;    /* all that a rebuild makes anew */
	MemoryContext scratch; /* of one event, or one row */

	/* in data */
	Arena texts;
	Arena conditions;
	Arena cell_space;
	void *free_cells[ARENA_LARGE / MAXIMUM_ALIGNOF + 1]; /* by their size; each leads to the next */
	Words words[DIM_COUNT];
	Words subscribers;
	Words contents; /* their bytes, which lie in a Content */
	struct pairs_hash *pairs;
	struct cells_hash *cells;
	struct ids_hash *ids;
	int64 looked_for_id;
	Version **chunks;
	uint32 nchunks;
	uint32 nversions; /* places in use, also those that are free again */
	uint8 masks;      /* like Pair's, for cells without a pair */
	uint8 pair_masks; /* those of all pairs together */
	bool has_thresholds;
	int64 nheld;
	int64 nended;
	int64 nremoved; /* since all was built */
	uint64 max_made;

	/* the snapshot of matcher_use_snapshot() */
	bool use_snapshot;
	uint64 xmin;
	uint64 xmax;
	uint64 *xip; /* ascending */
	int nxip;
	bool all_visible; /* every version that is held */

	/* the event in hand */
	const MatchEvent *event;
	EventText event_texts[DIM_COUNT];
	uint64 event_hashes[DIM_COUNT];
	double event_amount; /* the nearest */
	bool event_exact;
	uint32 event_no;
	int *found;
	int nfound;
	int found_size;

	/* how far the table was read */
	bool loaded;
	Oid relid;
	uint64 changes;
	uint64 read_xmin;
	uint64 own_xid; /* of versions that our own transaction made or ended */
	int64 purge_at;
	Size built_bytes; /* of data, when all was built */
};

/* Makes the structures in matcher->data, which is empty. */
extern void matcher_index_init(Matcher *matcher);

extern void matcher_index_add(Matcher *matcher, const FilterRow *row);
extern Version *matcher_index_find(Matcher *matcher, int64 version_id);
extern void matcher_index_remove(Matcher *matcher, Version *version);

static inline Version *
matcher_version(const Matcher *matcher, uint32 index)
{
	return &matcher->chunks[index / VERSIONS_PER_CHUNK][index % VERSIONS_PER_CHUNK];
}

/* ---- matcher_look.c ---- */

/*
 * Looks into all cells that concern matcher->event, in matcher->scratch, and
 * leaves the subscribers in matcher->found, in no order and perhaps repeated.
 */
extern void matcher_index_look(Matcher *matcher);

/* Whether the snapshot in use sees a version. */
extern bool matcher_visible(const Matcher *matcher, const Version *version);

#endif /* EVSTREAM_MATCHER_INT_H */
