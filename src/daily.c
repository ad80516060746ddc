/*-------------------------------------------------------------------------
 *
 * daily.c
 *	  Daily stats of a batch.
 *
 * The records are sorted by the key of the table they go into and added up in
 * one pass; each table then gets its rows in the order of the key.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bswap.h"
#include "storage/lmgr.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "daily.h"
#include "daily_int.h"
#include "partition.h"
#include "settings.h"

/* ---- small things ---- */

/* The order of the "C" collation */
static int
text_cmp(EventText a, EventText b)
{
	int cmp = memcmp(a.data, b.data, Min(a.len, b.len));

	if (cmp != 0)
		return cmp;
	return a.len == b.len ? 0 : (a.len < b.len ? -1 : 1);
}

static bool
text_is(EventText a, const char *word)
{
	return a.len == strlen(word) && memcmp(a.data, word, a.len) == 0;
}

/* Adds a plain decimal such as "-12.5". */
static AmountSum
amount_of(EventText text)
{
	AmountSum value = 0;
	int decimals = -1;
	bool negative = false;

	for (size_t i = 0; i < text.len; i++)
	{
		char c = text.data[i];

		if (c == '-')
			negative = true;
		else if (c == '.')
			decimals = 0;
		else
		{
			value = value * 10 + (c - '0');
			if (decimals >= 0)
				decimals++;
		}
	}
	for (decimals = Max(decimals, 0); decimals < AMOUNT_SCALE; decimals++)
		value *= 10;
	return negative ? -value : value;
}

/* ---- leaves ---- */

/* Which leaf takes which month, as far as it was asked for */
typedef struct LeafMap
{
	PartitionStats stats;
	int nmonths;
	int allocated;
	int *months; /* year * 12 + month */
	Oid *leaves; /* of the months */
	int nleaves;
	Oid *distinct; /* leaves, sorted */
} LeafMap;

static Oid
leaf_of(LeafMap *map, DateADT day)
{
	int year;
	int month;
	int mday;
	int key;
	Oid leaf;
	int i;

	j2date(day + POSTGRES_EPOCH_JDATE, &year, &month, &mday);
	key = year * 12 + month;
	for (i = map->nmonths - 1; i >= 0; i--)
		if (map->months[i] == key)
			return map->leaves[i];

	if (map->nmonths == map->allocated)
	{
		map->allocated = map->allocated == 0 ? 16 : map->allocated * 2;
		map->months = map->months == NULL ? palloc(map->allocated * sizeof(int))
										  : repalloc(map->months, map->allocated * sizeof(int));
		map->leaves = map->leaves == NULL ? palloc(map->allocated * sizeof(Oid))
										  : repalloc(map->leaves, map->allocated * sizeof(Oid));
		map->distinct = map->distinct == NULL
							? palloc(map->allocated * sizeof(Oid))
							: repalloc(map->distinct, map->allocated * sizeof(Oid));
	}

	/*
	 * With the lock on the leaf it stays the right one: a new leaf cannot be
	 * attached while somebody writes to the default one.
	 */
	for (;;)
	{
		leaf = partition_leaf(map->stats, day);
		LockRelationOid(leaf, RowExclusiveLock);
		if (partition_leaf(map->stats, day) == leaf)
			break;
		UnlockRelationOid(leaf, RowExclusiveLock);
	}
	map->months[map->nmonths] = key;
	map->leaves[map->nmonths++] = leaf;
	for (i = 0; i < map->nleaves; i++)
		if (map->distinct[i] == leaf)
			return leaf;
	for (i = map->nleaves++; i > 0 && map->distinct[i - 1] > leaf; i--)
		map->distinct[i] = map->distinct[i - 1];
	map->distinct[i] = leaf;
	return leaf;
}

/* ---- counts by user, day and type ---- */

static int
record_by_count_key(const BatchRecord *left, const BatchRecord *right)
{
	int cmp = text_cmp(left->event.user_id, right->event.user_id);

	if (cmp == 0 && left->day != right->day)
		cmp = left->day < right->day ? -1 : 1;
	if (cmp == 0)
		cmp = text_cmp(left->event.event_type, right->event.event_type);
	return cmp;
}

/* With the first text of its key, so that few comparisons look at the record */
typedef struct SortRecord
{
	uint64 prefix;
	const BatchRecord *record;
} SortRecord;

/* Orders as text_cmp() does, but for texts that begin alike. */
static uint64
text_prefix(EventText text)
{
	uint64 prefix = 0;

	memcpy(&prefix, text.data, Min(text.len, sizeof(prefix)));
	return pg_ntoh64(prefix);
}

#define ST_SORT         sort_by_count_key
#define ST_ELEMENT_TYPE SortRecord
#define ST_COMPARE(a, b)                                                                           \
	((a)->prefix != (b)->prefix ? ((a)->prefix < (b)->prefix ? -1 : 1)                             \
								: record_by_count_key((a)->record, (b)->record))
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

static int
add_up_counts(const SortRecord *records, int nrecords, CountRow *rows)
{
	int n = 0;

	for (int i = 0; i < nrecords; i++)
	{
		const BatchRecord *record = records[i].record;
		CountRow *row;

		if (i == 0 || record_by_count_key(records[i - 1].record, record) != 0)
		{
			row = &rows[n++];
			memset(row, 0, sizeof(*row));
			row->user_id = record->event.user_id;
			row->event_type = record->event.event_type;
			row->day = record->day;
			row->first = row->last = record->occurred_at;
		}
		row = &rows[n - 1];
		row->count++;
		row->first = Min(row->first, record->occurred_at);
		row->last = Max(row->last, record->occurred_at);
		if (record->event.amount.data != NULL)
		{
			row->has_amount = true;
			row->amount += amount_of(record->event.amount);
		}
	}
	return n;
}

/* Leaf by leaf, as ON CONFLICT is for leaves only; in the order of their oids. */
static void
write_counts(CountRow *rows, int nrows)
{
	LeafMap map = {.stats = PARTITION_COUNTS};
	CountRow **chosen = palloc(nrows * sizeof(CountRow *));

	for (int i = 0; i < nrows; i++)
		rows[i].leaf = leaf_of(&map, rows[i].day);
	for (int l = 0; l < map.nleaves; l++)
	{
		int n = 0;

		for (int i = 0; i < nrows; i++)
			if (rows[i].leaf == map.distinct[l])
				chosen[n++] = &rows[i];
		if (!daily_counts_direct(chosen, n, map.distinct[l]))
			daily_counts_by_sql(chosen, n, map.distinct[l]);
	}
}

/* ---- totals by day and type ---- */

static int
row_by_total_key(const void *a, const void *b)
{
	const CountRow *left = *(CountRow *const *) a;
	const CountRow *right = *(CountRow *const *) b;

	if (left->day != right->day)
		return left->day < right->day ? -1 : 1;
	return text_cmp(left->event_type, right->event_type);
}

static void
write_totals(CountRow *rows, int nrows, int writer)
{
	CountRow **sorted = palloc(nrows * sizeof(CountRow *));
	TotalRow *totals = palloc(nrows * sizeof(TotalRow));
	int n = 0;

	for (int i = 0; i < nrows; i++)
		sorted[i] = &rows[i];
	qsort(sorted, nrows, sizeof(CountRow *), row_by_total_key);
	for (int i = 0; i < nrows; i++)
	{
		const CountRow *row = sorted[i];
		TotalRow *total;

		if (i == 0 || row_by_total_key(&sorted[i - 1], &sorted[i]) != 0)
		{
			total = &totals[n++];
			memset(total, 0, sizeof(*total));
			total->day = row->day;
			total->event_type = row->event_type;
		}
		total = &totals[n - 1];
		total->count += row->count;
		total->users += row->is_new_user ? 1 : 0;
		total->has_amount = total->has_amount || row->has_amount;
		total->amount += row->amount;
	}
	daily_totals_by_sql(totals, n, writer);
}

/* ---- counts by user, item and day ---- */

/* Of one user */
static int
record_by_item_key(const BatchRecord *left, const BatchRecord *right)
{
	int cmp = text_cmp(left->event.item_id, right->event.item_id);

	if (cmp == 0 && left->day != right->day)
		cmp = left->day < right->day ? -1 : 1;
	return cmp;
}

#define ST_SORT         sort_by_item_key
#define ST_ELEMENT_TYPE SortRecord
#define ST_COMPARE(a, b)                                                                           \
	((a)->prefix != (b)->prefix ? ((a)->prefix < (b)->prefix ? -1 : 1)                             \
								: record_by_item_key((a)->record, (b)->record))
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

/* The records come in the order of their users. */
static void
write_items(SortRecord *records, int nrecords)
{
	LeafMap map = {.stats = PARTITION_ITEMS};
	ItemRow *rows = palloc(nrecords * sizeof(ItemRow));
	ItemRow **chosen;
	int n = 0;

	for (int i = 0, first = 0; i < nrecords; i++)
	{
		records[i].prefix = text_prefix(records[i].record->event.item_id);
		if (i + 1 < nrecords &&
			text_cmp(records[i].record->event.user_id, records[i + 1].record->event.user_id) == 0)
			continue;
		sort_by_item_key(&records[first], i + 1 - first);
		first = i + 1;
	}
	for (int i = 0; i < nrecords; i++)
	{
		const BatchRecord *record = records[i].record;
		const Event *event = &record->event;
		ItemRow *row = n > 0 ? &rows[n - 1] : NULL;

		if (row == NULL || row->day != record->day || text_cmp(row->user_id, event->user_id) != 0 ||
			text_cmp(row->item_id, event->item_id) != 0)
		{
			row = &rows[n++];
			memset(row, 0, sizeof(*row));
			row->user_id = event->user_id;
			row->item_id = event->item_id;
			row->day = record->day;
		}
		row->count++;
		if (text_is(event->event_type, "view"))
			row->views++;
		else if (text_is(event->event_type, "click"))
			row->clicks++;
		else if (text_is(event->event_type, "purchase"))
			row->purchases++;
	}

	chosen = palloc(n * sizeof(ItemRow *));
	for (int i = 0; i < n; i++)
		rows[i].leaf = leaf_of(&map, rows[i].day);
	for (int l = 0; l < map.nleaves; l++)
	{
		int nchosen = 0;

		for (int i = 0; i < n; i++)
			if (rows[i].leaf == map.distinct[l])
				chosen[nchosen++] = &rows[i];
		if (!daily_items_direct(chosen, nchosen, map.distinct[l]))
			daily_items_by_sql(chosen, nchosen, map.distinct[l]);
	}
}

void
daily_add(const Batch *batch)
{
	SortRecord *records = palloc(Max(1, batch->nrecords) * sizeof(SortRecord));
	CountRow *rows;
	int n = 0;
	int nrows;

	for (int i = 0; i < batch->nrecords; i++)
	{
		const BatchRecord *record = &batch->records[i];

		if (!batch_is_new(record))
			continue;
		records[n].prefix = text_prefix(record->event.user_id);
		records[n++].record = record;
	}
	if (n == 0)
		return;

	sort_by_count_key(records, n);
	rows = palloc(n * sizeof(CountRow));
	nrows = add_up_counts(records, n, rows);
	write_counts(rows, nrows);

	if (setting_item_stats)
	{
		int nitems = 0;

		for (int i = 0; i < n; i++)
			if (records[i].record->event.item_id.data != NULL)
				records[nitems++] = records[i];
		if (nitems > 0)
			write_items(records, nitems);
	}
	write_totals(rows, nrows, batch->writer);
}
