/*-------------------------------------------------------------------------
 *
 * event_value.h
 *	  Numbers inside an event; the other texts of event_value.c are in event.h.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_EVENT_VALUE_H
#define EVSTREAM_EVENT_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Is the whole text one JSON number? */
extern bool event_is_number(const char *data, size_t len);

/*
 * A JSON number as plain decimal with at most int_digits before and fraction
 * digits behind the point, rounded half away from zero, without superfluous
 * zeros, never "-0".  dst has room for int_digits + fraction + 3 bytes, and
 * int_digits + fraction is at most EVENT_DECIMAL_MAX.  Returns the length, 0
 * where the number is too large.  The text is not NUL-terminated.
 */
#define EVENT_DECIMAL_MAX 40
extern size_t event_decimal(const char *data, size_t len, int int_digits, int fraction, char *dst);

/*
 * A JSON number as a time: seconds since 1970, or milliseconds where its
 * magnitude is over 1e11; exact, rounded half away from zero to microseconds.
 * False outside the years 0001 to 9999.
 */
extern bool event_epoch(const char *data, size_t len, int64_t *us);

/* First and last microsecond of the years 0001 to 9999, since 1970. */
#define EVENT_TIME_MIN INT64_C(-62135596800000000)
#define EVENT_TIME_MAX INT64_C(253402300799999999)

#endif /* EVSTREAM_EVENT_VALUE_H */
