/*-------------------------------------------------------------------------
 *
 * partition.h
 *	  Leaves of the partitioned tables: made, found, adopted and dropped.
 *
 * evstream.events has a leaf for each UTC day of received_at
 * (events_YYYYMMDD), the daily stats one for each month of their day
 * (daily_counts_YYYYMM, daily_items_YYYYMM) beside the default one.  Leaves
 * are no members of the extension, so that pg_dump dumps them like any table,
 * and have indexes of their own, which their parents have not.
 *
 * All functions run in a transaction with SPI connected (worker_run), and
 * raise errors as SQL does, among them lock_not_available.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_PARTITION_H
#define EVSTREAM_PARTITION_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/date.h"

typedef enum PartitionStats
{
	PARTITION_COUNTS,
	PARTITION_ITEMS
} PartitionStats;

/* The UTC day of a time. */
extern DateADT partition_day(TimestampTz at);

/*
 * Makes the leaf of evstream.events for the UTC day of received_at, where it
 * does not exist.  Cheap where it does, but not free: the caller remembers the
 * day.  Two that make the same one wait for each other.
 */
extern void partition_ensure_events(TimestampTz received_at);

/* Makes the leaf of evstream.ids for a segment, which has none yet. */
extern void partition_make_ids(int32 segment_id);

/*
 * Makes the leaves of the daily stats for the month of today and the next two,
 * unless the default leaf has rows of the month already.  False: some are still
 * to be made, as the default leaf is in use.
 */
extern bool partition_ensure_months(DateADT today);

/*
 * The leaf that takes the rows of that day: for INSERT ... ON CONFLICT, which
 * the parents cannot have.  To be asked for in each transaction.  Where a leaf
 * is attached between the answer and the INSERT, that fails with
 * check_violation, and the transaction has to be tried again.
 */
extern Oid partition_leaf(PartitionStats stats, DateADT day);

/*
 * Attaches a table that has the name of a leaf and is none: what a partial
 * restore can leave behind.  Tables up to and including `after` in the order
 * of names are passed over.  Gives the name in `name`, before it attaches, and
 * returns true; false where there is none left.
 */
extern bool partition_adopt_next(const char *after, char name[NAMEDATALEN]);

/*
 * The oldest leaf of evstream.events whose whole day is before the UTC day
 * `before`; false where there is none.
 */
extern bool partition_oldest_events(DateADT before, char name[NAMEDATALEN]);

/*
 * The oldest monthly leaf of these stats before the month that begins with
 * `before`; false where there is none.
 */
extern bool partition_oldest_month(PartitionStats stats, DateADT before, char name[NAMEDATALEN]);

/*
 * Writes the days of the events in that leaf of evstream.events, in the zone
 * of the stats, into evstream.unstored_days.  Reads all of the leaf.
 */
extern void partition_record_days(const char *name);

/*
 * Is there evstream.stored_days, the days of the events in each leaf of
 * evstream.events?  Version 1.0 has none.
 */
extern bool partition_knows_days(void);

/*
 * The days of the events that were in that leaf of evstream.events can not be
 * rebuilt any more: it is dropped, or made anew.  With if_empty: if none of
 * those events is there.
 */
extern void partition_give_up_days(const char *name, bool if_empty);

/*
 * Drops a leaf, if its locks and those of its parent can be had at once or
 * almost so; else returns false, and nothing has changed.
 */
extern bool partition_drop(const char *name);

#endif /* EVSTREAM_PARTITION_H */
