/*-------------------------------------------------------------------------
 *
 * matcher_look.c
 *	  The matcher's look into its cells, for an event.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/fmgrprotos.h"

#include "compat.h"
#include "json_hash.h"
#include "matcher_cells.h"

bool
matcher_visible(const Matcher *matcher, const Version *version)
{
	uint64 xids[] = {version->made_xid, version->ended_xid};
	bool seen[2];

	if (!matcher->use_snapshot)
		return version->ended_xid == 0;

	for (int i = 0; i < 2; i++)
	{
		int low = 0;
		int high = matcher->nxip;

		seen[i] = xids[i] != 0 && xids[i] < matcher->xmax;
		if (!seen[i] || xids[i] < matcher->xmin)
			continue;
		while (low < high)
		{
			int middle = low + (high - low) / 2;

			if (matcher->xip[middle] < xids[i])
				low = middle + 1;
			else
				high = middle;
		}
		seen[i] = low == matcher->nxip || matcher->xip[low] != xids[i];
	}
	return seen[0] && !seen[1];
}

/* The lists that are not in the key. */
static bool
lists_match(Matcher *matcher, const Version *version)
{
	const uint32 *words = version->words;

	for (int d = 0; d < DIM_COUNT; words += version->nwords[d], d++)
	{
		const Word *word = NULL;
		uint32 id;

		if ((version->unkeyed & (1 << d)) == 0)
			continue;
		if (matcher->event_texts[d].data != NULL)
			word = find_word(&matcher->words[d], matcher->event_texts[d]);
		if (word == NULL)
			return false;
		id = word->id;
		if (bsearch(&id, words, version->nwords[d], sizeof(uint32), matcher_compare_words) == NULL)
			return false;
	}
	return true;
}

/* Does the event's `properties` contain them?  Compared once for an event. */
static bool
content_matches(Matcher *matcher, Content *content)
{
	JsonbIterator *all;
	JsonbIterator *some;

	if (content->event == matcher->event_no)
		return content->contained;
	content->event = matcher->event_no;
	content->contained = false;
	if (matcher->event->properties == NULL)
		return false;
	all = JsonbIteratorInit(&matcher->event->properties->root);
	some = JsonbIteratorInit(&content->properties.root);
	content->contained = JsonbDeepContains(&all, &some);
	return content->contained;
}

static inline bool
reaches(const Matcher *matcher, const Entry *entry)
{
	if (matcher->event_amount != entry->threshold)
		return matcher->event_amount > entry->threshold;
	if (matcher->event_exact && (entry->subscriber & ENTRY_EXACT))
		return true;
	return DatumGetInt32(DirectFunctionCall2(
			   numeric_cmp, NumericGetDatum(matcher->event->amount),
			   NumericGetDatum(matcher_version(matcher, entry->version)->min_amount))) >= 0;
}

/* How many of the ordered entries the amount lets in; follows their number. */
static uint32
entries_reached(const Matcher *matcher, const Entry *entries, uint32 nentries)
{
	uint32 low = 0;
	uint32 step = 1;
	uint32 high;

#define LETS_IN(entry)                                                                             \
	(((entry)->subscriber & ENTRY_THRESHOLD) == 0 ||                                               \
	 (matcher->event->has_amount && reaches(matcher, entry)))

	while (low + step <= nentries && LETS_IN(&entries[low + step - 1]))
	{
		low += step;
		step *= 2;
	}
	high = Min(low + step, nentries + 1);
	while (low + 1 < high)
	{
		uint32 middle = low + (high - low) / 2;

		if (LETS_IN(&entries[middle - 1]))
			low = middle;
		else
			high = middle;
	}
	return low;
}

static void
look_into_cell(Matcher *matcher, const CellKey *key)
{
	CellHash *place = cells_lookup(matcher->cells, key->hash);
	Cell *cell = place ? *find_cell(place, key) : NULL;
	Entry *entries;
	uint32 n;

	/* an array of the event may hold the same value many times */
	if (cell == NULL || cell->event == matcher->event_no)
		return;
	cell->event = matcher->event_no;
	if (cell->nsorted < cell->nentries)
		matcher_sort_cell(matcher, cell);
	entries = cell_entries(cell);
	n = entries_reached(matcher, entries, cell->nentries);

	if (matcher->nfound + (int64) n > matcher->found_size)
	{
		matcher->found_size = Max(matcher->nfound + n, (uint32) matcher->found_size * 2);
		matcher->found = repalloc_huge(matcher->found, (Size) matcher->found_size * sizeof(int));
	}
	for (uint32 i = 0; i < n; i++)
	{
		uint32 flags = entries[i].subscriber;

		if (!matcher->all_visible || (flags & ENTRY_UNKEYED))
		{
			const Version *version = matcher_version(matcher, entries[i].version);

			if (!matcher->all_visible && !matcher_visible(matcher, version))
				continue;
			if ((flags & ENTRY_UNKEYED) && !lists_match(matcher, version))
				continue;
		}
		if (entries[i].content != NULL && !content_matches(matcher, entries[i].content))
			continue;
		matcher->found[matcher->nfound++] = (int) (flags & ENTRY_SUBSCRIBER);
	}
}

/* All cells of a pair (0: none) that the event's texts lead to. */
static void
look_with_pair(Matcher *matcher, uint64 pair, uint8 masks)
{
	for (int mask = 0; mask < DIM_MASKS; mask++)
	{
		bool possible = (masks & (1 << mask)) != 0;
		CellKey key = {.pair = pair};

		for (int d = 0; d < DIM_COUNT && possible; d++)
		{
			if (mask & (1 << d))
				key.texts[d] = matcher->event_texts[d];
			possible = !(mask & (1 << d)) || key.texts[d].data != NULL;
		}
		if (!possible)
			continue;
		key.hash = hash_key(matcher->event_hashes, mask, pair);
		look_into_cell(matcher, &key);
	}
}

static void
look_for_pair(uint64 hash, void *arg)
{
	Matcher *matcher = arg;
	uint8 masks = matcher->pair_masks;

	/* more than one: to look at the pair costs less than to look for cells in vain */
	if ((masks & (masks - 1)) != 0)
	{
		Pair *pair = pairs_lookup(matcher->pairs, hash);

		if (pair == NULL)
			return;
		masks = pair->masks;
	}
	look_with_pair(matcher, hash, masks);
}

void
matcher_index_look(Matcher *matcher)
{
	const MatchEvent *event = matcher->event;

	matcher->event_texts[DIM_TYPE] = event->event_type;
	matcher->event_texts[DIM_USER] = event->user_id;
	matcher->event_texts[DIM_TIER] = event->user_tier;
	for (int d = 0; d < DIM_COUNT; d++)
	{
		if (matcher->words[d].hash->members == 0)
			matcher->event_texts[d].data = NULL;
		if (matcher->event_texts[d].data != NULL)
			matcher->event_hashes[d] = hash_text(matcher->event_texts[d]);
	}
	matcher->nfound = 0;
	/* 0 means: by none, so far */
	if (++matcher->event_no == 0)
		matcher->event_no = 1;
	if (event->has_amount && matcher->has_thresholds)
		matcher->event_amount = matcher_nearest_double(event->amount, &matcher->event_exact);
	look_with_pair(matcher, 0, matcher->masks);
	if (matcher->pair_masks != 0 && event->properties != NULL)
		json_pairs(event->properties, look_for_pair, matcher);
}
