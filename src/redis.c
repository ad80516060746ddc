/*-------------------------------------------------------------------------
 *
 * redis.c
 *	  The adapter to hiredis.
 *
 *-------------------------------------------------------------------------
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <hiredis/hiredis.h>

#include "event.h"
#include "redis.h"

/* TLS came with hiredis 1.0, in a library of its own. */
#if HIREDIS_MAJOR >= 1 && defined(__has_include)
#if __has_include(<hiredis/hiredis_ssl.h>) && __has_include(<openssl/ssl.h>)
#define REDIS_HAVE_TLS 1
#include <hiredis/hiredis_ssl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#endif
#endif

#define DEFAULT_PORT 6379

/* Ours are far smaller; read in turns, as signals and time-outs wait meanwhile. */
#define REPLY_MAX_BYTES    (16 * 1024 * 1024)
#define REPLY_MAX_ELEMENTS 100000
#define TURN_MAX_BYTES     (1024 * 1024)

typedef struct Address
{
	bool tls;
	bool is_socket;
	char *host; /* or the path */
	int port;
	int db;
} Address;

/*
 * The look for a host's address, which can take many seconds, in a thread of its
 * own.  Whoever of the two is last frees it.
 */
typedef struct Lookup
{
	char *host;
	char address[NI_MAXHOST]; /* "": there is none */
	int error;                /* of getaddrinfo() */
	int done[2];              /* a pipe: something to read, or its end, when it is over */
	int users;
} Lookup;

struct RedisClient
{
	redisContext *context; /* NULL while the address is looked for */
	Lookup *lookup;
	char *user;
	char *password;
	Address address;
	bool connected;
	bool wants_write;
	int greetings; /* answers to AUTH and SELECT that are still to come */
	RedisStatus failed;
	char error[REDIS_ERROR_SIZE];
#ifdef REDIS_HAVE_TLS
	SSL_CTX *tls_context;
	SSL *tls; /* of the context of hiredis, which frees it */
#endif
};

bool
redis_has_tls(void)
{
#ifdef REDIS_HAVE_TLS
	return true;
#else
	return false;
#endif
}

/* ---- address ---- */

static char *
copy_part(const char *text, size_t len)
{
	char *copy = malloc(len + 1);

	if (copy != NULL)
	{
		memcpy(copy, text, len);
		copy[len] = '\0';
	}
	return copy;
}

/* Takes a URL apart; false where it is none, or memory ran out. */
static bool
parse_url(const char *url, Address *address)
{
	const char *rest;
	const char *end;
	const char *slash;

	memset(address, 0, sizeof(*address));
	if (strncmp(url, "unix://", 7) == 0)
	{
		address->is_socket = true;
		address->host = copy_part(url + 7, strlen(url + 7));
		return address->host != NULL;
	}
	if (strncmp(url, "redis://", 8) == 0)
		rest = url + 8;
	else if (strncmp(url, "rediss://", 9) == 0)
	{
		address->tls = true;
		rest = url + 9;
	}
	else
		return false;

	slash = strchr(rest, '/');
	if (slash == NULL)
		slash = rest + strlen(rest);
	if (*rest == '[')
	{
		end = memchr(rest, ']', slash - rest);
		if (end == NULL)
			return false;
		address->host = copy_part(rest + 1, end - rest - 1);
		end++;
	}
	else
	{
		end = memchr(rest, ':', slash - rest);
		if (end == NULL)
			end = slash;
		address->host = copy_part(rest, end - rest);
	}
	address->port = *end == ':' ? atoi(end + 1) : DEFAULT_PORT;
	address->db = *slash == '/' ? atoi(slash + 1) : 0;
	return address->host != NULL;
}

bool
redis_url_parts(const char *url, char **host, int *port, int *db)
{
	Address address;
	bool good = parse_url(url, &address);

	*host = address.host;
	*port = address.port;
	*db = address.db;
	return good;
}

/* ---- errors ---- */

static RedisStatus fail(RedisClient *client, RedisStatus status, const char *format, ...)
	__attribute__((format(gnu_printf, 3, 4)));

static RedisStatus
fail(RedisClient *client, RedisStatus status, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(client->error, sizeof(client->error), format, args);
	va_end(args);
	redis_clean_text(client->error);
	if (client->error[0] == '\0')
		strcpy(client->error, "an error without a text");
	client->failed = status;
	return status;
}

/*
 * An answer to AUTH may repeat it, or as much as fits, where Redis does not know
 * the command or has another name for it.
 */
static void
scrub(RedisClient *client)
{
	static const char arguments[] = "with args beginning with";
	char *found = strstr(client->error, arguments);

	if (found != NULL)
		snprintf(found, sizeof(client->error) - (found - client->error), "which it does not know");
	while (client->password != NULL && client->password[0] != '\0' &&
		   (found = strstr(client->error, client->password)) != NULL)
		*found = '\0';
	if (client->error[0] == '\0')
		strcpy(client->error, "an error that repeats the password");
}

static RedisStatus
fail_as_context(RedisClient *client)
{
	const redisContext *context = client->context;

#ifdef REDIS_HAVE_TLS
	if (client->tls != NULL && SSL_get_verify_result(client->tls) != X509_V_OK)
		return fail(client, RSTATUS_CONFIG, "the certificate of %s is not accepted: %s",
					client->address.host,
					X509_verify_cert_error_string(SSL_get_verify_result(client->tls)));
#endif
	if (context->err == REDIS_ERR_EOF)
		return fail(client, RSTATUS_AWAY, "Redis closed the connection");
	return fail(client, context->err == REDIS_ERR_OOM ? RSTATUS_FAILED : RSTATUS_AWAY, "%s",
				context->errstr[0] && strcmp(context->errstr, "Success") != 0
					? context->errstr
					: "the connection has failed");
}

static const struct
{
	const char *code;
	RedisStatus status;
} error_codes[] = {
	{"NOAUTH", RSTATUS_NOAUTH},
	{"WRONGPASS", RSTATUS_NOAUTH},
	{"NOPERM", RSTATUS_NOPERM},
	{"LOADING", RSTATUS_LOADING},
	{"OOM", RSTATUS_OOM},
	{"READONLY", RSTATUS_READONLY},
	{"MISCONF", RSTATUS_MISCONF},
	{"BUSY", RSTATUS_BUSY},
	{"NOSCRIPT", RSTATUS_NOSCRIPT},
	{"WRONGTYPE", RSTATUS_WRONGTYPE},
	{"MASTERDOWN", RSTATUS_READONLY},
};

/*
 * The kind of an error's text.  Redis before 7 puts what a command within a
 * script said behind a text of its own, with a hyphen.
 */
static RedisStatus
classify(const char *text)
{
	for (size_t i = 0; i < sizeof(error_codes) / sizeof(error_codes[0]); i++)
	{
		const char *code = error_codes[i].code;
		size_t len = strlen(code);
		const char *at;

		if (strncmp(text, code, len) == 0 && (text[len] == ' ' || text[len] == '\0'))
			return error_codes[i].status;
		for (at = strstr(text, code); at != NULL; at = strstr(at + 1, code))
		{
			if (at > text && at[-1] == '-' && at[len] == ' ')
				return error_codes[i].status;
		}
	}
	/* in scripts, 7.0 says it without a code, and 8.0 with other words */
	if (strstr(text, "The user executing the script") != NULL ||
		strstr(text, "ACL failure in script") != NULL)
		return RSTATUS_NOPERM;
	/* before 6, and where there is no password */
	if (strncmp(text, "ERR invalid password", 20) == 0 || strncmp(text, "ERR AUTH ", 9) == 0 ||
		strstr(text, "no password is set") != NULL)
		return RSTATUS_NOAUTH;
	return RSTATUS_FAILED;
}

/* ---- TLS ---- */

#ifdef REDIS_HAVE_TLS

/* Whom we trust; in error what is wrong, if something is. */
static bool
prepare_tls(RedisClient *client, const char *ca, char *error)
{
	client->tls_context = SSL_CTX_new(TLS_client_method());
	if (client->tls_context == NULL ||
		!SSL_CTX_set_min_proto_version(client->tls_context, TLS1_2_VERSION) ||
		(ca == NULL && !SSL_CTX_set_default_verify_paths(client->tls_context)))
	{
		snprintf(error, REDIS_ERROR_SIZE, "could not set up TLS");
		return false;
	}
	if (ca != NULL && !SSL_CTX_load_verify_locations(client->tls_context, ca, NULL))
	{
		snprintf(error, REDIS_ERROR_SIZE,
				 "redis_ca names no readable file of CA certificates: \"%s\"", ca);
		return false;
	}
	SSL_CTX_set_verify(client->tls_context, SSL_VERIFY_PEER, NULL);
	return true;
}

/* The certificate has to be of the host that was asked for. */
static RedisStatus
begin_tls(RedisClient *client)
{
	const char *host = client->address.host;
	X509_VERIFY_PARAM *param;
	SSL *ssl;

	ssl = SSL_new(client->tls_context);
	if (ssl == NULL)
		return fail(client, RSTATUS_CONFIG, "could not set up TLS");
	param = SSL_get0_param(ssl);
	/* an address is not a name, and is not sent as one */
	if (!X509_VERIFY_PARAM_set1_ip_asc(param, host) &&
		(!SSL_set_tlsext_host_name(ssl, host) || !SSL_set1_host(ssl, host)))
	{
		SSL_free(ssl);
		return fail(client, RSTATUS_CONFIG, "could not set up TLS");
	}
	ERR_clear_error();
	if (redisInitiateSSL(client->context, ssl) != REDIS_OK)
	{
		SSL_free(ssl);
		return fail(client, RSTATUS_AWAY, "TLS: %s", client->context->errstr);
	}
	client->tls = ssl;
	return RSTATUS_OK;
}

#endif

/* ---- connection ---- */

static bool
queue(RedisClient *client, int argc, const char **argv)
{
	return redis_command(client, argc, argv, NULL);
}

static bool
queue_greetings(RedisClient *client)
{
	/* a user without a password is not to become the default one */
	if (client->password != NULL || client->user != NULL)
	{
		const char *password = client->password ? client->password : "";
		const char *with_user[] = {"AUTH", client->user, password};
		const char *without[] = {"AUTH", password};

		if (!(client->user ? queue(client, 3, with_user) : queue(client, 2, without)))
			return false;
		client->greetings++;
	}
	if (client->address.db != 0)
	{
		char number[16];
		const char *argv[] = {"SELECT", number};

		snprintf(number, sizeof(number), "%d", client->address.db);
		if (!queue(client, 2, argv))
			return false;
		client->greetings++;
	}
	return true;
}

/* ---- the address of a host ---- */

static void
leave_lookup(Lookup *lookup)
{
	if (__atomic_sub_fetch(&lookup->users, 1, __ATOMIC_ACQ_REL) > 0)
		return;
	close(lookup->done[0]);
	close(lookup->done[1]);
	free(lookup->host);
	free(lookup);
}

/* As hiredis does it: IPv4 first. */
static void *
look_up(void *arg)
{
	Lookup *lookup = arg;
	static const int families[] = {AF_INET, AF_INET6};

	for (int i = 0; i < 2 && lookup->address[0] == '\0'; i++)
	{
		struct addrinfo hints = {.ai_family = families[i], .ai_socktype = SOCK_STREAM};
		struct addrinfo *found = NULL;

		lookup->error = getaddrinfo(lookup->host, NULL, &hints, &found);
		if (lookup->error != 0)
			continue;
		if (getnameinfo(found->ai_addr, found->ai_addrlen, lookup->address, sizeof(lookup->address),
						NULL, 0, NI_NUMERICHOST) != 0)
			lookup->address[0] = '\0';
		freeaddrinfo(found);
	}
	while (write(lookup->done[1], "", 1) < 0 && errno == EINTR)
		;
	leave_lookup(lookup);
	return NULL;
}

/* The thread takes no signals: they are the server's. */
static Lookup *
begin_lookup(const char *host)
{
	Lookup *lookup = calloc(1, sizeof(Lookup));
	pthread_t thread;
	sigset_t all;
	sigset_t before;
	int failed;

	if (lookup == NULL)
		return NULL;
	lookup->host = copy_part(host, strlen(host));
	lookup->users = 2;
	if (lookup->host == NULL || pipe(lookup->done) != 0)
	{
		free(lookup->host);
		free(lookup);
		return NULL;
	}
	(void) fcntl(lookup->done[0], F_SETFD, FD_CLOEXEC);
	(void) fcntl(lookup->done[1], F_SETFD, FD_CLOEXEC);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	failed = pthread_create(&thread, NULL, look_up, lookup);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (failed)
	{
		leave_lookup(lookup);
		leave_lookup(lookup);
		return NULL;
	}
	pthread_detach(thread);
	return lookup;
}

/* hiredis makes an array as long as is announced, before there is any of it. */
#if HIREDIS_MAJOR >= 1
typedef size_t ArraySize;
#else
typedef int ArraySize;
#endif

static redisReplyObjectFunctions reply_functions;
static void *(*create_array)(const redisReadTask *, ArraySize);

static void *
create_limited_array(const redisReadTask *task, ArraySize elements)
{
	return elements <= REPLY_MAX_ELEMENTS ? create_array(task, elements) : NULL;
}

static void
limit_arrays(redisReader *reader)
{
	reply_functions = *reader->fn;
	create_array = reply_functions.createArray;
	reply_functions.createArray = create_limited_array;
	reader->fn = &reply_functions;
}

/* Begins to connect to an address that needs no look-up. */
static RedisStatus
connect_to(RedisClient *client, const char *address)
{
	client->context = client->address.is_socket
						  ? redisConnectUnixNonBlock(address)
						  : redisConnectNonBlock(address, client->address.port);
	if (client->context == NULL || client->context->err != 0 || !queue_greetings(client))
		return fail(client, RSTATUS_AWAY, "%s",
					client->context && client->context->err ? client->context->errstr
															: "out of memory");
	limit_arrays(client->context->reader);
	client->wants_write = true;
	return RSTATUS_OK;
}

/* Is the address known?  Until then client->context stays NULL. */
static RedisStatus
finish_lookup(RedisClient *client)
{
	Lookup *lookup = client->lookup;
	struct pollfd ask = {lookup->done[0], POLLIN, 0};
	char address[NI_MAXHOST];
	int error;

	if (poll(&ask, 1, 0) <= 0)
		return RSTATUS_OK;
	memcpy(address, lookup->address, sizeof(address));
	error = lookup->error;
	leave_lookup(lookup);
	client->lookup = NULL;
	if (address[0] == '\0')
		return fail(client, RSTATUS_AWAY, "could not find the address of \"%s\": %s",
					client->address.host, error ? gai_strerror(error) : "it has none");
	return connect_to(client, address);
}

static bool
is_address(const char *host)
{
	unsigned char bytes[sizeof(struct in6_addr)];

	return inet_pton(AF_INET, host, bytes) == 1 || inet_pton(AF_INET6, host, bytes) == 1;
}

RedisClient *
redis_open(const RedisConf *conf, RedisStatus *status, char *error)
{
	RedisClient *client = calloc(1, sizeof(RedisClient));

	*status = RSTATUS_AWAY;
	if (client == NULL || !parse_url(conf->url, &client->address))
	{
		*status = RSTATUS_CONFIG;
		snprintf(error, REDIS_ERROR_SIZE, client ? "the URL cannot be used" : "out of memory");
		redis_close(client);
		return NULL;
	}
	if (client->address.tls && !redis_has_tls())
	{
		*status = RSTATUS_CONFIG;
		snprintf(error, REDIS_ERROR_SIZE, "this build has no TLS for Redis (hiredis %d.%d)",
				 HIREDIS_MAJOR, HIREDIS_MINOR);
		redis_close(client);
		return NULL;
	}
#ifdef REDIS_HAVE_TLS
	ERR_clear_error();
	if (client->address.tls && !prepare_tls(client, conf->ca, error))
	{
		*status = RSTATUS_CONFIG;
		redis_close(client);
		return NULL;
	}
#endif

	if (conf->user != NULL)
		client->user = copy_part(conf->user, strlen(conf->user));
	if (conf->password != NULL)
		client->password = copy_part(conf->password, strlen(conf->password));
	if ((conf->user != NULL && client->user == NULL) ||
		(conf->password != NULL && client->password == NULL))
		(void) fail(client, RSTATUS_AWAY, "out of memory");
	else if (client->address.is_socket || is_address(client->address.host))
		(void) connect_to(client, client->address.host);
	else if ((client->lookup = begin_lookup(client->address.host)) == NULL)
		(void) fail(client, RSTATUS_AWAY, "could not look for its address");
	if (client->failed != RSTATUS_OK)
	{
		snprintf(error, REDIS_ERROR_SIZE, "%s", client->error);
		redis_close(client);
		return NULL;
	}
	*status = RSTATUS_OK;
	return client;
}

void
redis_close(RedisClient *client)
{
	if (client == NULL)
		return;
	if (client->context != NULL)
		redisFree(client->context);
#ifdef REDIS_HAVE_TLS
	if (client->tls_context != NULL)
		SSL_CTX_free(client->tls_context);
#endif
	if (client->lookup != NULL)
		leave_lookup(client->lookup);
	free(client->user);
	free(client->password);
	free(client->address.host);
	free(client);
}

int
redis_fd(const RedisClient *client)
{
	return client->context ? client->context->fd : client->lookup->done[0];
}

bool
redis_is_looking_up(const RedisClient *client)
{
	return client->lookup != NULL;
}

bool
redis_wants_write(const RedisClient *client)
{
	return client->wants_write;
}

bool
redis_is_ready(const RedisClient *client)
{
	return client->connected && client->greetings == 0 && client->failed == RSTATUS_OK;
}

const char *
redis_error(const RedisClient *client)
{
	return client->error;
}

/* Has the connection come about?  Until then client->connected stays false. */
static RedisStatus
finish_connect(RedisClient *client)
{
	struct pollfd ask = {client->context->fd, POLLOUT, 0};
	int fault = 0;
	socklen_t len = sizeof(fault);

	client->wants_write = true;
	if (poll(&ask, 1, 0) <= 0)
		return RSTATUS_OK;
	if (getsockopt(client->context->fd, SOL_SOCKET, SO_ERROR, &fault, &len) != 0)
		fault = errno;
	if (fault != 0)
		return fail(client, RSTATUS_AWAY, "%s", strerror(fault));
	client->connected = true;
	if (!client->address.is_socket)
		(void) redisEnableKeepAlive(client->context);
#ifdef REDIS_HAVE_TLS
	if (client->address.tls)
		return begin_tls(client);
#endif
	return RSTATUS_OK;
}

static RedisReply *
next_reply(RedisClient *client)
{
	void *reply = NULL;

	if (redisGetReplyFromReader(client->context, &reply) != REDIS_OK)
	{
		(void) fail_as_context(client);
		return NULL;
	}
	return reply;
}

RedisStatus
redis_advance(RedisClient *client)
{
	int done = 0;
	size_t before;
	size_t began;

	if (client->failed != RSTATUS_OK)
		return client->failed;
	if (client->context == NULL)
	{
		RedisStatus status = finish_lookup(client);

		if (status != RSTATUS_OK || client->context == NULL)
			return status;
	}
	if (!client->connected)
	{
		RedisStatus status = finish_connect(client);

		if (status != RSTATUS_OK || !client->connected)
			return status;
	}

	if (redisBufferWrite(client->context, &done) != REDIS_OK)
	{
		/* what Redis has said before it closed says more */
		if (client->greetings == 0 || redisBufferRead(client->context) != REDIS_OK)
			return fail_as_context(client);
	}
	client->wants_write = !done;
	began = client->context->reader->len;
	do
	{
		before = client->context->reader->len;
		if (redisBufferRead(client->context) != REDIS_OK)
			return fail_as_context(client);
		if (client->context->reader->len > REPLY_MAX_BYTES)
			return fail(client, RSTATUS_FAILED, "an answer of Redis is too long");
	} while (client->context->reader->len > before &&
			 client->context->reader->len < began + TURN_MAX_BYTES);
	/* more may be in the buffers of TLS, which does not make the socket readable */
	if (client->context->reader->len >= began + TURN_MAX_BYTES)
		client->wants_write = true;

	while (client->greetings > 0)
	{
		RedisReply *reply = next_reply(client);
		RedisStatus status;

		if (reply == NULL)
			return client->failed;
		client->greetings--;
		status = redis_reply_status(reply);
		if (status != RSTATUS_OK)
		{
			(void) fail(client, status, "%s", redis_reply_text(reply, NULL));
			scrub(client);
		}
		redis_reply_free(reply);
		if (status != RSTATUS_OK)
			return status;
	}
	return RSTATUS_OK;
}

/* ---- commands and replies ---- */

bool
redis_command(RedisClient *client, int argc, const char **argv, const size_t *lens)
{
	client->wants_write = true;
	return redisAppendCommandArgv(client->context, argc, argv, lens) == REDIS_OK;
}

RedisReply *
redis_reply(RedisClient *client)
{
	if (client->failed != RSTATUS_OK || client->greetings > 0)
		return NULL;
	return next_reply(client);
}

void
redis_reply_free(RedisReply *reply)
{
	if (reply != NULL)
		freeReplyObject(reply);
}

static const redisReply *
inner(const RedisReply *reply)
{
	return (const redisReply *) reply;
}

void
redis_clean_text(char *text)
{
	for (char *p = text; *p != '\0';)
	{
		size_t len = 1;

		if ((unsigned char) *p >= 0x80)
		{
			while (len < 4 && ((unsigned char) p[len] & 0xC0) == 0x80)
				len++;
			while (len > 1 && !event_text_valid(p, len))
				len--;
		}
		if (len == 1 && ((unsigned char) *p < 0x20 || (unsigned char) *p >= 0x7f))
			*p = '?';
		p += len;
	}
}

RedisStatus
redis_reply_status(const RedisReply *reply)
{
	if (inner(reply)->type != REDIS_REPLY_ERROR)
		return RSTATUS_OK;
	redis_clean_text(inner(reply)->str);
	return classify(inner(reply)->str);
}

const char *
redis_reply_text(const RedisReply *reply, size_t *len)
{
	const redisReply *r = inner(reply);

	if (r == NULL || (r->type != REDIS_REPLY_STRING && r->type != REDIS_REPLY_STATUS &&
					  r->type != REDIS_REPLY_ERROR))
		return NULL;
	if (len != NULL)
		*len = r->len;
	return r->str;
}

int64_t
redis_reply_integer(const RedisReply *reply)
{
	const redisReply *r = inner(reply);

	if (r == NULL)
		return 0;
	if (r->type == REDIS_REPLY_INTEGER)
		return r->integer;
	if (r->type == REDIS_REPLY_STRING)
		return strtoll(r->str, NULL, 10);
	return 0;
}

size_t
redis_reply_count(const RedisReply *reply)
{
	return inner(reply)->type == REDIS_REPLY_ARRAY ? inner(reply)->elements : 0;
}

const RedisReply *
redis_reply_at(const RedisReply *reply, size_t i)
{
	if (i >= redis_reply_count(reply))
		return NULL;
	return (const RedisReply *) inner(reply)->element[i];
}
