/*-------------------------------------------------------------------------
 *
 * daily.h
 *	  Daily stats of a batch.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_DAILY_H
#define EVSTREAM_DAILY_H

#include "postgres.h"

#include "batch.h"

/*
 * Adds the good, new records of the batch to the daily tables, in one fixed
 * order of rows.  In a transaction with SPI connected.
 */
extern void daily_add(const Batch *batch);

#endif /* EVSTREAM_DAILY_H */
