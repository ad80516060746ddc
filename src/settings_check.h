/*-------------------------------------------------------------------------
 *
 * settings_check.h
 *	  Check hooks of the settings, for settings.c only.
 *
 * None of them raises; a value that holds a secret is refused by a message of
 * its own, as the server's would repeat it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_SETTINGS_CHECK_H
#define EVSTREAM_SETTINGS_CHECK_H

#include "postgres.h"

#include "utils/guc.h"

#include "settings_text.h"

extern bool check_brokers(char **newval, void **extra, GucSource source);
extern bool check_channels(char **newval, void **extra, GucSource source);
extern bool check_duration(char **newval, void **extra, GucSource source);
extern bool check_duration_or_empty(char **newval, void **extra, GucSource source);
extern bool check_group(char **newval, void **extra, GucSource source);
extern bool check_options(char **newval, void **extra, GucSource source);
extern bool check_prefix(char **newval, void **extra, GucSource source);
extern bool check_redis_url(char **newval, void **extra, GucSource source);
extern bool check_start(char **newval, void **extra, GucSource source);
extern bool check_time_zone(char **newval, void **extra, GucSource source);
extern bool check_topic(char **newval, void **extra, GucSource source);
extern bool check_topics(char **newval, void **extra, GucSource source);
extern bool check_traceparent(char **newval, void **extra, GucSource source);

/* A positive duration in microseconds, at most 1000 years; false if it is none. */
extern bool parse_duration(const char *text, int64 *us);

/* SETTING_START_*, or milliseconds since 1970; false if it is neither. */
extern bool parse_start(const char *text, int64 *ms);

#endif /* EVSTREAM_SETTINGS_CHECK_H */
