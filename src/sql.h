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
#include "executor/spi.h"

/* Microseconds from 1970, where Unix and event.h begin, to 2000, where PostgreSQL does. */
#define UNIX_EPOCH_OFFSET_US ((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

/*
 * Executes a statement with a snapshot of its own, within SPI_connect(); nulls
 * as SPI has it, or NULL.  Raises if the result is not the expected SPI_OK_
 * code; returns the number of rows.
 */
extern uint64 sql_execute(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls,
						  int expected);

/*
 * The same for a statement that comes again and again: parsed and planned once
 * in this process, for any values, and by indexes alone, as the tables here fill
 * faster than statistics follow.  Not for one whose plan should depend on what
 * its tables hold.  Texts are told apart by what they say, so that they may be
 * made anew for each call; read_only as SPI has it.
 */
extern uint64 sql_execute_kept(const char *sql, int nargs, Oid *types, Datum *values,
							   const char *nulls, bool read_only, int expected);

/* The kept plan of such a statement, for a cursor; another text may free it. */
extern SPIPlanPtr sql_plan(const char *sql, int nargs, Oid *types);

/* Lets plans made from now on go by indexes, until AtEOXact_GUC(true, the result). */
extern int sql_by_index(void);

/*
 * Keeps event triggers from firing, until AtEOXact_GUC(true, the result): a
 * trigger that refuses or changes what users define is not meant for leaves, and
 * must not stop the counting.  Those that are ENABLE ALWAYS or ENABLE REPLICA fire.
 */
extern int sql_without_event_triggers(void);

/*
 * A column of a row of the last result, numbered from 1.  A null raises unless
 * the caller asks for it by isnull.
 */
extern Datum sql_column(uint64 row, int number, bool *isnull);

#endif /* EVSTREAM_SQL_H */
