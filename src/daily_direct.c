/*-------------------------------------------------------------------------
 *
 * daily_direct.c
 *	  Daily stats into their tables below the level of statements.
 *
 * First the rows that are there get their new versions, in the order of their
 * keys; then the new ones are added, in that order too, many to a page.  One
 * that another consumer adds at the same time is noticed in the unique index,
 * waited for, and gets its new version at the end.  Consumers that meet in
 * several rows so take nearly always the same order; where not, one of them
 * is told of a deadlock, and tries again.
 *
 * Where rows that the cache does not know are nearly always new, as those by user
 * and item often are, they are added without a look for them before, which would
 * be the larger part of the work.  One that was there all the same is noticed as
 * one that another consumer adds.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "common/int.h"
#include "executor/executor.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "bulk.h"
#include "compat.h"
#include "daily_int.h"
#include "row_cache.h"

#define KEY_COLUMNS 3

/* In the order of the install script */
enum
{
	COUNT_USER_ID,
	COUNT_DAY,
	COUNT_EVENT_TYPE,
	COUNT_EVENT_COUNT,
	COUNT_AMOUNT_TOTAL,
	COUNT_FIRST_EVENT_AT,
	COUNT_LAST_EVENT_AT,
	COUNT_UPDATED_AT,
	COUNT_COLUMNS
};

enum
{
	ITEM_USER_ID,
	ITEM_ITEM_ID,
	ITEM_DAY,
	ITEM_VIEW_COUNT,
	ITEM_CLICK_COUNT,
	ITEM_PURCHASE_COUNT,
	ITEM_EVENT_COUNT,
	ITEM_UPDATED_AT,
	ITEM_COLUMNS
};

/* Rows that the cache did not know, of late, and how many of them were there all the same */
typedef struct Strangers
{
	int64 seen;
	int64 there;
} Strangers;

/* Fewer say nothing yet; of more, half are forgotten */
#define STRANGERS_MIN    1000
#define STRANGERS_MAX    10000
/* Each that is taken for new by mistake leaves a dead row */
#define MISTAKES_PERCENT 2

/* What differs between the tables.  The key is in the first columns of both. */
typedef struct Kind
{
	const Oid *types;
	int ncolumns;
	void (*get_key)(const void *row, Datum *key);
	uint64 (*get_hash)(const void *row); /* of the key */
	uint64 (*hash_key)(const Datum *key);
	int neighbour_columns; /* rows with these in common are asked for together; 0: they are not */
	void (*fill)(const void *row, TupleTableSlot *slot); /* a new row's, but for the key */
	void (*add)(const void *row, TupleTableSlot *slot);  /* to an old row's */
	Strangers *strangers;
} Kind;

static const BulkKey first_columns = {.ncolumns = KEY_COLUMNS, .columns = {1, 2, 3}};

typedef Datum RowKey[KEY_COLUMNS];

/* Rows on their way into one leaf */
typedef struct Writing
{
	const Kind *kind;
	Bulk *bulk;
	void **rows;
	RowKey *keys;
	uint64 *hashes; /* of the keys */
	int *fresh;     /* rows that were not found, in the order in which they are added */
	int nfresh;
	int *met; /* of these, those that another transaction has added first */
	int nmet;
} Writing;

static uint64
key_hash(EventText user_id, EventText other, DateADT day)
{
	uint64 hash = hash_bytes_extended((const unsigned char *) user_id.data, user_id.len, day);

	return hash_bytes_extended((const unsigned char *) other.data, other.len, hash);
}

static Datum
updated_at(void)
{
	return TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
}

/* ---- counts by user, day and type ---- */

static void
count_key(const void *arg, Datum *key)
{
	const CountRow *row = arg;

	key[COUNT_USER_ID] = daily_text(row->user_id);
	key[COUNT_DAY] = DateADTGetDatum(row->day);
	key[COUNT_EVENT_TYPE] = daily_text(row->event_type);
}

static uint64
count_hash(const void *arg)
{
	const CountRow *row = arg;

	return key_hash(row->user_id, row->event_type, row->day);
}

static EventText
datum_text(Datum datum)
{
	const struct varlena *text = (const struct varlena *) DatumGetPointer(datum);

	return (EventText){.data = VARDATA_ANY(text), .len = VARSIZE_ANY_EXHDR(text)};
}

static uint64
count_key_hash(const Datum *key)
{
	return key_hash(datum_text(key[COUNT_USER_ID]), datum_text(key[COUNT_EVENT_TYPE]),
					DatumGetDateADT(key[COUNT_DAY]));
}

static void
count_fill(const void *arg, TupleTableSlot *slot)
{
	const CountRow *row = arg;

	slot->tts_values[COUNT_EVENT_COUNT] = Int64GetDatum(row->count);
	slot->tts_isnull[COUNT_AMOUNT_TOTAL] = !row->has_amount;
	slot->tts_values[COUNT_AMOUNT_TOTAL] = row->has_amount ? daily_amount(row->amount) : (Datum) 0;
	slot->tts_values[COUNT_FIRST_EVENT_AT] = TimestampTzGetDatum(row->first);
	slot->tts_values[COUNT_LAST_EVENT_AT] = TimestampTzGetDatum(row->last);
	slot->tts_values[COUNT_UPDATED_AT] = updated_at();
}

static void
count_add(const void *arg, TupleTableSlot *slot)
{
	const CountRow *row = arg;
	Datum *values = slot->tts_values;
	int64 count;

	if (pg_add_s64_overflow(DatumGetInt64(values[COUNT_EVENT_COUNT]), row->count, &count))
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE), errmsg("bigint out of range")));
	values[COUNT_EVENT_COUNT] = Int64GetDatum(count);
	if (row->has_amount)
	{
		Datum amount = daily_amount(row->amount);

		values[COUNT_AMOUNT_TOTAL] =
			slot->tts_isnull[COUNT_AMOUNT_TOTAL]
				? amount
				: DirectFunctionCall2(numeric_add, values[COUNT_AMOUNT_TOTAL], amount);
		slot->tts_isnull[COUNT_AMOUNT_TOTAL] = false;
	}
	values[COUNT_FIRST_EVENT_AT] =
		TimestampTzGetDatum(Min(DatumGetTimestampTz(values[COUNT_FIRST_EVENT_AT]), row->first));
	values[COUNT_LAST_EVENT_AT] =
		TimestampTzGetDatum(Max(DatumGetTimestampTz(values[COUNT_LAST_EVENT_AT]), row->last));
	values[COUNT_UPDATED_AT] = updated_at();
}

static const Oid count_types[COUNT_COLUMNS] = {
	TEXTOID, DATEOID, TEXTOID, INT8OID, NUMERICOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID};
static Strangers count_strangers;
static const Kind counts = {.types = count_types,
							.ncolumns = COUNT_COLUMNS,
							.get_key = count_key,
							.get_hash = count_hash,
							.hash_key = count_key_hash,
							.neighbour_columns = 2, /* user and day, of all types */
							.fill = count_fill,
							.add = count_add,
							.strangers = &count_strangers};

/* ---- counts by user, item and day ---- */

static void
item_key(const void *arg, Datum *key)
{
	const ItemRow *row = arg;

	key[ITEM_USER_ID] = daily_text(row->user_id);
	key[ITEM_ITEM_ID] = daily_text(row->item_id);
	key[ITEM_DAY] = DateADTGetDatum(row->day);
}

static uint64
item_hash(const void *arg)
{
	const ItemRow *row = arg;

	return key_hash(row->user_id, row->item_id, row->day);
}

static void
item_fill(const void *arg, TupleTableSlot *slot)
{
	const ItemRow *row = arg;

	slot->tts_values[ITEM_VIEW_COUNT] = Int64GetDatum(row->views);
	slot->tts_values[ITEM_CLICK_COUNT] = Int64GetDatum(row->clicks);
	slot->tts_values[ITEM_PURCHASE_COUNT] = Int64GetDatum(row->purchases);
	slot->tts_values[ITEM_EVENT_COUNT] = Int64GetDatum(row->count);
	slot->tts_values[ITEM_UPDATED_AT] = updated_at();
}

static void
item_add(const void *arg, TupleTableSlot *slot)
{
	const ItemRow *row = arg;
	const int64 more[] = {row->views, row->clicks, row->purchases, row->count};

	for (int i = 0; i < lengthof(more); i++)
	{
		Datum *value = &slot->tts_values[ITEM_VIEW_COUNT + i];
		int64 sum;

		if (pg_add_s64_overflow(DatumGetInt64(*value), more[i], &sum))
			ereport(ERROR,
					(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE), errmsg("bigint out of range")));
		*value = Int64GetDatum(sum);
	}
	slot->tts_values[ITEM_UPDATED_AT] = updated_at();
}

static const Oid item_types[ITEM_COLUMNS] = {TEXTOID, TEXTOID, DATEOID, INT8OID,
											 INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID};
static Strangers item_strangers;
static const Kind items = {.types = item_types,
						   .ncolumns = ITEM_COLUMNS,
						   .get_key = item_key,
						   .get_hash = item_hash,
						   .fill = item_fill,
						   .add = item_add,
						   .strangers = &item_strangers};

/* ---- both ---- */

static bool
is_plain(Bulk *bulk)
{
	Relation rel = bulk_relation(bulk);
	TupleConstr *constraints = RelationGetDescr(rel)->constr;

	return rel->trigdesc == NULL && rel->rd_rules == NULL && !rel->rd_rel->relrowsecurity &&
		   (constraints == NULL ||
			(constraints->num_check == 0 && !constraints->has_generated_stored)) &&
		   !bulk_has_other_keys(bulk, &first_columns);
}

static bool
are_new(const Strangers *strangers)
{
	return strangers->seen >= STRANGERS_MIN &&
		   strangers->there * 100 <= strangers->seen * MISTAKES_PERCENT;
}

static void
forget_strangers(Strangers *strangers)
{
	if (strangers->seen > STRANGERS_MAX)
	{
		strangers->seen /= 2;
		strangers->there /= 2;
	}
}

typedef struct Meeting
{
	const Kind *kind;
	Oid leaf;
	uint64 wanted;
	bool met;
} Meeting;

static void
meet(const Datum *key, const ItemPointerData *tid, void *arg)
{
	Meeting *meeting = arg;
	uint64 hash = meeting->kind->hash_key(key);

	meeting->met |= hash == meeting->wanted;
	row_cache_put(meeting->leaf, hash, tid);
}

static bool
find_at_place(Writing *writing, int i, Oid leaf)
{
	ItemPointerData tid;

	return row_cache_get(leaf, writing->hashes[i], &tid) &&
		   bulk_find_at(writing->bulk, &first_columns, writing->keys[i], &tid) != NULL;
}

/* How far a row is looked for that is not where it was before */
typedef enum Look
{
	LOOK_NOWHERE,
	LOOK_AROUND, /* in the index; of the rows beside it, too, the places are kept */
	LOOK_FOR_IT, /* in the index, by its key alone */
} Look;

static bool
find_by_index(Writing *writing, int i, Oid leaf, Look look)
{
	const Kind *kind = writing->kind;
	Meeting meeting = {.kind = kind, .leaf = leaf, .wanted = writing->hashes[i]};

	if (look == LOOK_AROUND && kind->neighbour_columns > 0)
	{
		bool all = bulk_neighbours(writing->bulk, &first_columns, writing->keys[i],
								   kind->neighbour_columns, meet, &meeting);

		if (meeting.met && find_at_place(writing, i, leaf))
			return true;
		/* without an entry there is no row */
		if (!meeting.met && all)
			return false;
	}
	return bulk_find(writing->bulk, &first_columns, writing->keys[i]) != NULL;
}

/* Finds a row where it was before, or where it is looked for; false if it is not there. */
static bool
find_row(Writing *writing, int i, Oid leaf, Look look)
{
	Strangers *strangers = writing->kind->strangers;

	if (find_at_place(writing, i, leaf))
		return true;
	strangers->seen++;
	if (look == LOOK_NOWHERE || !find_by_index(writing, i, leaf, look))
		return false;
	strangers->there++;
	return true;
}

/* The new version of a row that is there; false if it is not, or was not looked for. */
static bool
add_to_row(Writing *writing, int i, Look look)
{
	Oid leaf = RelationGetRelid(bulk_relation(writing->bulk));

	while (find_row(writing, i, leaf, look))
	{
		writing->kind->add(writing->rows[i], bulk_changed(writing->bulk));
		if (bulk_replace(writing->bulk))
		{
			row_cache_put(leaf, writing->hashes[i], bulk_entry(writing->bulk));
			return true;
		}
	}
	return false;
}

static bool
settle_row(Bulk *bulk, int64 number, TupleTableSlot *slot, void *arg)
{
	Writing *writing = arg;
	int i = writing->fresh[number];

	if (!bulk_settle(bulk, &first_columns, writing->keys[i], &slot->tts_tid))
		return false;
	writing->met[writing->nmet++] = i;
	return true;
}

/* False, and nothing is done, if the leaf is not plain. */
static bool
write_rows(Writing *writing, const Kind *kind, void **rows, int nrows, Oid leaf)
{
	Bulk *bulk;
	ItemPointerData *places;
	Look look;

	if (get_rel_relkind(leaf) != RELKIND_RELATION)
		return false;
	bulk = bulk_open(leaf, kind->types, kind->ncolumns, settle_row, writing);
	if (!is_plain(bulk))
	{
		bulk_close(bulk);
		return false;
	}
	writing->kind = kind;
	writing->bulk = bulk;
	writing->rows = rows;
	writing->keys = palloc(nrows * sizeof(RowKey));
	writing->hashes = palloc(nrows * sizeof(uint64));
	writing->fresh = palloc(nrows * sizeof(int));
	writing->met = palloc(nrows * sizeof(int));
	writing->nfresh = writing->nmet = 0;

	for (int i = 0; i < nrows; i++)
	{
		writing->hashes[i] = kind->get_hash(rows[i]);
		row_cache_prefetch(leaf, writing->hashes[i]);
		kind->get_key(rows[i], writing->keys[i]);
	}
	forget_strangers(kind->strangers);
	look = are_new(kind->strangers) ? LOOK_NOWHERE : LOOK_AROUND;
	for (int i = 0; i < nrows; i++)
		if (!add_to_row(writing, i, look))
			writing->fresh[writing->nfresh++] = i;
	places = palloc(nrows * sizeof(ItemPointerData));
	bulk_keep_places(bulk, places);
	for (int n = 0; n < writing->nfresh; n++)
	{
		int i = writing->fresh[n];
		TupleTableSlot *slot = bulk_slot(bulk);

		memcpy(slot->tts_values, writing->keys[i], sizeof(RowKey));
		kind->fill(rows[i], slot);
		bulk_put(bulk, slot);
	}
	bulk_flush(bulk);
	bulk_forget(bulk);
	for (int n = 0; n < writing->nfresh; n++)
		row_cache_put(leaf, writing->hashes[writing->fresh[n]], &places[n]);
	for (int n = 0; n < writing->nmet; n++)
		if (!add_to_row(writing, writing->met[n], LOOK_FOR_IT))
			ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
							errmsg("row of \"%s\" was removed at the same time",
								   RelationGetRelationName(bulk_relation(bulk)))));
	bulk_close(bulk);
	CommandCounterIncrement();
	return true;
}

bool
daily_counts_direct(CountRow **rows, int nrows, Oid leaf)
{
	Writing writing;

	if (!write_rows(&writing, &counts, (void **) rows, nrows, leaf))
		return false;
	for (int i = 0; i < nrows; i++)
		rows[i]->is_new_user = false;
	for (int n = 0; n < writing.nfresh; n++)
		rows[writing.fresh[n]]->is_new_user = true;
	for (int n = 0; n < writing.nmet; n++)
		rows[writing.met[n]]->is_new_user = false;
	return true;
}

bool
daily_items_direct(ItemRow **rows, int nrows, Oid leaf)
{
	Writing writing;

	return write_rows(&writing, &items, (void **) rows, nrows, leaf);
}
