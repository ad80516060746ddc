/*-------------------------------------------------------------------------
 *
 * settings_text.c
 *	  What the texts of settings and of the secrets file say.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "event.h"
#include "settings_text.h"

#define DB_DIGITS_MAX 9

const char TEXT_NO_TLS[] = "there is no TLS";

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

bool
text_is_empty(const char *text)
{
	while (is_blank(*text))
		text++;
	return *text == '\0';
}

bool
text_has_control(const char *text)
{
	for (; *text; text++)
	{
		if ((unsigned char) *text < 0x20 || *text == 0x7f)
			return true;
	}
	return false;
}

bool
text_is_topic(const char *name, size_t len)
{
	if (len == 0 || len > TEXT_TOPIC_MAX || (len == 1 && name[0] == '.') ||
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
text_is_topics(const char *text)
{
	const char *pos = text;
	const char *item;
	size_t len;

	while (!text_is_empty(text) && next_item(&pos, &item, &len))
	{
		if (!text_is_topic(item, len))
			return false;
	}
	return true;
}

bool
text_is_brokers(const char *text)
{
	const char *pos = text;
	const char *item;
	size_t len;

	while (!text_is_empty(text) && next_item(&pos, &item, &len))
	{
		if (len == 0 || memchr(item, ' ', len) != NULL || memchr(item, ';', len) != NULL)
			return false;
	}
	return true;
}

bool
text_is_channels(const char *text)
{
	const char *pos = text;
	const char *item;
	size_t len;

	while (!text_is_empty(text) && next_item(&pos, &item, &len))
	{
		if (len == 0 || len > TEXT_CHANNEL_MAX)
			return false;
	}
	return true;
}

const char *
text_redis_url(const char *url, bool has_tls)
{
	const char *rest;
	const char *db;
	size_t hostlen;

	if (text_has_control(url) || strchr(url, ' ') != NULL)
		return "The URL contains a blank or a control character.";
	if (strncmp(url, "unix://", 7) == 0)
		return url[7] == '/' ? NULL : "The path of the socket must be absolute.";
	if (strncmp(url, "redis://", 8) == 0)
		rest = url + 8;
	else if (strncmp(url, "rediss://", 9) == 0)
	{
		if (!has_tls)
			return TEXT_NO_TLS;
		rest = url + 9;
	}
	else
		return "The URL must begin with redis://, rediss:// or unix://.";

	db = strchr(rest, '/');
	hostlen = db ? (size_t) (db - rest) : strlen(rest);
	if (db != NULL &&
		(db[1 + strspn(db + 1, "0123456789")] != '\0' || strlen(db) > 1 + DB_DIGITS_MAX))
		return "What follows the host must be the number of a database.";
	if (hostlen > 0 && *rest == '[')
	{
		const char *end = memchr(rest, ']', hostlen);

		if (end == NULL)
			return "The host's address has no closing bracket.";
		if (end == rest + 1)
			return "The host is missing.";
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
		return "The host is missing.";
	if (hostlen > 0)
	{
		size_t digits = strspn(rest + 1, "0123456789");
		int port = digits > 0 && digits <= 5 ? atoi(rest + 1) : 0;

		if (*rest != ':' || digits + 1 != hostlen || port < 1 || port > 65535)
			return "What follows the host's name must be a port.";
	}
	return NULL;
}

bool
text_start(const char *text, int64_t *ms)
{
	char buf[64];
	size_t len = strlen(text);
	int64_t us;

	if (strcasecmp(text, "earliest") == 0)
	{
		*ms = TEXT_START_EARLIEST;
		return true;
	}
	if (strcasecmp(text, "latest") == 0)
	{
		*ms = TEXT_START_LATEST;
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

static char *
trim(char *text)
{
	char *end;

	while (is_blank(*text))
		text++;
	end = text + strlen(text);
	while (end > text && is_blank(end[-1]))
		end--;
	*end = '\0';
	return text;
}

TextLine
text_secrets_line(char **next, char **key, char **value)
{
	char *line = *next;
	char *equals;

	*key = *value = NULL;
	*next = strchr(line, '\n');
	if (*next != NULL)
		*(*next)++ = '\0';
	line = trim(line);
	if (*line == '\0' || *line == '#')
		return TEXT_LINE_EMPTY;
	if (*line == '[' && line[strlen(line) - 1] == ']')
	{
		line[strlen(line) - 1] = '\0';
		*key = trim(line + 1);
		return TEXT_LINE_HEADING;
	}
	equals = strchr(line, '=');
	if (equals == NULL)
		return TEXT_LINE_WRONG;
	*equals = '\0';
	*key = trim(line);
	*value = trim(equals + 1);
	return **key == '\0' || strchr(*key, ' ') != NULL ? TEXT_LINE_WRONG : TEXT_LINE_PAIR;
}
