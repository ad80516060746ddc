/*-------------------------------------------------------------------------
 *
 * settings_check.c
 *	  Check hooks of the settings.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <stdlib.h>

#include "pgtime.h"
#include "tcop/tcopprot.h"

#include "compat.h"
#include "event.h"
#include "kafka.h"
#include "redis.h"
#include "settings.h"
#include "settings_check.h"
#include "settings_text.h"

#define GROUP_MAX  255
#define PREFIX_MAX 200
#define YEARS_MAX  1000

StaticAssertDecl(TEXT_CHANNEL_MAX == NAMEDATALEN - 1, "names of channels");
StaticAssertDecl(TEXT_START_EARLIEST == SETTING_START_EARLIEST &&
					 TEXT_START_LATEST == SETTING_START_LATEST,
				 "where a topic begins");

bool
parse_duration(const char *text, int64 *us)
{
	Interval span;
	int64 months;
	int64 days;

	/* Seconds, as a bare number would be read, are never meant. */
	if (text[strspn(text, "0123456789. \t")] == '\0' || !compat_parse_interval(text, &span))
		return false;
	if (abs(span.month) > YEARS_MAX * 12 || abs(span.day) > YEARS_MAX * 366 ||
		span.time > YEARS_MAX * 366 * USECS_PER_DAY || span.time < -YEARS_MAX * 366 * USECS_PER_DAY)
		return false;
	months = (int64) span.month * 30 * USECS_PER_DAY;
	days = (int64) span.day * USECS_PER_DAY;
	*us = months + days + span.time;
	return *us > 0 && *us <= YEARS_MAX * 366 * USECS_PER_DAY;
}

bool
check_duration(char **newval, void **extra, GucSource source)
{
	int64 us;

	if (parse_duration(*newval, &us))
		return true;
	GUC_check_errdetail("The value must be a positive interval of at most %d years, with a unit.",
						YEARS_MAX);
	GUC_check_errhint("Write it as in '30 days' or '12 hours'.");
	return false;
}

bool
check_duration_or_empty(char **newval, void **extra, GucSource source)
{
	if (**newval == '\0' || check_duration(newval, extra, source))
		return true;
	GUC_check_errhint("Write it as in '2 years', or leave it empty to keep everything.");
	return false;
}

/*
 * Refuses what may hold a secret, as GUC_check_errmsg() and so on have it.  The
 * server would log the statement beside the error, so where there is one the
 * error is raised here, without it.
 */
static bool
refuse_unseen(GucSource source)
{
	if (debug_query_string != NULL && (source == PGC_S_FILE || source >= PGC_S_INTERACTIVE))
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg_internal("%s", GUC_check_errmsg_string),
			 GUC_check_errdetail_string ? errdetail_internal("%s", GUC_check_errdetail_string) : 0,
			 GUC_check_errhint_string ? errhint("%s", GUC_check_errhint_string) : 0,
			 errhidestmt(true), errhidecontext(true)));
	return false;
}

bool
check_brokers(char **newval, void **extra, GucSource source)
{
	if (text_is_empty(*newval))
		return true;
	if (strpbrk(*newval, "@=") != NULL)
	{
		GUC_check_errcode(ERRCODE_INVALID_PARAMETER_VALUE);
		GUC_check_errmsg("evstream.kafka_brokers must not contain a user or a password");
		GUC_check_errhint("Write sasl.username and sasl.password into the file that "
						  "evstream.secrets_file names.");
		return refuse_unseen(source);
	}
	if (text_is_brokers(*newval))
		return true;
	GUC_check_errdetail("The value must be a comma-separated list of host:port.");
	return false;
}

bool
check_topic(char **newval, void **extra, GucSource source)
{
	if (text_is_topic(*newval, strlen(*newval)))
		return true;
	GUC_check_errdetail("A topic has 1 to %d characters: letters, digits, \".\", \"_\" and \"-\".",
						TEXT_TOPIC_MAX);
	return false;
}

bool
check_topics(char **newval, void **extra, GucSource source)
{
	if (text_is_topics(*newval))
		return true;
	GUC_check_errdetail("The value must be a comma-separated list of topics; a topic has 1 to "
						"%d characters: letters, digits, \".\", \"_\" and \"-\".",
						TEXT_TOPIC_MAX);
	return false;
}

bool
check_group(char **newval, void **extra, GucSource source)
{
	if (strlen(*newval) <= GROUP_MAX && !text_has_control(*newval))
		return true;
	GUC_check_errdetail("A group has at most %d bytes and no control characters.", GROUP_MAX);
	return false;
}

bool
check_options(char **newval, void **extra, GucSource source)
{
	char *fault;

	if (text_is_empty(*newval))
		return true;
	fault = kafka_options_check(*newval);
	if (fault == NULL)
		return true;
	GUC_check_errcode(ERRCODE_INVALID_PARAMETER_VALUE);
	GUC_check_errmsg("invalid value for parameter \"evstream.kafka_options\"");
	GUC_check_errdetail("%s", fault);
	GUC_check_errhint(
		"The value is a list of librdkafka properties, key=value, separated by \";\"; "
		"secrets belong into the file that evstream.secrets_file names.");
	free(fault);
	return refuse_unseen(source);
}

bool
check_prefix(char **newval, void **extra, GucSource source)
{
	if (strlen(*newval) <= PREFIX_MAX && !text_has_control(*newval))
		return true;
	GUC_check_errdetail("The prefix has at most %d bytes and no control characters.", PREFIX_MAX);
	return false;
}

bool
check_channels(char **newval, void **extra, GucSource source)
{
	if (text_is_channels(*newval))
		return true;
	GUC_check_errdetail("The value must be a comma-separated list of channels of 1 to %d bytes.",
						TEXT_CHANNEL_MAX);
	return false;
}

bool
check_redis_url(char **newval, void **extra, GucSource source)
{
	const char *url = *newval;
	const char *fault;

	if (*url == '\0')
		return true;

	/* A password may be anywhere in a URL that is wrong: never repeat it. */
	GUC_check_errcode(ERRCODE_INVALID_PARAMETER_VALUE);
	if (strchr(url, '@') != NULL || strchr(url, '?') != NULL)
	{
		GUC_check_errmsg("evstream.redis_url must not contain a user or a password");
		GUC_check_errhint("Write redis_user and redis_password into the file that "
						  "evstream.secrets_file names.");
		return refuse_unseen(source);
	}
	GUC_check_errmsg("invalid value for parameter \"evstream.redis_url\"");
	GUC_check_errhint("Write it as redis://host:port/db, rediss://host:port/db or unix:///path.");
	fault = text_redis_url(url, redis_has_tls());
	if (fault == TEXT_NO_TLS)
	{
		GUC_check_errcode(ERRCODE_FEATURE_NOT_SUPPORTED);
		GUC_check_errmsg("this build of evstream has no TLS for Redis");
		GUC_check_errdetail("TLS came with version 1.0 of the library hiredis.");
		GUC_check_errhint("Use redis:// or unix://, or build evstream with hiredis 1.0 or later.");
		return false;
	}
	if (fault != NULL)
	{
		GUC_check_errdetail("%s", fault);
		return refuse_unseen(source);
	}
	return true;
}

bool
parse_start(const char *text, int64 *ms)
{
	int64_t parsed = 0;

	if (!text_start(text, &parsed))
		return false;
	*ms = parsed;
	return true;
}

bool
check_start(char **newval, void **extra, GucSource source)
{
	int64 ms;

	if (parse_start(*newval, &ms))
		return true;
	GUC_check_errdetail("The value must be \"earliest\", \"latest\" or a timestamp.");
	GUC_check_errhint("Write a timestamp as in '2026-11-20T12:00:00Z'.");
	return false;
}

/*
 * Anything but a name of a zone is an offset to pg_tzset(), and in POSIX's way:
 * "+02" is two hours west of Greenwich.
 */
static bool
is_zone_name(const char *name)
{
	static const char *const with_digits[] = {"EST5EDT", "CST6CDT", "MST7MDT", "PST8PDT",
											  "GMT0",    "GMT+0",   "GMT-0"};

	if (!((name[0] >= 'A' && name[0] <= 'Z') || (name[0] >= 'a' && name[0] <= 'z')))
		return false;
	if (strpbrk(name, "0123456789,<") == NULL || pg_strncasecmp(name, "Etc/", 4) == 0)
		return true;
	for (int i = 0; i < (int) lengthof(with_digits); i++)
	{
		if (pg_strcasecmp(name, with_digits[i]) == 0)
			return true;
	}
	return false;
}

bool
check_time_zone(char **newval, void **extra, GucSource source)
{
	pg_tz *zone = is_zone_name(*newval) ? pg_tzset(*newval) : NULL;

	if (zone == NULL)
	{
		GUC_check_errdetail("There is no such time zone.");
		GUC_check_errhint(
			"The view pg_timezone_names lists them; for an offset, Etc/GMT-2 is two hours east of UTC.");
		return false;
	}
	if (!pg_tz_acceptable(zone))
	{
		GUC_check_errdetail("The time zone uses leap seconds, which PostgreSQL does not support.");
		return false;
	}
	return true;
}

bool
check_traceparent(char **newval, void **extra, GucSource source)
{
	if (**newval == '\0' || event_traceparent_valid(*newval, strlen(*newval)))
		return true;
	GUC_check_errdetail("The value must be a W3C trace context, or empty.");
	GUC_check_errhint("Write it as in '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'.");
	return false;
}
