/*-------------------------------------------------------------------------
 *
 * matcher_index.c
 *	  The matcher's index: versions of filters in cells, and the look into them.
 *
 * A version with several values in its lists lies in one cell for each of their
 * combinations.  Where these are many, the lists of tiers and then of types are
 * left out of the key and checked late: of what an event has, the user tells
 * most, and one list always stays.  Of several pairs that one is in the key that
 * the fewest filters ask for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <float.h>

#include "common/hashfn.h"
#include "fmgr.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

#include "compat.h"
#include "json_hash.h"
#include "matcher_cells.h"

/* Cells that one version may lie in, unless a single list has more values. */
#define COMBINATIONS 64

static void
words_init(Matcher *matcher, Words *words)
{
	words->hash = words_create(matcher->data, 64, words);
	words->size = 64;
	words->texts = MemoryContextAlloc(matcher->data, words->size * sizeof(EventText));
}

void
matcher_index_init(Matcher *matcher)
{
	MemoryContext data = matcher->data;

	memset(&matcher->texts, 0, sizeof(Arena));
	memset(&matcher->conditions, 0, sizeof(Arena));
	memset(&matcher->cell_space, 0, sizeof(Arena));
	memset(matcher->free_cells, 0, sizeof(matcher->free_cells));
	for (int d = 0; d < DIM_COUNT; d++)
		words_init(matcher, &matcher->words[d]);
	words_init(matcher, &matcher->subscribers);
	words_init(matcher, &matcher->contents);
	matcher->pairs = pairs_create(data, 64, NULL);
	matcher->cells = cells_create(data, 64, NULL);
	matcher->ids = ids_create(data, 64, matcher);
	matcher->chunks = NULL;
	matcher->nchunks = 0;
	matcher->nversions = 0;
	matcher->masks = 0;
	matcher->pair_masks = 0;
	matcher->has_thresholds = false;
	matcher->nheld = 0;
	matcher->nended = 0;
	matcher->nremoved = 0;
	matcher->max_made = 0;
}

static void *
arena_alloc(Matcher *matcher, Arena *arena, Size size)
{
	void *result;

	size = MAXALIGN(size);
	if (size > ARENA_LARGE)
		return MemoryContextAllocHuge(matcher->data, size);
	if (size > arena->left)
	{
		arena->left = 0;
		arena->next = MemoryContextAlloc(matcher->data, ARENA_CHUNK);
		arena->left = ARENA_CHUNK;
	}
	result = arena->next;
	arena->next += size;
	arena->left -= size;
	return result;
}

/* The number of a text; *fresh: it had none before, and its place is to be filled. */
static uint32
number_text(Words *words, EventText text, bool *fresh)
{
	bool found;
	Word *word;
	uint32 id;

	if (words->hash->members == LOOKED_FOR)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("too many filters")));
	words->looked_for = text;
	word = words_insert(words->hash, LOOKED_FOR, &found);
	*fresh = !found;
	if (found)
		return word->id;

	id = words->hash->members - 1;
	if (id == words->size)
	{
		words->size *= 2;
		words->texts = repalloc_huge(words->texts, (Size) words->size * sizeof(EventText));
	}
	word->id = id;
	return id;
}

/* The same, with a copy of the text in its place. */
static uint32
intern(Matcher *matcher, Words *words, EventText text)
{
	bool fresh;
	uint32 id = number_text(words, text, &fresh);

	if (fresh)
	{
		char *copy = arena_alloc(matcher, &matcher->texts, text.len + 1);

		memcpy(copy, text.data, text.len);
		copy[text.len] = '\0';
		words->texts[id] = (EventText){copy, text.len};
	}
	return id;
}

/* The Content of that object. */
static Content *
intern_content(Matcher *matcher, const Jsonb *properties)
{
	EventText bytes = {(const char *) properties, VARSIZE(properties)};
	bool fresh;
	uint32 id = number_text(&matcher->contents, bytes, &fresh);

	if (fresh)
	{
		Content *content =
			arena_alloc(matcher, &matcher->conditions, offsetof(Content, properties) + bytes.len);

		content->event = 0;
		content->contained = false;
		memcpy(&content->properties, properties, bytes.len);
		matcher->contents.texts[id] = (EventText){(const char *) &content->properties, bytes.len};
	}
	return (Content *) (matcher->contents.texts[id].data - offsetof(Content, properties));
}

/* ---- cells ---- */

static Size
cell_bytes(uint32 text_bytes, uint32 size)
{
	return MAXALIGN(MAXALIGN(sizeof(Cell)) + text_bytes + (Size) size * sizeof(Entry));
}

/* Cells grow by doubling: most of those that are new go where others were. */
static Cell *
alloc_cell(Matcher *matcher, Size bytes)
{
	void **list = &matcher->free_cells[bytes / MAXIMUM_ALIGNOF];
	void *cell;

	if (bytes > ARENA_LARGE || *list == NULL)
		return arena_alloc(matcher, &matcher->cell_space, bytes);
	cell = *list;
	*list = *(void **) cell;
	return cell;
}

static void
free_cell(Matcher *matcher, Cell *cell)
{
	Size bytes = cell_bytes(cell->text_bytes, cell->size);
	void **list;

	if (bytes > ARENA_LARGE)
	{
		pfree(cell);
		return;
	}
	list = &matcher->free_cells[bytes / MAXIMUM_ALIGNOF];
	*(void **) cell = *list;
	*list = cell;
}

static Cell *
grow_cell(Matcher *matcher, Cell *old)
{
	Cell *cell = alloc_cell(matcher, cell_bytes(old->text_bytes, old->size * 2));

	memcpy(cell, old, cell_bytes(old->text_bytes, old->size));
	cell->size *= 2;
	free_cell(matcher, old);
	return cell;
}

static Cell *
make_cell(Matcher *matcher, const CellKey *key)
{
	Size text_bytes = 0;
	Cell *cell;
	char *text;

	for (int d = 0; d < DIM_COUNT; d++)
		text_bytes += key->texts[d].data ? key->texts[d].len : 0;
	text_bytes = MAXALIGN(text_bytes);
	cell = alloc_cell(matcher, cell_bytes((uint32) text_bytes, 1));
	cell->next = NULL;
	cell->nentries = 0;
	cell->nsorted = 0;
	cell->size = 1;
	cell->text_bytes = (uint32) text_bytes;
	cell->event = 0;
	text = cell_texts(cell);
	for (int d = 0; d < DIM_COUNT; d++)
	{
		cell->lens[d] = CELL_ANY;
		if (key->texts[d].data == NULL)
			continue;
		cell->lens[d] = (uint32) key->texts[d].len;
		memcpy(text, key->texts[d].data, key->texts[d].len);
		text += key->texts[d].len;
	}
	return cell;
}

double
matcher_nearest_double(Numeric number, bool *exact)
{
	char *text = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(number)));
	double result = strtod(text, NULL);
	int digits = 0;

	for (const char *p = text; *p != '\0'; p++)
		digits += *p >= '0' && *p <= '9';
	*exact = digits <= DBL_DIG;
	pfree(text);
	return result;
}

static int
compare_thresholds(const Version *a, const Version *b)
{
	if (a->min_amount == NULL || b->min_amount == NULL)
		return (a->min_amount != NULL) - (b->min_amount != NULL);
	return DatumGetInt32(DirectFunctionCall2(numeric_cmp, NumericGetDatum(a->min_amount),
											 NumericGetDatum(b->min_amount)));
}

static int
compare_entries(const void *a, const void *b, void *arg)
{
	const Entry *x = a;
	const Entry *y = b;
	bool has_x = (x->subscriber & ENTRY_THRESHOLD) != 0;
	bool has_y = (y->subscriber & ENTRY_THRESHOLD) != 0;

	if (!has_x || !has_y)
		return has_x - has_y;
	if (x->threshold != y->threshold)
		return x->threshold < y->threshold ? -1 : 1;
	return compare_thresholds(matcher_version(arg, x->version), matcher_version(arg, y->version));
}

void
matcher_sort_cell(Matcher *matcher, Cell *cell)
{
	Entry *entries = cell_entries(cell);

	if (cell->nentries - cell->nsorted > cell->nsorted / 64)
		qsort_arg(entries, cell->nentries, sizeof(Entry), compare_entries, matcher);
	else
	{
		for (uint32 i = cell->nsorted; i < cell->nentries; i++)
		{
			Entry entry = entries[i];
			uint32 low = 0;
			uint32 high = i;

			while (low < high)
			{
				uint32 middle = low + (high - low) / 2;

				if (compare_entries(&entries[middle], &entry, matcher) <= 0)
					low = middle + 1;
				else
					high = middle;
			}
			memmove(&entries[low + 1], &entries[low], (i - low) * sizeof(Entry));
			entries[low] = entry;
		}
	}
	cell->nsorted = cell->nentries;
}

static void
cell_add(Matcher *matcher, const CellKey *key, Entry entry)
{
	bool found;
	CellHash *place = cells_insert(matcher->cells, key->hash, &found);
	Cell **cell;

	if (!found)
		place->first = NULL;
	cell = find_cell(place, key);
	if (*cell == NULL)
		*cell = make_cell(matcher, key);
	else if ((*cell)->nentries == (*cell)->size)
		*cell = grow_cell(matcher, *cell);
	cell_entries(*cell)[(*cell)->nentries++] = entry;
	if ((*cell)->nentries == 1)
		(*cell)->nsorted = 1;
}

static void
cell_remove(Matcher *matcher, const CellKey *key, Entry entry)
{
	CellHash *place = cells_lookup(matcher->cells, key->hash);
	Cell **link = place ? find_cell(place, key) : NULL;
	Cell *cell = link ? *link : NULL;
	Entry *entries = cell ? cell_entries(cell) : NULL;
	uint32 i = 0;

	while (cell != NULL && i < cell->nentries && entries[i].version != entry.version)
		i++;
	if (cell == NULL || i == cell->nentries)
		elog(ERROR, "filter is not in its cell");
	cell->nentries--;
	memmove(&entries[i], &entries[i + 1], (cell->nentries - i) * sizeof(Entry));
	if (i < cell->nsorted)
		cell->nsorted--;
	if (cell->nentries == 0)
	{
		*link = cell->next;
		free_cell(matcher, cell);
		if (place->first == NULL)
			cells_delete_item(matcher->cells, place);
	}
}

/* ---- versions ---- */

typedef void (*CellAction)(Matcher *matcher, const CellKey *key, Entry entry);

static inline uint32
dimension_count(const Version *version, Dimension dim)
{
	return (version->unkeyed & (1 << dim)) ? 0 : version->nwords[dim];
}

/* Does something with each cell that the version belongs to. */
static void
for_cells(Matcher *matcher, uint32 index, CellAction action)
{
	const Version *version = matcher_version(matcher, index);
	const uint32 *words[DIM_COUNT];
	uint32 counts[DIM_COUNT];
	uint32 i[DIM_COUNT];
	uint64 hashes[DIM_COUNT];
	int mask = 0;
	Entry entry;
	CellKey key;
	bool exact;

	entry.version = index;
	entry.subscriber = version->subscriber;
	entry.content = version->content;
	entry.threshold = 0;
	if (version->unkeyed != 0)
		entry.subscriber |= ENTRY_UNKEYED;
	if (version->min_amount != NULL)
	{
		entry.subscriber |= ENTRY_THRESHOLD;
		entry.threshold = matcher_nearest_double(version->min_amount, &exact);
		if (exact)
			entry.subscriber |= ENTRY_EXACT;
	}

	for (int d = 0, n = 0; d < DIM_COUNT; n += version->nwords[d], d++)
	{
		words[d] = version->words + n;
		counts[d] = dimension_count(version, d);
	}
	key.pair = version->pair;
	for (int d = 0; d < DIM_COUNT; d++)
	{
		if (counts[d] > 0)
			mask |= 1 << d;
	}
	for (i[0] = 0; i[0] < Max(counts[0], 1); i[0]++)
	{
		for (i[1] = 0; i[1] < Max(counts[1], 1); i[1]++)
		{
			for (i[2] = 0; i[2] < Max(counts[2], 1); i[2]++)
			{
				for (int d = 0; d < DIM_COUNT; d++)
				{
					key.texts[d] = (EventText){NULL, 0};
					if (counts[d] == 0)
						continue;
					key.texts[d] = matcher->words[d].texts[words[d][i[d]]];
					hashes[d] = hash_text(key.texts[d]);
				}
				key.hash = hash_key(hashes, mask, key.pair);
				action(matcher, &key, entry);
			}
		}
	}
}

/* Leaves lists out of the key as long as there are too many combinations. */
static uint8
choose_unkeyed(const Version *version)
{
	static const Dimension order[] = {DIM_TIER, DIM_TYPE};
	uint8 unkeyed = 0;

	for (int i = 0; i < lengthof(order); i++)
	{
		uint64 combinations = 1;
		int lists = 0;

		for (int d = 0; d < DIM_COUNT; d++)
		{
			if ((unkeyed & (1 << d)) || version->nwords[d] < 2)
				continue;
			combinations *= version->nwords[d];
			lists++;
		}
		if (combinations <= COMBINATIONS || lists < 2)
			break;
		if (version->nwords[order[i]] > 1)
			unkeyed |= 1 << order[i];
	}
	return unkeyed;
}

typedef struct PairChoice
{
	Matcher *matcher;
	uint64 best;
	uint32 best_uses;
} PairChoice;

static void
use_pair(uint64 hash, void *arg)
{
	PairChoice *choice = arg;
	bool found;
	Pair *pair = pairs_insert(choice->matcher->pairs, hash, &found);

	if (!found)
	{
		pair->uses = 0;
		pair->masks = 0;
	}
	/* of equals the last: it lies deepest, as a rule */
	if (pair->uses <= choice->best_uses)
	{
		choice->best = hash;
		choice->best_uses = pair->uses;
	}
	pair->uses++;
}

static void
unuse_pair(uint64 hash, void *arg)
{
	Pair *pair = pairs_lookup(((Matcher *) arg)->pairs, hash);

	if (pair != NULL && pair->uses > 0)
		pair->uses--;
}

int
matcher_compare_words(const void *a, const void *b)
{
	uint32 x = *(const uint32 *) a;
	uint32 y = *(const uint32 *) b;

	return (x > y) - (x < y);
}

/* A place for a version, at the end. */
static Version *
new_version(Matcher *matcher)
{
	uint32 index = matcher->nversions;

	if (index / VERSIONS_PER_CHUNK == matcher->nchunks)
	{
		Size size = (matcher->nchunks + 1) * sizeof(Version *);

		matcher->chunks = matcher->chunks ? repalloc(matcher->chunks, size)
										  : MemoryContextAlloc(matcher->data, size);
		matcher->chunks[matcher->nchunks] =
			MemoryContextAllocZero(matcher->data, VERSIONS_PER_CHUNK * sizeof(Version));
		matcher->nchunks++;
	}
	matcher->nversions++;
	return matcher_version(matcher, index);
}

void
matcher_index_add(Matcher *matcher, const FilterRow *row)
{
	bool found;
	uint32 subscriber;
	uint32 index = matcher->nversions;
	Version *version = new_version(matcher);
	uint32 nwords = 0;
	Pair *pair = NULL;
	uint8 mask = 0;

	version->version_id = row->version_id;
	version->made_xid = row->made_xid;
	version->ended_xid = row->ended_xid;
	subscriber = intern(matcher, &matcher->subscribers, row->subscriber);
	if (subscriber > ENTRY_SUBSCRIBER)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("too many subscribers")));
	version->subscriber = subscriber;
	if (row->min_amount != NULL)
	{
		Size size = VARSIZE_ANY(row->min_amount);

		matcher->has_thresholds = true;
		version->min_amount = arena_alloc(matcher, &matcher->conditions, size);
		memcpy(version->min_amount, row->min_amount, size);
	}
	if (row->properties != NULL)
		version->content = intern_content(matcher, row->properties);

	for (int d = 0; d < DIM_COUNT; d++)
		nwords += row->nvalues[d];
	version->words = arena_alloc(matcher, &matcher->conditions, nwords * sizeof(uint32));
	nwords = 0;
	for (int d = 0; d < DIM_COUNT; d++)
	{
		uint32 *words = version->words + nwords;

		for (int i = 0; i < row->nvalues[d]; i++)
			words[i] = intern(matcher, &matcher->words[d], row->values[d][i]);
		qsort(words, row->nvalues[d], sizeof(uint32), matcher_compare_words);
		version->nwords[d] = row->nvalues[d];
		nwords += row->nvalues[d];
	}
	version->unkeyed = choose_unkeyed(version);

	if (version->content != NULL)
	{
		PairChoice choice = {.matcher = matcher, .best_uses = PG_UINT32_MAX};

		json_pairs(&version->content->properties, use_pair, &choice);
		if (choice.best_uses != PG_UINT32_MAX)
		{
			pair = pairs_lookup(matcher->pairs, choice.best);
			version->pair = pair->hash;
		}
	}

	for (int d = 0; d < DIM_COUNT; d++)
	{
		if (dimension_count(version, d) > 0)
			mask |= 1 << d;
	}
	if (pair != NULL)
	{
		pair->masks |= 1 << mask;
		matcher->pair_masks |= 1 << mask;
	}
	else
		matcher->masks |= 1 << mask;

	for_cells(matcher, index, cell_add);
	matcher->looked_for_id = row->version_id;
	ids_insert(matcher->ids, LOOKED_FOR, &found)->index = index;
	matcher->nheld++;
	if (version->ended_xid != 0)
		matcher->nended++;
	matcher->max_made = Max(matcher->max_made, version->made_xid);
}

Version *
matcher_index_find(Matcher *matcher, int64 version_id)
{
	VersionId *entry = find_version_id(matcher, version_id);

	return entry ? matcher_version(matcher, entry->index) : NULL;
}

void
matcher_index_remove(Matcher *matcher, Version *version)
{
	VersionId *entry = find_version_id(matcher, version->version_id);

	for_cells(matcher, entry->index, cell_remove);
	if (version->content != NULL)
		json_pairs(&version->content->properties, unuse_pair, matcher);
	ids_delete_item(matcher->ids, entry);
	if (version->ended_xid != 0)
		matcher->nended--;
	version->version_id = 0;
	matcher->nheld--;
	matcher->nremoved++;
}
