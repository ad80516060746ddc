/*-------------------------------------------------------------------------
 *
 * redis_fuzz.c
 *	  A Redis that answers anything, for the adapter and what reads its answers.
 *
 * built with: src/redis*.c src/event*.c; libraries: -lhiredis
 *
 * The first byte says whether there is a password and a database, whose answers
 * come first; the rest is what Redis sends before it closes the connection.
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../src/event.h"
#include "../src/redis_answer.h"
#include "fuzz.h"

#define SENT_MAX 65536

static char path[64];

static void
remove_path(void)
{
	unlink(path);
}

static int
listener(void)
{
	static int fd = -1;
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	if (fd >= 0)
		return fd;
	snprintf(path, sizeof(path), "/tmp/evstream-redis-fuzz-%d", (int) getpid());
	unlink(path);
	atexit(remove_path);
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	require(fd >= 0 && bind(fd, (struct sockaddr *) &address, sizeof(address)) == 0 &&
				listen(fd, 16) == 0,
			"a socket");
	return fd;
}

static void
check_message(const char *text)
{
	for (const char *p = text; *p; p++)
		require((unsigned char) *p >= 0x20 && *p != 0x7f, "no control characters in a message");
	require(event_text_valid(text, strlen(text)), "a message is UTF-8");
}

/* As the notifier takes it, and more often than it does. */
static void
look_at(RedisReply *reply, int depth)
{
	RedisStatus status = redis_reply_status(reply);
	RedisSent sent;
	const char *subscriber;
	const char *why;
	const char *text;
	size_t len = 0;

	text = redis_reply_text(reply, &len);
	if (status != RSTATUS_OK)
	{
		require(text != NULL, "an error has a text");
		check_message(text);
	}
	(void) redis_reply_integer(reply);
	(void) redis_answer_is_ok(reply);
	redis_answer_sent(reply, &sent);
	require(sent.epoch >= 0 && sent.epoch <= REDIS_EPOCH_MAX && sent.why != NULL &&
				sent.unpublished >= 0 && sent.nasides <= redis_reply_count(reply),
			"what the script has said is in its range");
	for (size_t i = 0; i < sent.nasides && i < 1000; i++)
	{
		if (redis_answer_aside(reply, i, &subscriber, &why))
		{
			char *copy = strdup(why);

			require(copy != NULL && strlen(subscriber) < SENT_MAX, "names are texts");
			redis_clean_text(copy);
			check_message(copy);
			free(copy);
		}
	}
	if (text != NULL)
	{
		uint8_t id[16];
		int64_t us;
		int64_t offset;

		require(text[len] == '\0', "a text has its end");
		if (redis_answer_cursor(text, &us, id, &offset))
			require(us / 1000000 >= INT64_C(-62135596800) && us / 1000000 < INT64_C(253402300800),
					"a cursor's time");
	}
	for (size_t i = 0; i < redis_reply_count(reply) && i < 1000 && depth < 20; i++)
	{
		if (redis_reply_at(reply, i) != NULL)
			look_at((RedisReply *) redis_reply_at(reply, i), depth + 1);
	}
	require(redis_reply_at(reply, redis_reply_count(reply)) == NULL, "nothing behind the end");
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = listener();
	int server;
	char url[128];
	RedisConf conf = {.url = url};
	RedisStatus status;
	char error[REDIS_ERROR_SIZE];
	const char *ping[] = {"PING"};
	RedisClient *client;
	RedisReply *reply;
	int turns = 0;

	if (size < 1 || size > SENT_MAX)
		return 0;
	snprintf(url, sizeof(url), "unix://%s", path);
	if (data[0] & 1)
		conf.password = "secret";
	if (data[0] & 2)
		conf.user = "user";
	client = redis_open(&conf, &status, error);
	require(client != NULL, "a client");
	server = accept(fd, NULL, NULL);
	require(server >= 0, "a connection");
	require(send(server, data + 1, size - 1, MSG_NOSIGNAL) == (ssize_t) size - 1, "an answer");

	do
	{
		struct pollfd ask = {redis_fd(client), POLLIN, 0};

		/* all of it has been read: Redis leaves */
		if (poll(&ask, 1, 0) == 0 && turns > 0)
			shutdown(server, SHUT_WR);
		status = redis_advance(client);
		if (status == RSTATUS_OK && turns == 0 && redis_is_ready(client))
			require(redis_command(client, 1, ping, NULL), "memory");
		while ((reply = redis_reply(client)) != NULL)
		{
			look_at(reply, 0);
			redis_reply_free(reply);
		}
		require(++turns < 1000, "it ends");
	} while (status == RSTATUS_OK);
	require(redis_error(client)[0] != '\0', "an end has a reason");
	check_message(redis_error(client));
	redis_close(client);
	close(server);
	return 0;
}
