/*-------------------------------------------------------------------------
 *
 * bulk.h
 *	  Rows straight into one table and its indexes, many to a page and a WAL
 *	  record, as COPY does it; and rows found by a unique key.
 *
 * In a transaction; raises errors as SQL does.  Below the level of triggers and
 * constraints: for tables of our own.  Indexes are kept whatever they are.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_BULK_H
#define EVSTREAM_BULK_H

#include "postgres.h"

#include "executor/tuptable.h"
#include "utils/relcache.h"

typedef struct Bulk Bulk;

/*
 * A row that was written has its key in common with another one that lives, or
 * that a transaction in progress has written.  Called right after the row got
 * into the indexes, with its number among those that were put, from 0; returns
 * true if the row is to be taken back.
 */
typedef bool (*BulkConflict)(Bulk *bulk, int64 number, TupleTableSlot *slot, void *arg);

/*
 * Opens a table of ncolumns columns of these types, in the present memory
 * context; raises datatype_mismatch if it has others, and wrong_object_type if it is
 * something else than a table.  Without `conflict` a key
 * that is there already raises unique_violation.
 */
extern Bulk *bulk_open(Oid relid, const Oid *types, int ncolumns, BulkConflict conflict, void *arg);
extern Relation bulk_relation(const Bulk *bulk);

/*
 * The next row's slot, for the caller to fill in tts_values and tts_isnull (at
 * first all false).  What the values point to has to live until the row is
 * written: bulk_context() is for that, it is emptied then.  bulk_put() gives the
 * slot back, and bulk_flush() writes what was put.  A row that breaks a constraint
 * of the table, or its bounds as a partition, raises.
 */
extern TupleTableSlot *bulk_slot(Bulk *bulk);
extern MemoryContext bulk_context(Bulk *bulk);
extern void bulk_put(Bulk *bulk, TupleTableSlot *slot);
extern void bulk_flush(Bulk *bulk);

/* From now on the places of the rows are kept in an array of the caller's, by their numbers. */
extern void bulk_keep_places(Bulk *bulk, ItemPointerData *places);

/* Columns of a key; the table has a unique index on just these. */
typedef struct BulkKey
{
	int ncolumns;
	AttrNumber columns[INDEX_MAX_KEYS];
} BulkKey;

/*
 * Does anything else than that key have to be unique?  Only a conflict in the key is
 * settled: with others a bulk with `conflict` must not write.
 */
extern bool bulk_has_other_keys(Bulk *bulk, const BulkKey *key);

/*
 * The row of that key, or NULL: as of the first call, or of the last one that
 * came after bulk_replace() gave false or bulk_forget().  A bulk has one key for all calls.
 */
extern TupleTableSlot *bulk_find(Bulk *bulk, const BulkKey *key, const Datum *values);

/*
 * Tells by tell() which index entries share the first ncolumns columns of the index with
 * that key, whether their rows live or not: their keys, in the order of bulk_find()'s
 * values, and places; they live until tell() returns.  False if it did not get to all of
 * them, as of very many.
 */
typedef void (*BulkNeighbour)(const Datum *values, const ItemPointerData *tid, void *arg);
extern bool bulk_neighbours(Bulk *bulk, const BulkKey *key, const Datum *values, int ncolumns,
							BulkNeighbour tell, void *arg);

/*
 * The index entry that led to the row found last, or leads to its new version
 * since bulk_replace(); and the row of that key if it is there, or NULL if another
 * one is, or none: any tid may be asked for.
 */
extern const ItemPointerData *bulk_entry(const Bulk *bulk);
extern TupleTableSlot *bulk_find_at(Bulk *bulk, const BulkKey *key, const Datum *values,
									const ItemPointerData *tid);

/*
 * A slot with the values of the row found last, for the caller to change those
 * that are not of the key.  bulk_replace() writes them as the new version of the
 * row, and waits for who else has it in hand; false if the row is not any more as
 * it was found: it is to be looked for again.
 */
extern TupleTableSlot *bulk_changed(Bulk *bulk);
extern bool bulk_replace(Bulk *bulk);
extern void bulk_forget(Bulk *bulk);

/*
 * Is there a row of that key, other than `own`, which lives or will when a
 * transaction in progress commits?  Waits for the ends of such transactions.
 */
extern bool bulk_settle(Bulk *bulk, const BulkKey *key, const Datum *values, ItemPointer own);

/* Writes what is left, and closes the table; its lock stays. */
extern void bulk_close(Bulk *bulk);

#endif /* EVSTREAM_BULK_H */
