/*-------------------------------------------------------------------------
 *
 * settings_fuzz.c
 *	  The texts of settings and of the secrets file.
 *
 * built with: src/settings_text.c src/kafka*.c src/redis*.c src/event*.c; libraries: -lrdkafka -lhiredis
 *
 * All parsers see the same text.  What is accepted is what the users of the
 * setting can use, and what is refused is not repeated where it may be a secret.
 *
 *-------------------------------------------------------------------------
 */
#include "../src/event.h"
#include "../src/kafka.h"
#include "../src/redis.h"
#include "../src/settings_text.h"
#include "fuzz.h"

static void
check_url(const char *text)
{
	const char *fault = text_redis_url(text, true);
	char *host = NULL;
	int port;
	int db;

	if (fault == NULL)
	{
		require(redis_url_parts(text, &host, &port, &db), "a good URL can be taken apart");
		require(host != NULL && host[0] != '\0', "it has a host");
		require(strncmp(text, "unix:", 5) == 0 || (port >= 1 && port <= 65535 && db >= 0),
				"a port and a database");
		require(strncmp(text, "rediss:", 7) != 0 || text_redis_url(text, false) == TEXT_NO_TLS,
				"TLS is asked for");
	}
	else
	{
		require(event_text_valid(fault, strlen(fault)), "a fault is a text");
		(void) redis_url_parts(text, &host, &port, &db);
	}
	free(host);
}

static void
check_lists(const char *text)
{
	const char *pos = text;
	const char *item;
	size_t len;
	size_t items = 0;
	size_t commas = 0;

	for (const char *p = text; *p; p++)
		commas += *p == ',';
	while (next_item(&pos, &item, &len))
	{
		require(item >= text && item + len <= text + strlen(text) && memchr(item, ',', len) == NULL,
				"an item is within the text");
		items++;
		if (text_is_topics(text) && !text_is_empty(text))
			require(text_is_topic(item, len), "topics are topics");
		if (text_is_channels(text) && !text_is_empty(text))
			require(len >= 1 && len <= TEXT_CHANNEL_MAX, "channels have names");
		if (text_is_brokers(text) && !text_is_empty(text))
			require(len >= 1, "brokers have names");
	}
	require(items == commas + 1, "one item more than commas");
}

/* key=value;…: what is accepted must not hold a secret, nor say it when refused. */
static void
check_options(const char *text)
{
	char *fault = kafka_options_check(text);
	const char *secret;

	if (fault == NULL)
	{
		require(strcasestr(text, "password") == NULL ||
					strcasestr(text, "password") > strchr(text, '='),
				"no password among the keys");
		return;
	}
	require(fault[0] != '\0' && strlen(fault) < KAFKA_ERROR_SIZE, "a fault is a text");
	secret = strstr(text, "s3cr3t");
	if (secret != NULL && secret > text && secret[-1] == '=')
		require(strstr(fault, "s3cr3t") == NULL || strcasestr(text, "password") == NULL,
				"a password is not repeated");
	free(fault);
}

static void
check_secrets(const char *text)
{
	char *copy = strdup(text);
	char *next = copy;
	size_t len = strlen(text);

	require(copy != NULL, "memory");
	while (next != NULL)
	{
		char *key;
		char *value;
		TextLine kind = text_secrets_line(&next, &key, &value);

		require(next == NULL || (next > copy && next <= copy + len),
				"the next line is in the text");
		if (kind == TEXT_LINE_PAIR)
		{
			char *fault = kafka_secret_check(key, value);

			require(key[0] != '\0' && strchr(key, ' ') == NULL &&
						value + strlen(value) <= copy + len,
					"a pair has a key");
			free(fault);
		}
		if (kind == TEXT_LINE_HEADING)
			require(key + strlen(key) <= copy + len, "a heading has a name");
	}
	free(copy);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text;
	int64_t ms;

	/* the server's own limits are far below */
	if (size > 65536)
		return 0;
	text = malloc(size + 1);
	if (text == NULL)
		return 0;
	memcpy(text, data, size);
	text[size] = '\0';
	check_url(text);
	check_lists(text);
	if (text_start(text, &ms))
		require(ms == TEXT_START_EARLIEST || ms == TEXT_START_LATEST ||
					(ms >= 0 && ms < INT64_C(253402300800000)),
				"a start is a time");
	check_options(text);
	check_secrets(text);
	free(text);
	return 0;
}
