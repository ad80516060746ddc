/*-------------------------------------------------------------------------
 *
 * clock.h
 *	  A clock that is only for waiting.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_CLOCK_H
#define EVSTREAM_CLOCK_H

#include "postgres.h"

#include <time.h>

/*
 * Microseconds of a clock that no step of the time of day moves: for deadlines
 * and durations, where GetCurrentTimestamp() could make a second last a day.
 * It is the same in all processes, means nothing after a restart of the machine,
 * and begins with a day, so that 0 is long ago.
 */
static inline int64
clock_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64) ts.tv_sec * INT64CONST(1000000) + ts.tv_nsec / 1000 + INT64CONST(86400000000);
}

#endif /* EVSTREAM_CLOCK_H */
