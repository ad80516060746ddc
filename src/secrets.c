/*-------------------------------------------------------------------------
 *
 * secrets.c
 *	  Users, passwords and keys, read from a file that only the server may read.
 *
 * Lines are "key = value"; those under a [database] heading are for that
 * database and go before those at the top.  Nothing of the file gets into a
 * message, a view or a setting.  A file that is refused, or a line that is no
 * good, is a fault that keeps the clients from connecting: without what was
 * meant they might go on as another user, or without encryption.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "secrets.h"
#include "settings.h"
#include "settings_text.h"

#define SECRETS_MAX_BYTES (64 * 1024)

static MemoryContext secrets_context = NULL;
static KafkaPair *pairs; /* all that apply to this database */
static int npairs;
static int nown;               /* the first of them: from this database's section */
static KafkaPair *kafka_pairs; /* those for librdkafka */
static int nkafka_pairs;
static uint64 content_hash;

/* Why Redis, or Kafka, cannot be used; "": it can. */
#define FAULT_SIZE 256
static char redis_fault[FAULT_SIZE];
static char kafka_fault[FAULT_SIZE];

/* Is it one of evstream's own keys, and not librdkafka's? */
static bool
own_key(const char *key)
{
	return strncmp(key, "redis_", 6) == 0;
}

static void
add_pair(const char *key, const char *value, bool own_section)
{
	int i;

	for (i = 0; i < npairs; i++)
	{
		if (strcmp(pairs[i].key, key) == 0)
			break;
	}
	if (i < nown && !own_section)
		return;
	if (i == npairs)
	{
		pairs = repalloc(pairs, (npairs + 1) * sizeof(KafkaPair));
		npairs++;
	}
	pairs[i].key = pstrdup(key);
	pairs[i].value = pstrdup(value);
}

static void
set_fault(char *fault, const char *path, const char *why)
{
	if (fault[0] == '\0')
		snprintf(fault, FAULT_SIZE, "secrets file \"%.150s\" is not used: %s", path, why);
}

/* A line that is no good; detail is of the given kind, or NULL. */
static void
bad_line(const char *path, int lineno, bool redis, bool kafka, const char *detail, int elevel)
{
	char why[64];

	snprintf(why, sizeof(why), "line %d is no good", lineno);
	if (redis)
		set_fault(redis_fault, path, why);
	if (kafka)
		set_fault(kafka_fault, path, why);
	ereport(elevel,
			(errcode(ERRCODE_CONFIG_FILE_ERROR),
			 errmsg("line %d of secrets file \"%s\" is no good", lineno, path),
			 detail != NULL ? errdetail_internal("%s", detail) : 0,
			 errhint("Write it as key = value, or begin it with # as a comment. Nothing connects "
					 "to what it may be about until then.")));
}

static void
refuse_file(const char *path, const char *why)
{
	set_fault(redis_fault, path, why);
	set_fault(kafka_fault, path, why);
}

/*
 * One pass over the text: the lines at the top (own = false), or those under
 * the heading of this database.  The own ones are taken first and win.
 */
static void
parse(const char *text, const char *path, bool own, int elevel)
{
	char *copy = pstrdup(text);
	char *next = copy;
	bool in_top = true;
	bool in_own = false;
	const char *database = setting_database_name();

	for (int lineno = 1; next != NULL; lineno++)
	{
		char *key;
		char *value;
		char *fault;
		TextLine kind = text_secrets_line(&next, &key, &value);

		if (kind == TEXT_LINE_HEADING)
		{
			in_top = false;
			in_own = strcmp(key, database) == 0;
		}
		if (kind == TEXT_LINE_EMPTY || kind == TEXT_LINE_HEADING || !(own ? in_own : in_top))
			continue;
		if (kind == TEXT_LINE_WRONG)
		{
			bad_line(path, lineno, true, true, NULL, elevel);
			continue;
		}
		if (own_key(key))
		{
			if (strcmp(key, "redis_user") == 0 || strcmp(key, "redis_password") == 0 ||
				strcmp(key, "redis_ca") == 0)
				add_pair(key, value, own);
			else
				bad_line(path, lineno, true, false,
						 "Of the keys that begin with \"redis_\" there are \"redis_user\", "
						 "\"redis_password\" and \"redis_ca\".",
						 elevel);
			continue;
		}
		fault = kafka_secret_check(key, value);
		if (fault != NULL)
		{
			bad_line(path, lineno, false, true, fault, elevel);
			free(fault);
			continue;
		}
		add_pair(key, value, own);
	}
	pfree(copy);
}

/* The file's text in the current context, or NULL where there is none to use. */
static char *
read_file(const char *path, int elevel)
{
	struct stat st;
	char *text;
	int done = 0;
	int fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | PG_BINARY);

	if (fd < 0)
	{
		int save = errno;

		/* the default one need not be there, but a link to it has to lead somewhere */
		if (save != ENOENT || strcmp(path, SETTING_SECRETS_FILE) != 0 || lstat(path, &st) == 0)
		{
			refuse_file(path, "it cannot be opened");
			errno = save;
			ereport(elevel, (errcode_for_file_access(),
							 errmsg("could not open secrets file \"%s\": %m", path)));
		}
		return NULL;
	}
	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size > SECRETS_MAX_BYTES)
	{
		CloseTransientFile(fd);
		refuse_file(path, "it is no regular file, or too large");
		ereport(elevel,
				(errcode(ERRCODE_CONFIG_FILE_ERROR), errmsg("secrets file \"%s\" is refused", path),
				 errdetail("It is not a regular file of at most %d bytes.", SECRETS_MAX_BYTES)));
		return NULL;
	}
	if (st.st_uid != geteuid() || (st.st_mode & (S_IRWXG | S_IRWXO)) != 0)
	{
		CloseTransientFile(fd);
		refuse_file(path, "others may have rights on it");
		ereport(elevel,
				(errcode(ERRCODE_CONFIG_FILE_ERROR), errmsg("secrets file \"%s\" is refused", path),
				 errdetail("It must belong to the server's user, and nobody else may have "
						   "rights on it."),
				 errhint("Run chown and chmod 600 on it, then reload the configuration.")));
		return NULL;
	}
	text = palloc(st.st_size + 1);
	while (done < st.st_size)
	{
		int n = read(fd, text + done, st.st_size - done);

		if (n <= 0)
		{
			refuse_file(path, "it cannot be read");
			break;
		}
		done += n;
	}
	text[done] = '\0';
	CloseTransientFile(fd);
	return text;
}

void
setting_secrets_load(int elevel)
{
	MemoryContext old;
	char *text;

	if (secrets_context == NULL)
		secrets_context =
			AllocSetContextCreate(TopMemoryContext, "evstream secrets", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(secrets_context);
	old = MemoryContextSwitchTo(secrets_context);
	npairs = nown = nkafka_pairs = 0;
	pairs = palloc(sizeof(KafkaPair));
	content_hash = 0;
	redis_fault[0] = kafka_fault[0] = '\0';

	text = setting_secrets_file[0] ? read_file(setting_secrets_file, elevel) : NULL;
	if (text != NULL)
	{
		parse(text, setting_secrets_file, true, elevel);
		nown = npairs;
		parse(text, setting_secrets_file, false, elevel);
		explicit_bzero(text, strlen(text));
		pfree(text);
	}

	kafka_pairs = palloc((npairs + 1) * sizeof(KafkaPair));
	for (int i = 0; i < npairs; i++)
	{
		content_hash =
			hash_combine64(content_hash, hash_bytes_extended((const unsigned char *) pairs[i].key,
															 strlen(pairs[i].key), 0));
		content_hash =
			hash_combine64(content_hash, hash_bytes_extended((const unsigned char *) pairs[i].value,
															 strlen(pairs[i].value), 1));
		if (!own_key(pairs[i].key))
			kafka_pairs[nkafka_pairs++] = pairs[i];
	}
	/* what was no good and is mended starts the workers again */
	content_hash =
		hash_combine64(content_hash, hash_bytes_extended((const unsigned char *) redis_fault,
														 strlen(redis_fault), 2));
	content_hash =
		hash_combine64(content_hash, hash_bytes_extended((const unsigned char *) kafka_fault,
														 strlen(kafka_fault), 3));
	MemoryContextSwitchTo(old);
}

const char *
setting_secret(const char *key)
{
	if (secrets_context == NULL)
		setting_secrets_load(DEBUG1);
	for (int i = 0; i < npairs; i++)
	{
		if (strcmp(pairs[i].key, key) == 0)
			return pairs[i].value;
	}
	return NULL;
}

const char *
setting_redis_fault(void)
{
	if (secrets_context == NULL)
		setting_secrets_load(DEBUG1);
	return redis_fault[0] != '\0' ? redis_fault : NULL;
}

const char *
secrets_kafka_fault(void)
{
	if (secrets_context == NULL)
		setting_secrets_load(DEBUG1);
	return kafka_fault[0] != '\0' ? kafka_fault : NULL;
}

const KafkaPair *
secrets_kafka(int *count)
{
	if (secrets_context == NULL)
		setting_secrets_load(DEBUG1);
	*count = nkafka_pairs;
	return kafka_pairs;
}

uint64
secrets_hash(void)
{
	return content_hash;
}
