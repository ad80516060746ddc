/*-------------------------------------------------------------------------
 *
 * kafka_conf.c
 *	  Properties of librdkafka: which ones a user may give and where, and the
 *	  configuration of our clients.
 *
 *-------------------------------------------------------------------------
 */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "kafka_int.h"

/* A record's key, headers and frame, on top of the largest event. */
#define MESSAGE_OVERHEAD    (64 * 1024)
#define DEFAULT_QUEUE_BYTES ((size_t) 64 * 1024 * 1024)
#define DEFAULT_EVENT_BYTES ((size_t) 1024 * 1024)
#define MIN_QUEUE_KBYTES    1024

/* Correctness hangs on these, or they are settings of evstream's own. */
static const struct
{
	const char *key;
	const char *instead; /* the setting to use, or NULL */
} owned[] = {
	{"acks", NULL},
	{"allow.auto.create.topics", NULL},
	{"auto.commit.enable", NULL},
	{"auto.commit.interval.ms", NULL},
	{"auto.offset.reset", "evstream.kafka_start"},
	{"bootstrap.servers", "evstream.kafka_brokers"},
	{"client.id", NULL},
	{"delivery.report.only.error", NULL},
	{"delivery.timeout.ms", NULL},
	{"enable.auto.commit", NULL},
	{"enable.auto.offset.store", NULL},
	{"enable.gapless.guarantee", NULL},
	{"enable.idempotence", NULL},
	{"enable.partition.eof", NULL},
	{"enabled_events", NULL},
	{"fetch.wait.max.ms", NULL},
	{"group.id", "evstream.kafka_group"},
	{"group.instance.id", NULL},
	{"group.protocol", NULL},
	{"group.protocol.type", NULL},
	{"group.remote.assignor", NULL},
	{"internal.termination.signal", NULL},
	{"log.queue", NULL},
	{"message.max.bytes", "evstream.max_event_bytes"},
	{"message.send.max.retries", NULL},
	{"message.timeout.ms", NULL},
	{"metadata.broker.list", "evstream.kafka_brokers"},
	{"offset.store.method", NULL},
	{"partition.assignment.strategy", NULL},
	{"produce.offset.report", NULL},
	{"queuing.strategy", NULL},
	{"request.required.acks", NULL},
	{"retries", NULL},
	{"topic.blacklist", NULL},
	{"transaction.timeout.ms", NULL},
	{"transactional.id", NULL},
};

/* These load code or run commands: a setting must not, the secrets file may. */
static const char *const file_only[] = {
	"plugin.library.paths",       "sasl.kerberos.keytab",
	"sasl.kerberos.kinit.cmd",    "sasl.kerberos.principal",
	"sasl.kerberos.service.name", "ssl.engine.id",
	"ssl.engine.location",        "ssl.providers",
};

/* Values of these are pointers in disguise. */
static const char *const pointers[] = {
	"default_topic_conf",
	"interceptors",
	"msg_order_cmp",
	"opaque",
	"ssl_ca",
	"ssl_certificate",
	"ssl_engine_callback_data",
	"ssl_key",
};

static char *message(const char *format, ...) __attribute__((format(printf, 1, 2)));

static char *
message(const char *format, ...)
{
	va_list args;
	char *text = malloc(KAFKA_ERROR_SIZE);

	if (text == NULL)
		abort();
	va_start(args, format);
	vsnprintf(text, KAFKA_ERROR_SIZE, format, args);
	va_end(args);
	return text;
}

static bool
listed(const char *const *list, size_t n, const char *key)
{
	for (size_t i = 0; i < n; i++)
	{
		if (strcmp(list[i], key) == 0)
			return true;
	}
	return false;
}
#define LISTED(list, key) listed(list, sizeof(list) / sizeof(list[0]), key)

static bool
is_pointer(const char *key)
{
	size_t len = strlen(key);

	return LISTED(pointers, key) || (len >= 3 && strcmp(key + len - 3, "_cb") == 0);
}

/*
 * Does this property carry a secret?  By words, so that properties of later
 * versions are caught as well.
 */
bool
kafka_option_is_secret(const char *key)
{
	if (strncmp(key, "sasl.oauthbearer.token.endpoint", 31) == 0)
		return false;
	return strcasestr(key, "password") != NULL || strcasestr(key, "passphrase") != NULL ||
		   strcasestr(key, "secret") != NULL || strcasestr(key, "token") != NULL ||
		   strcasestr(key, "key.pem") != NULL || strcmp(key, "sasl.oauthbearer.config") == 0;
}

/* https://user:password@host, in a property that is no secret by itself. */
static bool
value_has_password(const char *value)
{
	for (const char *p = strstr(value, "://"); p != NULL; p = strstr(p, "://"))
	{
		size_t len;
		const char *at;
		const char *colon;

		p += 3;
		len = strcspn(p, "/ ,");
		at = memchr(p, '@', len);
		colon = memchr(p, ':', len);
		if (at != NULL && colon != NULL && colon < at)
			return true;
	}
	return false;
}

/* Would librdkafka take it?  NULL, or a text that repeats what it was given only if asked to. */
static char *
try_set(const char *key, const char *value, bool repeat)
{
	rd_kafka_conf_t *scratch = rd_kafka_conf_new();
	char error[KAFKA_ERROR_SIZE] = "";
	rd_kafka_conf_res_t res;

	res = rd_kafka_conf_set(scratch, key, value, error, sizeof(error));
	rd_kafka_conf_destroy(scratch);
	if (res == RD_KAFKA_CONF_OK)
		return NULL;
	/* in the secrets file it may be a part of a key or a password */
	if (res == RD_KAFKA_CONF_UNKNOWN && !repeat)
		return message("It names no librdkafka property.");
	if (res == RD_KAFKA_CONF_UNKNOWN)
		return message("there is no librdkafka property \"%.100s\"", key);
	if (!repeat)
		return message("bad value for librdkafka property \"%s\"", key);
	return message("bad value for librdkafka property \"%s\": %s", key, error);
}

static char *
check_owned(const char *key)
{
	for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++)
	{
		if (strcmp(owned[i].key, key) != 0)
			continue;
		if (owned[i].instead != NULL)
			return message("librdkafka property \"%s\" is set by evstream itself, from \"%s\"", key,
						   owned[i].instead);
		return message("librdkafka property \"%s\" is set by evstream itself", key);
	}
	if (is_pointer(key))
		return message("librdkafka property \"%s\" cannot be given as text", key);
	return NULL;
}

static char *
check_option(const char *key, const char *value)
{
	char *error = check_owned(key);

	if (error != NULL)
		return error;
	if (kafka_option_is_secret(key) || value_has_password(value))
		return message("librdkafka property \"%s\" is a secret: it belongs into the file named by "
					   "\"evstream.secrets_file\"",
					   key);
	if (LISTED(file_only, key))
		return message("librdkafka property \"%s\" is accepted only in the file named by "
					   "\"evstream.secrets_file\"",
					   key);
	return try_set(key, value, true);
}

/* Cuts white space off both ends, in place. */
static char *
trim(char *text)
{
	char *end;

	while (isspace((unsigned char) *text))
		text++;
	end = text + strlen(text);
	while (end > text && isspace((unsigned char) end[-1]))
		end--;
	*end = '\0';
	return text;
}

/*
 * Calls each() for every pair of "key=value;key=value"; stops at the first
 * text it returns, which is malloc'd.
 */
static char *
each_option(const char *options, char *(*each)(const char *key, const char *value, void *arg),
			void *arg)
{
	char *copy;
	char *next;
	char *error = NULL;

	if (options == NULL || *options == '\0')
		return NULL;
	copy = strdup(options);
	if (copy == NULL)
		return message("out of memory");
	for (char *piece = copy; piece != NULL && error == NULL; piece = next)
	{
		char *equals;

		next = strchr(piece, ';');
		if (next != NULL)
			*next++ = '\0';
		piece = trim(piece);
		if (*piece == '\0')
			continue;
		equals = strchr(piece, '=');
		if (equals == NULL || equals == piece)
		{
			/* It may be a part of a secret: nothing of it is repeated. */
			error = message("expected \"key=value\" pairs separated by \";\"");
			break;
		}
		*equals = '\0';
		error = each(trim(piece), trim(equals + 1), arg);
	}
	free(copy);
	return error;
}

static char *
check_each(const char *key, const char *value, void *arg)
{
	(void) arg;
	return check_option(key, value);
}

char *
kafka_options_check(const char *options)
{
	return each_option(options, check_each, NULL);
}

char *
kafka_secret_check(const char *key, const char *value)
{
	char *error = check_owned(key);

	return error != NULL ? error : try_set(key, value, false);
}

void
kafka_conf_scrub(const KafkaConf *conf, char *text)
{
	for (int i = 0; i < conf->nsecrets; i++)
	{
		const char *value = conf->secrets[i].value;
		size_t len = strlen(value);
		char *found;

		/* A short one would be found in everything, and says nothing. */
		if (len < 4 || !kafka_option_is_secret(conf->secrets[i].key))
			continue;
		while ((found = strstr(text, value)) != NULL)
		{
			memcpy(found, "***", 3);
			memmove(found + 3, found + len, strlen(found + len) + 1);
		}
	}
}

typedef struct Scan
{
	rd_kafka_conf_t *target; /* NULL: look for SCRAM only */
	bool scram;
	char protocol[32]; /* security.protocol, or "" */
	char sasl[64];     /* a property that only SASL has a use for, or "" */
	char ssl[64];      /* ... TLS */
} Scan;

static char *
apply_each(const char *key, const char *value, void *arg)
{
	Scan *scan = arg;
	char *error;
	char text[KAFKA_ERROR_SIZE] = "";

	if ((strcmp(key, "sasl.mechanism") == 0 || strcmp(key, "sasl.mechanisms") == 0))
		scan->scram = strncasecmp(value, "SCRAM-", 6) == 0;
	if (strcmp(key, "security.protocol") == 0)
		snprintf(scan->protocol, sizeof(scan->protocol), "%s", value);
	else if (strncmp(key, "sasl.", 5) == 0)
		snprintf(scan->sasl, sizeof(scan->sasl), "%s", key);
	else if (strncmp(key, "ssl.", 4) == 0)
		snprintf(scan->ssl, sizeof(scan->ssl), "%s", key);
	if (scan->target == NULL)
		return NULL;
	error = check_owned(key);
	if (error == NULL &&
		rd_kafka_conf_set(scan->target, key, value, text, sizeof(text)) != RD_KAFKA_CONF_OK)
	{
		error = try_set(key, value, false);
		if (error == NULL)
			error = message("bad value for librdkafka property \"%s\"", key);
	}
	return error;
}

static char *
apply_user(const KafkaConf *conf, Scan *scan)
{
	char *error = each_option(conf->options, apply_each, scan);

	for (int i = 0; i < conf->nsecrets && error == NULL; i++)
		error = apply_each(conf->secrets[i].key, conf->secrets[i].value, scan);
	return error;
}

/*
 * Whoever names a user or a CA means that they are used: without the protocol
 * librdkafka would go on in the clear, and as nobody.
 */
static char *
check_protocol(const Scan *scan)
{
	bool sasl = strncasecmp(scan->protocol, "sasl_", 5) == 0;
	bool ssl =
		strcasecmp(scan->protocol, "ssl") == 0 || strcasecmp(scan->protocol, "sasl_ssl") == 0;

	if ((scan->sasl[0] == '\0' || sasl) && (scan->ssl[0] == '\0' || ssl))
		return NULL;
	return message("librdkafka property \"%s\" is of no effect, as \"security.protocol\" is %s: it "
				   "has to be \"%s\"",
				   scan->sasl[0] != '\0' && !sasl ? scan->sasl : scan->ssl,
				   scan->protocol[0] != '\0' ? scan->protocol : "not given",
				   scan->sasl[0] != '\0' ? "sasl_ssl" : "ssl");
}

const char *
kafka_version_warning(const KafkaConf *conf)
{
	Scan scan = {0};

	if (rd_kafka_version() >= 0x020601ff)
		return NULL;
	free(apply_user(conf, &scan));
	if (!scan.scram)
		return NULL;
	return "SCRAM of this librdkafka is not understood by Apache Kafka 4 and later, which needs "
		   "librdkafka 2.6.1 or later";
}

typedef struct Setting
{
	const char *key;
	const char *value;
} Setting;

/*
 * Reconnects come soon, because everything is waiting for them; a broker that
 * is there and does not answer is given up after 20 s and not after 60.
 */
static const Setting common_defaults[] = {
	{"reconnect.backoff.max.ms", "2000"},
	{"socket.timeout.ms", "20000"},
	{"socket.keepalive.enable", "true"},
	{"socket.nagle.disable", "true"},
	/* the default since 2.0 */
	{"ssl.endpoint.identification.algorithm", "https"},
};

static const Setting consumer_defaults[] = {
	{"check.crcs", "true"},
	{"isolation.level", "read_committed"},
	{"queued.min.messages", "200000"},
	/* unknown before KAFKA_QUEUE_BACKOFF */
	{"fetch.queue.backoff.ms", "10"},
};

/*
 * JSON shrinks to a third and less at several hundred MB/s, which a network or
 * a broker's disk seldom outdoes.
 */
static const Setting producer_defaults[] = {
	{"compression.type", "lz4"},
	{"linger.ms", "0"},
	{"partitioner", "murmur2_random"}, /* as Java clients do */
};

static const Setting consumer_owned[] = {
	{"auto.offset.reset", "error"},
	{"enable.auto.commit", "false"},
	{"enable.auto.offset.store", "false"},
	{"enable.partition.eof", "false"},
	/* a question to the broker waits behind the fetch that was sent before it */
	{"fetch.wait.max.ms", "200"},
};

/*
 * Without a time-out order is kept: a broker that is away delays a record, and
 * never lets a later one pass.
 */
static const Setting producer_owned[] = {
	{"enable.idempotence", "true"},
	{"acks", "all"},
	{"message.timeout.ms", "0"},
};

/* An unknown default belongs to another version of the library. */
static void
set_all(rd_kafka_conf_t *target, const Setting *settings, size_t n)
{
	char error[KAFKA_ERROR_SIZE];

	for (size_t i = 0; i < n; i++)
		(void) rd_kafka_conf_set(target, settings[i].key, settings[i].value, error, sizeof(error));
}
#define SET_ALL(target, settings)                                                                  \
	set_all(target, settings, sizeof(settings) / sizeof((settings)[0]))

static bool
set_one(rd_kafka_conf_t *target, const char *key, const char *value, char *error)
{
	return rd_kafka_conf_set(target, key, value, error, KAFKA_ERROR_SIZE) == RD_KAFKA_CONF_OK;
}

static bool
set_size(rd_kafka_conf_t *target, const char *key, size_t value, char *error)
{
	char text[32];

	snprintf(text, sizeof(text), "%zu", value);
	return set_one(target, key, text, error);
}

/* Sizes of a client's queues and messages. */
static bool
set_sizes(rd_kafka_conf_t *target, const KafkaConf *conf, bool producer, char *error)
{
	size_t queue = conf->queue_bytes > 0 ? conf->queue_bytes : DEFAULT_QUEUE_BYTES;
	size_t largest = (conf->max_event_bytes > 0 ? conf->max_event_bytes : DEFAULT_EVENT_BYTES) +
					 MESSAGE_OVERHEAD;
	size_t kbytes;

	if (producer)
	{
		kbytes = (queue > 2 * largest ? queue : 2 * largest) / 1024;
		return set_size(target, "message.max.bytes", largest, error) &&
			   set_size(target, "queue.buffering.max.kbytes", kbytes, error);
	}

	/*
	 * A broker sends a first record larger than these limits all the same. One
	 * answer of a broker may come on top of what is queued.
	 */
	kbytes = queue / 4 * 3 / 1024;
	return set_size(target, "queued.max.messages.kbytes",
					kbytes > MIN_QUEUE_KBYTES ? kbytes : MIN_QUEUE_KBYTES, error) &&
		   set_size(target, "message.max.bytes", largest, error) &&
		   set_size(target, "fetch.max.bytes", queue / 4 > largest ? queue / 4 : largest, error);
}

rd_kafka_conf_t *
kafka_conf_make(const KafkaConf *conf, bool producer, char *error)
{
	rd_kafka_conf_t *target = rd_kafka_conf_new();
	Scan scan = {.target = target};
	char *text;

	SET_ALL(target, common_defaults);
	if (producer)
		SET_ALL(target, producer_defaults);
	else
		SET_ALL(target, consumer_defaults);
	if (!set_sizes(target, conf, producer, error))
		goto failed;

	if (conf->secrets_fault != NULL)
	{
		snprintf(error, KAFKA_ERROR_SIZE, "%s", conf->secrets_fault);
		goto failed;
	}
	text = apply_user(conf, &scan);
	if (text == NULL)
		text = check_protocol(&scan);
	if (text != NULL)
	{
		snprintf(error, KAFKA_ERROR_SIZE, "%s", text);
		free(text);
		goto failed;
	}

	if (producer)
		SET_ALL(target, producer_owned);
	else
		SET_ALL(target, consumer_owned);
	/* A topic is made by us with our number of partitions, or not at all. */
	if (!set_one(target, "allow.auto.create.topics", "false", error) ||
		!set_one(target, "log.queue", "true", error) ||
		!set_one(target, "bootstrap.servers", conf->brokers, error) ||
		(conf->client_id != NULL && !set_one(target, "client.id", conf->client_id, error)) ||
		(!producer && !set_one(target, "group.id", conf->group, error)) ||
		(producer && conf->single_records && !set_one(target, "batch.num.messages", "1", error)))
		goto failed;
	return target;

failed:
	kafka_conf_scrub(conf, error);
	rd_kafka_conf_destroy(target);
	return NULL;
}
