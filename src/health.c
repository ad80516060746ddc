/*-------------------------------------------------------------------------
 *
 * health.c
 *	  What evstream_health() and evstream_metrics() cannot ask for in SQL.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "status.h"

PG_FUNCTION_INFO_V1(evstream_dead_letter_count);

/* evstream.dead_letter_count() returns bigint: an upper bound, null if not known */
Datum
evstream_dead_letter_count(PG_FUNCTION_ARGS)
{
	int64 count = status_dead_letters(MyDatabaseId);

	if (count < 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(count);
}
