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

#include "compat.h"
#include "event.h"
#include "kafka.h"
#include "redis.h"
#include "settings.h"
#include "settings_check.h"

#define TOPIC_MAX   249
#define GROUP_MAX   255
#define PREFIX_MAX  200
#define CHANNEL_MAX (NAMEDATALEN - 1)
#define YEARS_MAX   1000

static bool
is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

bool
next_item(const char **pos, const char **item, size_t *len)
{
	const char *start = *pos;
	const char *end;

	if (start == NULL)
		return false;
	end = strchr(start, ',');
	*pos = end ? end + 1 : NULL;
	if (end == NULL)
		end = start + strlen(start);
	while (start < end && is_blank(*start))
		start++;
	while (end > start && is_blank(end[-1]))
		end--;
	*item = start;
	*len = end - start;
	return true;
}

static bool
is_empty(const char *text)
{
	while (is_blank(*text))
		text++;
	return *text == '\0';
}

static bool
has_control(const char *text)
{
	for (; *text; text++)
	{
		if ((unsigned char) *text < 0x20 || *text == 0x7f)
			return true;
	}
	return false;
}

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

bool
check_brokers(char **newval, void **extra, GucSource source)
{
	const char *pos = *newval;
	const char *item;
	size_t len;

	if (is_empty(*newval))
		return true;
	if (strpbrk(*newval, "@=") != NULL)
	{
		GUC_check_errcode(ERRCODE_INVALID_PARAMETER_VALUE);
		GUC_check_errmsg("evstream.kafka_brokers must not contain a user or a password");
		GUC_check_errhint("Write sasl.username and sasl.password into the file that "
						  "evstream.secrets_file names.");
		return false;
	}
	while (next_item(&pos, &item, &len))
	{
		if (len == 0 || memchr(item, ' ', len) != NULL || memchr(item, ';', len) != NULL)
		{
			GUC_check_errdetail("The value must be a comma-separated list of host:port.");
			return false;
		}
	}
	return true;
}

static bool
valid_topic(const char *name, size_t len)
{
	if (len == 0 || len > TOPIC_MAX || (len == 1 && name[0] == '.') ||
		(len == 2 && name[0] == '.' && name[1] == '.'))
		return false;
	for (size_t i = 0; i < len; i++)
	{
		char c = name[i];

		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
			  c == '.' || c == '_' || c == '-'))
			return false;
	}
	return true;
}

bool
check_topic(char **newval, void **extra, GucSource source)
{
	if (valid_topic(*newval, strlen(*newval)))
		return true;
	GUC_check_errdetail("A topic has 1 to %d characters: letters, digits, \".\", \"_\" and \"-\".",
						TOPIC_MAX);
	return false;
}

bool
check_topics(char **newval, void **extra, GucSource source)
{
	const char *pos = *newval;
	const char *item;
	size_t len;

	if (is_empty(*newval))
		return true;
	while (next_item(&pos, &item, &len))
	{
		if (!valid_topic(item, len))
		{
			GUC_check_errdetail(
				"The value must be a comma-separated list of topics; a topic has 1 to "
				"%d characters: letters, digits, \".\", \"_\" and \"-\".",
				TOPIC_MAX);
			return false;
		}
	}
	return true;
}

bool
check_group(char **newval, void **extra, GucSource source)
{
	if (strlen(*newval) <= GROUP_MAX && !has_control(*newval))
		return true;
	GUC_check_errdetail("A group has at most %d bytes and no control characters.", GROUP_MAX);
	return false;
}

bool
check_options(char **newval, void **extra, GucSource source)
{
	char *fault;

	if (is_empty(*newval))
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
	return false;
}

bool
check_prefix(char **newval, void **extra, GucSource source)
{
	if (strlen(*newval) <= PREFIX_MAX && !has_control(*newval))
		return true;
	GUC_check_errdetail("The prefix has at most %d bytes and no control characters.", PREFIX_MAX);
	return false;
}

bool
check_channels(char **newval, void **extra, GucSource source)
{
	const char *pos = *newval;
	const char *item;
	size_t len;

	if (is_empty(*newval))
		return true;
	while (next_item(&pos, &item, &len))
	{
		if (len == 0 || len > CHANNEL_MAX)
		{
			GUC_check_errdetail(
				"The value must be a comma-separated list of channels of 1 to %d bytes.",
				CHANNEL_MAX);
			return false;
		}
	}
	return true;
}

bool
check_redis_url(char **newval, void **extra, GucSource source)
{
	const char *url = *newval;
	const char *rest;
	const char *db;
	size_t hostlen;

	if (*url == '\0')
		return true;

	/* A password may be anywhere in a URL that is wrong: never repeat it. */
	GUC_check_errcode(ERRCODE_INVALID_PARAMETER_VALUE);
	if (strchr(url, '@') != NULL || strchr(url, '?') != NULL)
	{
		GUC_check_errmsg("evstream.redis_url must not contain a user or a password");
		GUC_check_errhint("Write redis_user and redis_password into the file that "
						  "evstream.secrets_file names.");
		return false;
	}
	GUC_check_errmsg("invalid value for parameter \"evstream.redis_url\"");
	GUC_check_errhint("Write it as redis://host:port/db, rediss://host:port/db or unix:///path.");
	if (has_control(url) || strchr(url, ' ') != NULL)
	{
		GUC_check_errdetail("The URL contains a blank or a control character.");
		return false;
	}
	if (strncmp(url, "unix://", 7) == 0)
	{
		if (url[7] == '/')
			return true;
		GUC_check_errdetail("The path of the socket must be absolute.");
		return false;
	}
	if (strncmp(url, "redis://", 8) == 0)
		rest = url + 8;
	else if (strncmp(url, "rediss://", 9) == 0 && !redis_has_tls())
	{
		GUC_check_errcode(ERRCODE_FEATURE_NOT_SUPPORTED);
		GUC_check_errmsg("this build of evstream has no TLS for Redis");
		GUC_check_errdetail("TLS came with version 1.0 of the library hiredis.");
		GUC_check_errhint("Use redis:// or unix://, or build evstream with hiredis 1.0 or later.");
		return false;
	}
	else if (strncmp(url, "rediss://", 9) == 0)
		rest = url + 9;
	else
	{
		GUC_check_errdetail("The URL must begin with redis://, rediss:// or unix://.");
		return false;
	}

	db = strchr(rest, '/');
	hostlen = db ? (size_t) (db - rest) : strlen(rest);
	if (db != NULL && db[1 + strspn(db + 1, "0123456789")] != '\0')
	{
		GUC_check_errdetail("What follows the host must be the number of a database.");
		return false;
	}
	if (hostlen > 0 && *rest == '[')
	{
		const char *end = memchr(rest, ']', hostlen);

		if (end == NULL)
		{
			GUC_check_errdetail("The host's address has no closing bracket.");
			return false;
		}
		hostlen -= end + 1 - rest;
		rest = end + 1;
	}
	else if (hostlen > 0 && *rest != ':')
	{
		const char *colon = memchr(rest, ':', hostlen);
		size_t skip = colon ? (size_t) (colon - rest) : hostlen;

		rest += skip;
		hostlen -= skip;
	}
	else
	{
		GUC_check_errdetail("The host is missing.");
		return false;
	}
	if (hostlen > 0)
	{
		size_t digits = strspn(rest + 1, "0123456789");
		int port = digits > 0 && digits <= 5 ? atoi(rest + 1) : 0;

		if (*rest != ':' || digits + 1 != hostlen || port < 1 || port > 65535)
		{
			GUC_check_errdetail("What follows the host's name must be a port.");
			return false;
		}
	}
	return true;
}

bool
parse_start(const char *text, int64 *ms)
{
	char buf[64];
	size_t len = strlen(text);
	int64_t us;

	if (pg_strcasecmp(text, "earliest") == 0)
	{
		*ms = SETTING_START_EARLIEST;
		return true;
	}
	if (pg_strcasecmp(text, "latest") == 0)
	{
		*ms = SETTING_START_LATEST;
		return true;
	}
	if (len < 10 || len > 40)
		return false;

	/* Also as PostgreSQL writes it: a date alone, an offset of hours alone. */
	strcpy(buf, text);
	if (len == 10)
		strcat(buf, "T00:00:00Z");
	else if ((buf[len - 3] == '+' || buf[len - 3] == '-') && len > 16)
		strcat(buf, ":00");
	if (!event_parse_time(buf, strlen(buf), &us) || us < 0)
		return false;
	*ms = us / 1000;
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
