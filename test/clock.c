/*-------------------------------------------------------------------------
 *
 * clock.c
 *	  A time of day that tests set: a library for LD_PRELOAD.
 *
 * The file that EVSTREAM_TEST_CLOCK names holds how many microseconds to add, as
 * eight bytes; all processes see it change at once.  Clocks that only measure
 * are what they are.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define US_PER_SECOND INT64_C(1000000)

static volatile const int64_t *offset_us;

__attribute__((constructor)) static void
find_offset(void)
{
	const char *name = getenv("EVSTREAM_TEST_CLOCK");
	int fd = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
	void *map;

	if (fd < 0)
		return;
	map = mmap(NULL, sizeof(*offset_us), PROT_READ, MAP_SHARED, fd, 0);
	if (map != MAP_FAILED)
		offset_us = map;
	close(fd);
}

int
clock_gettime(clockid_t clock, struct timespec *ts)
{
	int rc = (int) syscall(SYS_clock_gettime, clock, ts);

	if (rc == 0 && offset_us && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
	{
		int64_t us = ts->tv_sec * US_PER_SECOND + ts->tv_nsec / 1000 + *offset_us;

		ts->tv_sec = us / US_PER_SECOND;
		ts->tv_nsec = us % US_PER_SECOND * 1000 + ts->tv_nsec % 1000;
	}
	return rc;
}

int
gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
	struct timespec ts;

	(void) tz;
	clock_gettime(CLOCK_REALTIME, &ts);
	tv->tv_sec = ts.tv_sec;
	tv->tv_usec = ts.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *at)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	if (at)
		*at = ts.tv_sec;
	return ts.tv_sec;
}
