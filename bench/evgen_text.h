/*-------------------------------------------------------------------------
 *
 * evgen_text.h
 *	  The event generator's small tools: random numbers, fast text, a buffered
 *	  file, times.
 *
 * The generator is one translation unit, bench/evgen.c; its parts are headers
 * so that one compiler call builds it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVGEN_TEXT_H
#define EVGEN_TEXT_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SECOND_US INT64_C(1000000)
#define DAY_US    (86400 * SECOND_US)

/* put_time: local time without saying which, which readers take for UTC. */
#define NO_OFFSET INT32_MIN

static void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* Complain on standard error and end with status 1. */
static void
die(const char *format, ...)
{
	va_list args;

	fputs("evgen: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

/* Zeroed memory, or the end. */
static void *
need_memory(size_t count, size_t size)
{
	void *memory = calloc(count, size);

	if (memory == NULL)
		die("out of memory (%zu bytes)", count * size);
	return memory;
}

/* Seconds of a clock that only runs forward. */
static double
clock_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/* ---- random numbers (splitmix64) ---- */

static inline uint64_t
mix64(uint64_t x)
{
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static inline uint64_t
random_bits(uint64_t *state)
{
	*state += UINT64_C(0x9e3779b97f4a7c15);
	return mix64(*state);
}

/* 0 <= result < n */
static inline uint32_t
random_below(uint64_t *state, uint32_t n)
{
	return (uint32_t) (((random_bits(state) >> 32) * n) >> 32);
}

/* 0 <= result < 1 */
static inline double
random_share(uint64_t *state)
{
	return (random_bits(state) >> 11) * (1.0 / 9007199254740992.0);
}

/* ---- text: each function writes at p and returns the end, without a NUL ---- */

static inline char *
put_bytes(char *p, const char *text, size_t len)
{
	memcpy(p, text, len);
	return p + len;
}

static inline char *
put_text(char *p, const char *text)
{
	return put_bytes(p, text, strlen(text));
}

static inline char *
put_uint(char *p, uint64_t n)
{
	char digits[20];
	int i = sizeof(digits);

	do
		digits[--i] = '0' + n % 10;
	while ((n /= 10) > 0);
	return put_bytes(p, digits + i, sizeof(digits) - i);
}

/* n with leading zeros, exactly width digits */
static inline char *
put_padded(char *p, uint32_t n, int width)
{
	for (int i = width - 1; i >= 0; i--, n /= 10)
		p[i] = '0' + n % 10;
	return p + width;
}

/* the lowest 4 * width bits */
static inline char *
put_hex(char *p, uint64_t n, int width)
{
	for (int i = width - 1; i >= 0; i--, n >>= 4)
		p[i] = "0123456789abcdef"[n & 15];
	return p + width;
}

/* "-12.30", always with two decimals */
static inline char *
put_cents(char *p, int64_t cents)
{
	uint64_t n = cents < 0 ? -(uint64_t) cents : (uint64_t) cents;

	if (cents < 0)
		*p++ = '-';
	p = put_uint(p, n / 100);
	*p++ = '.';
	return put_padded(p, n % 100, 2);
}

/* "2026-11-20" of a number of days since 1970 (proleptic Gregorian) */
static char *
put_day(char *p, int64_t day)
{
	int64_t z = day + 719468;
	int64_t era = z / 146097;
	uint32_t doe = (uint32_t) (z - era * 146097);
	uint32_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	uint32_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
	uint32_t mp = (5 * doy + 2) / 153;
	uint32_t month = mp < 10 ? mp + 3 : mp - 9;

	p = put_padded(p, (uint32_t) (yoe + era * 400 + (month <= 2)), 4);
	*p++ = '-';
	p = put_padded(p, month, 2);
	*p++ = '-';
	return put_padded(p, doy - (153 * mp + 2) / 5 + 1, 2);
}

/*
 * RFC 3339 with 0, 3 or 6 digits of a second, as the clock shows it
 * offset_minutes east of UTC; 0 is written as Z.
 */
static char *
put_time(char *p, int64_t us, int digits, int32_t offset_minutes)
{
	int64_t local = us;

	if (offset_minutes != NO_OFFSET)
		local += offset_minutes * 60 * SECOND_US;
	p = put_day(p, local / DAY_US);

	uint32_t seconds = (uint32_t) (local % DAY_US / SECOND_US);
	uint32_t fraction = (uint32_t) (local % SECOND_US);

	*p++ = 'T';
	p = put_padded(p, seconds / 3600, 2);
	*p++ = ':';
	p = put_padded(p, seconds / 60 % 60, 2);
	*p++ = ':';
	p = put_padded(p, seconds % 60, 2);
	if (digits > 0)
	{
		*p++ = '.';
		p = put_padded(p, digits == 3 ? fraction / 1000 : fraction, digits);
	}
	if (offset_minutes == 0)
		*p++ = 'Z';
	else if (offset_minutes != NO_OFFSET)
	{
		uint32_t distance = offset_minutes < 0 ? -offset_minutes : offset_minutes;

		*p++ = offset_minutes < 0 ? '-' : '+';
		p = put_padded(p, distance / 60, 2);
		*p++ = ':';
		p = put_padded(p, distance % 60, 2);
	}
	return p;
}

/* Microseconds since 1970 of an RFC 3339 time; false if text is none. */
static bool
read_time(const char *text, int64_t *us)
{
	struct tm tm = {0};
	char fraction[10] = "0";
	int used = 0;
	int east_hours = 0, east_minutes = 0;
	int64_t part = 0;

	if (sscanf(text, "%4d-%2d-%2d%*1[Tt ]%2d:%2d:%2d%n", &tm.tm_year, &tm.tm_mon, &tm.tm_mday,
			   &tm.tm_hour, &tm.tm_min, &tm.tm_sec, &used) != 6 ||
		used == 0)
		return false;
	text += used;
	if (*text == '.' && sscanf(text, ".%9[0-9]%n", fraction, &used) == 1)
	{
		text += used;
		for (int i = 0, end = 0; i < 6; i++)
		{
			end = end || fraction[i] == '\0';
			part = part * 10 + (end ? 0 : fraction[i] - '0');
		}
	}
	if ((*text == 'Z' || *text == 'z') && text[1] == '\0')
		text++;
	else if (*text == '+' || *text == '-')
	{
		used = 0;
		if (sscanf(text + 1, "%2d:%2d%n", &east_hours, &east_minutes, &used) != 2 ||
			text[1 + used] != '\0')
			return false;
		if (*text == '-')
			east_hours = -east_hours, east_minutes = -east_minutes;
	}
	else if (*text != '\0')
		return false;
	if (tm.tm_mon < 1 || tm.tm_mon > 12 || tm.tm_mday < 1 || tm.tm_mday > 31 || tm.tm_hour > 23 ||
		tm.tm_min > 59 || tm.tm_sec > 59)
		return false;
	tm.tm_year -= 1900;
	tm.tm_mon -= 1;
	*us = (timegm(&tm) - (east_hours * 60 + east_minutes) * 60) * SECOND_US + part;
	return true;
}

/* ---- a buffered file ---- */

#define WRITER_SIZE (1 << 20)

typedef struct Writer
{
	int fd;
	const char *name; /* for messages */
	size_t used;
	char *buffer;
} Writer;

/* name "-" is standard output; name must outlive the writer. */
static void
writer_open(Writer *writer, const char *name)
{
	bool standard = strcmp(name, "-") == 0;

	writer->name = standard ? "standard output" : name;
	writer->fd = standard ? STDOUT_FILENO : open(name, O_WRONLY | O_CREAT | O_TRUNC, 0666);
	if (writer->fd < 0)
		die("could not open \"%s\": %s", name, strerror(errno));
	writer->used = 0;
	writer->buffer = need_memory(WRITER_SIZE, 1);
}

static void
writer_flush(Writer *writer)
{
	for (size_t done = 0; done < writer->used;)
	{
		ssize_t n = write(writer->fd, writer->buffer + done, writer->used - done);

		if (n < 0 && errno != EINTR)
			die("could not write to %s: %s", writer->name, strerror(errno));
		if (n > 0)
			done += n;
	}
	writer->used = 0;
}

/* Room for len bytes (at most WRITER_SIZE); writer_end() says where it ended. */
static inline char *
writer_room(Writer *writer, size_t len)
{
	if (writer->used + len > WRITER_SIZE)
		writer_flush(writer);
	return writer->buffer + writer->used;
}

static inline void
writer_end(Writer *writer, const char *end)
{
	writer->used = end - writer->buffer;
}

static void
writer_put(Writer *writer, const char *data, size_t len)
{
	while (len > 0)
	{
		size_t part = len < WRITER_SIZE ? len : WRITER_SIZE;

		writer_end(writer, put_bytes(writer_room(writer, part), data, part));
		data += part;
		len -= part;
	}
}

static void
writer_close(Writer *writer)
{
	writer_flush(writer);
	if (writer->fd != STDOUT_FILENO && close(writer->fd) != 0)
		die("could not write to %s: %s", writer->name, strerror(errno));
	free(writer->buffer);
}

#endif /* EVGEN_TEXT_H */
