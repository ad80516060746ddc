/*-------------------------------------------------------------------------
 *
 * sql.h
 *	  Small helpers on SPI, and times as the event parser has them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_SQL_H
#define EVSTREAM_SQL_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* Microseconds from 1970, where Unix and event.h begin, to 2000, where PostgreSQL does. */
#define UNIX_EPOCH_OFFSET_US \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

/*
 * Executes a statement with a snapshot of its own, within SPI_connect(); nulls
 * as SPI has it, or NULL.  Raises if the result is not the expected SPI_OK_
 * code; returns the number of rows.
 */
extern uint64 sql_execute(const char *sql, int nargs, Oid *types, Datum *values,
						  const char *nulls, int expected);

/*
 * A column of a row of the last result, numbered from 1.  A null raises unless
 * the caller asks for it by isnull.
 */
extern Datum sql_column(uint64 row, int number, bool *isnull);

#endif							/* EVSTREAM_SQL_H */
