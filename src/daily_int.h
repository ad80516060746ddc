/*-------------------------------------------------------------------------
 *
 * daily_int.h
 *	  Daily stats of a batch: the rows that were added up, and the two ways in
 *	  which they get into a table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_DAILY_INT_H
#define EVSTREAM_DAILY_INT_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/date.h"

#include "event.h"

#define AMOUNT_SCALE EVENT_AMOUNT_FRACTION

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

typedef struct TotalRow
{
	DateADT day;
	EventText event_type;
	int64 count;
	int64 users;
	bool has_amount;
	AmountSum amount;
} TotalRow;

/* As a value of SQL, palloc'd; the sum is numeric. */
extern Datum daily_text(EventText text);
extern Datum daily_amount(AmountSum sum);

/*
 * Each adds rows to what a leaf has, in the order given, in a transaction with
 * SPI connected; that of the counts sets is_new_user.
 */
extern void daily_counts_by_sql(CountRow **rows, int nrows, Oid leaf);
extern void daily_items_by_sql(ItemRow **rows, int nrows, Oid leaf);
extern void daily_totals_by_sql(const TotalRow *rows, int nrows, int writer);

/*
 * The same below the level of statements.  False, and nothing is done, where the
 * leaf has something that belongs to that level, such as a trigger.
 */
extern bool daily_counts_direct(CountRow **rows, int nrows, Oid leaf);
extern bool daily_items_direct(ItemRow **rows, int nrows, Oid leaf);

#endif /* EVSTREAM_DAILY_INT_H */
