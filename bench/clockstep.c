/*-------------------------------------------------------------------------
 *
 * clockstep.c
 *	  A wall clock that tests can set: with LD_PRELOAD, a program's time of day
 *	  is off by the microseconds that the file $CLOCKSTEP says, a 64-bit number
 *	  in the machine's order, which may change at any time.
 *
 * CLOCK_MONOTONIC goes on as ever, as it does where a real clock is set.
 * Deadlines of C11's condition variables, which librdkafka uses, are wall-clock
 * times and are moved back; those of POSIX may be of either clock, and are not.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE

#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define US_PER_SECOND INT64_C(1000000)

static volatile const int64_t *microseconds;

static void __attribute__((constructor)) open_file(void)
{
	const char *name = getenv("CLOCKSTEP");
	int file = name != NULL ? open(name, O_RDONLY | O_CLOEXEC) : -1;
	void *map;

	if (file < 0)
		return;
	map = mmap(NULL, sizeof(*microseconds), PROT_READ, MAP_SHARED, file, 0);
	close(file);
	if (map != MAP_FAILED)
		microseconds = map;
}

/* Moves a time by the step, in that direction. */
static void
move(struct timespec *at, int direction)
{
	int64_t us;

	if (microseconds == NULL)
		return;
	us = at->tv_sec * US_PER_SECOND + at->tv_nsec / 1000 + direction * *microseconds;
	at->tv_sec = us / US_PER_SECOND;
	at->tv_nsec = us % US_PER_SECOND * 1000 + at->tv_nsec % 1000;
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = (int) syscall(SYS_clock_gettime, clock, now);

	if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		move(now, 1);
	return result;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec at;

	(void) zone;
	clock_gettime(CLOCK_REALTIME, &at);
	now->tv_sec = at.tv_sec;
	now->tv_usec = at.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *now)
{
	struct timespec at;

	clock_gettime(CLOCK_REALTIME, &at);
	if (now != NULL)
		*now = at.tv_sec;
	return at.tv_sec;
}

int
timespec_get(struct timespec *now, int base)
{
	return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, now) == 0 ? base : 0;
}

/* ---- deadlines, for the kernel's clock ---- */

int
cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex,
			  const struct timespec *restrict deadline)
{
	static int (*next)(cnd_t *, mtx_t *, const struct timespec *);
	struct timespec at = *deadline;

	if (next == NULL)
		next = dlsym(RTLD_NEXT, "cnd_timedwait");
	move(&at, -1);
	return next(condition, mutex, &at);
}
