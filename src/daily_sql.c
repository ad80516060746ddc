/*-------------------------------------------------------------------------
 *
 * daily_sql.c
 *	  Daily stats into their tables by statements: each table gets one, whose
 *	  rows are locked in the order in which they are given.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "daily_int.h"
#include "sql.h"

Datum
daily_amount(AmountSum sum)
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

Datum
daily_text(EventText text)
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

static char *
leaf_name(Oid leaf)
{
	char *name = get_rel_name(leaf);

	if (name == NULL)
		elog(ERROR, "cache lookup failed for relation %u", leaf);
	return quote_qualified_identifier("evstream", name);
}

void
daily_counts_by_sql(CountRow **rows, int nrows, Oid leaf)
{
	static const Oid types[] = {TEXTOID,    DATEOID,        TEXTOID,       INT8OID,
								NUMERICOID, TIMESTAMPTZOID, TIMESTAMPTZOID};
	Columns *columns = make_columns(nrows, lengthof(types), types);

	for (int i = 0; i < nrows; i++)
	{
		const CountRow *row = rows[i];

		columns->values[0][i] = daily_text(row->user_id);
		columns->values[1][i] = DateADTGetDatum(row->day);
		columns->values[2][i] = daily_text(row->event_type);
		columns->values[3][i] = Int64GetDatum(row->count);
		columns->nulls[4][i] = !row->has_amount;
		columns->values[4][i] = row->has_amount ? daily_amount(row->amount) : (Datum) 0;
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

void
daily_items_by_sql(ItemRow **rows, int nrows, Oid leaf)
{
	static const Oid types[] = {TEXTOID, TEXTOID, DATEOID, INT8OID, INT8OID, INT8OID, INT8OID};
	Columns *columns = make_columns(nrows, lengthof(types), types);

	for (int i = 0; i < nrows; i++)
	{
		const ItemRow *row = rows[i];

		columns->values[0][i] = daily_text(row->user_id);
		columns->values[1][i] = daily_text(row->item_id);
		columns->values[2][i] = DateADTGetDatum(row->day);
		columns->values[3][i] = Int64GetDatum(row->views);
		columns->values[4][i] = Int64GetDatum(row->clicks);
		columns->values[5][i] = Int64GetDatum(row->purchases);
		columns->values[6][i] = Int64GetDatum(row->count);
	}
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

void
daily_totals_by_sql(const TotalRow *rows, int nrows, int writer)
{
	static const Oid types[] = {DATEOID, TEXTOID, INT8OID, INT8OID, NUMERICOID};
	Columns *columns = make_columns(nrows, lengthof(types), types);

	for (int i = 0; i < nrows; i++)
	{
		columns->values[0][i] = DateADTGetDatum(rows[i].day);
		columns->values[1][i] = daily_text(rows[i].event_type);
		columns->values[2][i] = Int64GetDatum(rows[i].count);
		columns->values[3][i] = Int64GetDatum(rows[i].users);
		columns->nulls[4][i] = !rows[i].has_amount;
		columns->values[4][i] = rows[i].has_amount ? daily_amount(rows[i].amount) : (Datum) 0;
	}
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
