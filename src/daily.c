/*-------------------------------------------------------------------------
 *
 * daily.c
 *	  Daily stats of a batch.
 *
 * The records are sorted by the key of the table they go into and added up in
 * one pass; each table then gets one statement, whose rows are locked in the
 * order of the key.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "daily.h"
#include "partition.h"
#include "settings.h"
#include "sql.h"

#define AMOUNT_SCALE 10 /* EVENT_AMOUNT_FRACTION */

/* A sum of amounts of at most 30 digits each, as an integer with 10 decimals */
typedef int128 AmountSum; /* the one of c.h, which palloc can align */

typedef struct CountRow
{
	EventText user_id;
	EventText event_type;
	DateADT day;
	int64 count;
	bool has_amount;
	AmountSum amount;
	TimestampTz first;
	TimestampTz last;
	bool is_new_user; /* the row did not exist before */
	Oid leaf;
} CountRow;

typedef struct ItemRow
{
	EventText user_id;
	EventText item_id;
	DateADT day;
	int64 views;
	int64 clicks;
	int64 purchases;
	int64 count;
	Oid leaf;
} ItemRow;

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

static Datum
amount_datum(AmountSum sum)
{
	char buf[64];
	char *p = buf + sizeof(buf) - 1;
	bool negative = sum < 0;
	int digits = 0;
	bool trailing = true;

	if (negative)
		sum = -sum;
	*p = '\0';
	/* from the last digit to the first, leaving out zeros behind the point */
	while (sum != 0 || digits <= AMOUNT_SCALE)
	{
		int digit = (int) (sum % 10);

		if (digits == AMOUNT_SCALE && *p != '\0')
			*--p = '.';
		if (digit != 0 || digits >= AMOUNT_SCALE)
			trailing = false;
		if (!trailing)
			*--p = '0' + digit;
		sum /= 10;
		digits++;
	}
	if (negative)
		*--p = '-';
	return DirectFunctionCall3(numeric_in, CStringGetDatum(p), ObjectIdGetDatum(InvalidOid),
							   Int32GetDatum(-1));
}

static Datum
text_datum(EventText text)
{
	return PointerGetDatum(cstring_to_text_with_len(text.data, text.len));
}

typedef struct Columns
{
	int ncolumns;
	int nrows;
	Datum **values;
	bool **nulls;
	Oid *types; /* of the elements */
} Columns;

static Columns *
make_columns(int nrows, int ncolumns, const Oid *types)
{
	Columns *columns = palloc(sizeof(Columns));

	columns->ncolumns = ncolumns;
	columns->nrows = nrows;
	columns->values = palloc(ncolumns * sizeof(Datum *));
	columns->nulls = palloc(ncolumns * sizeof(bool *));
	columns->types = palloc(ncolumns * sizeof(Oid));
	for (int i = 0; i < ncolumns; i++)
	{
		columns->values[i] = palloc(nrows * sizeof(Datum));
		columns->nulls[i] = palloc0(nrows * sizeof(bool));
		columns->types[i] = types[i];
	}
	return columns;
}

static Oid
array_type(Oid element)
{
	switch (element)
	{
		case TEXTOID:
			return TEXTARRAYOID;
		case DATEOID:
			return DATEARRAYOID;
		case INT8OID:
			return INT8ARRAYOID;
		case NUMERICOID:
			return NUMERICARRAYOID;
		case TIMESTAMPTZOID:
			return TIMESTAMPTZARRAYOID;
		default:
			elog(ERROR, "unexpected type %u", element);
			return InvalidOid;
	}
}

static void
execute_columns(const char *sql, Columns *columns, int expected)
{
	Oid types[10];
	Datum values[10];
	int n = columns->ncolumns;

	for (int i = 0; i < n; i++)
	{
		Oid type = columns->types[i];
		bool fixed = type == INT8OID || type == TIMESTAMPTZOID;
		int dims[1] = {columns->nrows};
		int lbs[1] = {1};

		types[i] = array_type(type);
		values[i] = PointerGetDatum(construct_md_array(
			columns->values[i], columns->nulls[i], 1, dims, lbs, type,
			fixed ? 8 : (type == DATEOID ? 4 : -1), fixed ? FLOAT8PASSBYVAL : type == DATEOID,
			fixed ? TYPALIGN_DOUBLE : TYPALIGN_INT));
	}
	sql_execute_kept(sql, n, types, values, NULL, false, expected);
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

static char *
leaf_name(Oid leaf)
{
	char *name = get_rel_name(leaf);

	if (name == NULL)
		elog(ERROR, "cache lookup failed for relation %u", leaf);
	return quote_qualified_identifier("evstream", name);
}

/* ---- counts by user, day and type ---- */

static int
record_by_count_key(const void *a, const void *b)
{
	const BatchRecord *left = *(BatchRecord *const *) a;
	const BatchRecord *right = *(BatchRecord *const *) b;
	int cmp = text_cmp(left->event.user_id, right->event.user_id);

	if (cmp == 0 && left->day != right->day)
		cmp = left->day < right->day ? -1 : 1;
	if (cmp == 0)
		cmp = text_cmp(left->event.event_type, right->event.event_type);
	return cmp;
}

static int
add_up_counts(const BatchRecord **records, int nrecords, CountRow *rows)
{
	int n = 0;

	for (int i = 0; i < nrecords; i++)
	{
		const BatchRecord *record = records[i];
		CountRow *row;

		if (i == 0 || record_by_count_key(&records[i - 1], &records[i]) != 0)
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

static void
write_leaf_counts(CountRow **rows, int nrows, Oid leaf)
{
	static const Oid types[] = {TEXTOID,    DATEOID,        TEXTOID,       INT8OID,
								NUMERICOID, TIMESTAMPTZOID, TIMESTAMPTZOID};
	Columns *columns = make_columns(nrows, lengthof(types), types);

	for (int i = 0; i < nrows; i++)
	{
		const CountRow *row = rows[i];

		columns->values[0][i] = text_datum(row->user_id);
		columns->values[1][i] = DateADTGetDatum(row->day);
		columns->values[2][i] = text_datum(row->event_type);
		columns->values[3][i] = Int64GetDatum(row->count);
		columns->nulls[4][i] = !row->has_amount;
		columns->values[4][i] = row->has_amount ? amount_datum(row->amount) : (Datum) 0;
		columns->values[5][i] = TimestampTzGetDatum(row->first);
		columns->values[6][i] = TimestampTzGetDatum(row->last);
	}
	execute_columns(
		psprintf(
			"INSERT INTO %s AS d"
			" (user_id, day, event_type, event_count, amount_total, first_event_at, last_event_at, updated_at)"
			" SELECT u, y, t, n, a, f, l, pg_catalog.now()"
			" FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3),"
			"   pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7))"
			"   AS r (u, y, t, n, a, f, l)"
			" ON CONFLICT (user_id, day, event_type) DO UPDATE SET"
			" event_count = d.event_count + EXCLUDED.event_count,"
			" amount_total = COALESCE(d.amount_total + EXCLUDED.amount_total, d.amount_total, EXCLUDED.amount_total),"
			" first_event_at = LEAST(d.first_event_at, EXCLUDED.first_event_at),"
			" last_event_at = GREATEST(d.last_event_at, EXCLUDED.last_event_at),"
			" updated_at = EXCLUDED.updated_at"
			" RETURNING event_count",
			leaf_name(leaf)),
		columns, SPI_OK_INSERT_RETURNING);

	/*
	 * Rows come back as they went in.  One that had been there counts more
	 * than we gave it, one that is new counts just that.
	 */
	if (SPI_processed != nrows)
		elog(ERROR, "unexpected number of rows in evstream.daily_counts");
	for (int i = 0; i < nrows; i++)
	{
		bool isnull;
		Datum count = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);

		rows[i]->is_new_user = DatumGetInt64(count) == rows[i]->count;
	}
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
		write_leaf_counts(chosen, n, map.distinct[l]);
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
	static const Oid types[] = {DATEOID, TEXTOID, INT8OID, INT8OID, NUMERICOID};
	Columns *columns = make_columns(nrows, lengthof(types), types);
	CountRow **sorted = palloc(nrows * sizeof(CountRow *));
	int n = 0;

	for (int i = 0; i < nrows; i++)
		sorted[i] = &rows[i];
	qsort(sorted, nrows, sizeof(CountRow *), row_by_total_key);
	for (int i = 0; i < nrows;)
	{
		CountRow *first = sorted[i];
		int64 count = 0;
		int64 users = 0;
		bool has_amount = false;
		AmountSum amount = 0;

		for (; i < nrows && row_by_total_key(&sorted[i], &first) == 0; i++)
		{
			count += sorted[i]->count;
			users += sorted[i]->is_new_user ? 1 : 0;
			has_amount = has_amount || sorted[i]->has_amount;
			amount += sorted[i]->amount;
		}
		columns->values[0][n] = DateADTGetDatum(first->day);
		columns->values[1][n] = text_datum(first->event_type);
		columns->values[2][n] = Int64GetDatum(count);
		columns->values[3][n] = Int64GetDatum(users);
		columns->nulls[4][n] = !has_amount;
		columns->values[4][n] = has_amount ? amount_datum(amount) : (Datum) 0;
		n++;
	}
	columns->nrows = n;
	execute_columns(
		psprintf(
			"INSERT INTO evstream.daily_totals AS d"
			" (day, event_type, writer, event_count, user_count, amount_total, updated_at)"
			" SELECT y, t, %d, n, u, a, pg_catalog.now()"
			" FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3),"
			"   pg_catalog.unnest($4), pg_catalog.unnest($5)) AS r (y, t, n, u, a)"
			" ON CONFLICT (day, event_type, writer) DO UPDATE SET"
			" event_count = d.event_count + EXCLUDED.event_count,"
			" user_count = d.user_count + EXCLUDED.user_count,"
			" amount_total = COALESCE(d.amount_total + EXCLUDED.amount_total, d.amount_total, EXCLUDED.amount_total),"
			" updated_at = EXCLUDED.updated_at",
			writer),
		columns, SPI_OK_INSERT);
}

/* ---- counts by user, item and day ---- */

static int
record_by_item_key(const void *a, const void *b)
{
	const BatchRecord *left = *(BatchRecord *const *) a;
	const BatchRecord *right = *(BatchRecord *const *) b;
	int cmp = text_cmp(left->event.user_id, right->event.user_id);

	if (cmp == 0)
		cmp = text_cmp(left->event.item_id, right->event.item_id);
	if (cmp == 0 && left->day != right->day)
		cmp = left->day < right->day ? -1 : 1;
	return cmp;
}

static void
write_leaf_items(const ItemRow *rows, int nrows, Oid leaf)
{
	static const Oid types[] = {TEXTOID, TEXTOID, DATEOID, INT8OID, INT8OID, INT8OID, INT8OID};
	Columns *columns = make_columns(nrows, lengthof(types), types);
	int n = 0;

	for (int i = 0; i < nrows; i++)
	{
		if (rows[i].leaf != leaf)
			continue;
		columns->values[0][n] = text_datum(rows[i].user_id);
		columns->values[1][n] = text_datum(rows[i].item_id);
		columns->values[2][n] = DateADTGetDatum(rows[i].day);
		columns->values[3][n] = Int64GetDatum(rows[i].views);
		columns->values[4][n] = Int64GetDatum(rows[i].clicks);
		columns->values[5][n] = Int64GetDatum(rows[i].purchases);
		columns->values[6][n] = Int64GetDatum(rows[i].count);
		n++;
	}
	columns->nrows = n;
	execute_columns(
		psprintf(
			"INSERT INTO %s AS d"
			" (user_id, item_id, day, view_count, click_count, purchase_count, event_count, updated_at)"
			" SELECT u, i, y, v, c, p, n, pg_catalog.now()"
			" FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3),"
			"   pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7))"
			"   AS r (u, i, y, v, c, p, n)"
			" ON CONFLICT (user_id, item_id, day) DO UPDATE SET"
			" view_count = d.view_count + EXCLUDED.view_count,"
			" click_count = d.click_count + EXCLUDED.click_count,"
			" purchase_count = d.purchase_count + EXCLUDED.purchase_count,"
			" event_count = d.event_count + EXCLUDED.event_count,"
			" updated_at = EXCLUDED.updated_at",
			leaf_name(leaf)),
		columns, SPI_OK_INSERT);
}

static void
write_items(const BatchRecord **records, int nrecords)
{
	LeafMap map = {.stats = PARTITION_ITEMS};
	ItemRow *rows = palloc(nrecords * sizeof(ItemRow));
	int n = 0;

	qsort(records, nrecords, sizeof(BatchRecord *), record_by_item_key);
	for (int i = 0; i < nrecords; i++)
	{
		const Event *event = &records[i]->event;
		ItemRow *row;

		if (i == 0 || record_by_item_key(&records[i - 1], &records[i]) != 0)
		{
			row = &rows[n++];
			memset(row, 0, sizeof(*row));
			row->user_id = event->user_id;
			row->item_id = event->item_id;
			row->day = records[i]->day;
		}
		row = &rows[n - 1];
		row->count++;
		if (text_is(event->event_type, "view"))
			row->views++;
		else if (text_is(event->event_type, "click"))
			row->clicks++;
		else if (text_is(event->event_type, "purchase"))
			row->purchases++;
	}

	for (int i = 0; i < n; i++)
		rows[i].leaf = leaf_of(&map, rows[i].day);
	for (int l = 0; l < map.nleaves; l++)
		write_leaf_items(rows, n, map.distinct[l]);
}

void
daily_add(const Batch *batch)
{
	const BatchRecord **records = palloc(Max(1, batch->nrecords) * sizeof(BatchRecord *));
	CountRow *rows;
	int n = 0;
	int nrows;

	for (int i = 0; i < batch->nrecords; i++)
		if (batch_is_new(&batch->records[i]))
			records[n++] = &batch->records[i];
	if (n == 0)
		return;

	qsort(records, n, sizeof(BatchRecord *), record_by_count_key);
	rows = palloc(n * sizeof(CountRow));
	nrows = add_up_counts(records, n, rows);
	write_counts(rows, nrows);

	if (setting_item_stats)
	{
		int nitems = 0;

		for (int i = 0; i < n; i++)
			if (records[i]->event.item_id.data != NULL)
				records[nitems++] = records[i];
		if (nitems > 0)
			write_items(records, nitems);
	}
	write_totals(rows, nrows, batch->writer);
}
