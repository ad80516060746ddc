/*-------------------------------------------------------------------------
 *
 * event_id.c
 *	  Ids of events: UUIDv7 for new ones, UUIDv5 for texts and places.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/cryptohash.h"
#include "common/sha1.h"
#include "fmgr.h"
#include "port.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "event_id.h"

/* Namespace of evstream's UUIDv5: 6a1f3c52-8f5e-4f0b-9d57-5b1d6c3e0a4e. Never to change. */
static const uint8 event_id_namespace[UUID_LEN] = {0x6a, 0x1f, 0x3c, 0x52, 0x8f, 0x5e, 0x4f, 0x0b,
												   0x9d, 0x57, 0x5b, 0x1d, 0x6c, 0x3e, 0x0a, 0x4e};

static void
set_version(pg_uuid_t *id, uint8 version)
{
	id->data[6] = (id->data[6] & 0x0f) | (version << 4);
	id->data[8] = (id->data[8] & 0x3f) | 0x80;
}

void
event_id_generate(pg_uuid_t *id)
{
	/* drawn for many ids at a time, as each drawing has its price */
	static uint8 random[64 * UUID_LEN];
	static Size drawn = 0; /* what is left of it, at its end */
	static uint64 last_us = 0;
	uint64 us = (uint64) (GetCurrentTimestamp() +
						  (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY);
	uint64 ms;
	uint16 fraction;

	/* 12 bits below the millisecond resolve a quarter of a microsecond */
	if (us <= last_us)
		us = last_us + 1;
	last_us = us;
	ms = us / 1000;
	fraction = (uint16) ((us % 1000) * 4096 / 1000);

	if (drawn == 0 && !pg_strong_random(random, sizeof(random)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random values")));
	if (drawn == 0)
		drawn = sizeof(random);
	drawn -= UUID_LEN;
	memcpy(id->data, random + drawn, UUID_LEN);
	for (int i = 0; i < 6; i++)
		id->data[i] = (uint8) (ms >> (8 * (5 - i)));
	id->data[6] = (uint8) (fraction >> 8);
	id->data[7] = (uint8) fraction;
	set_version(id, 7);
}

static void
uuid_v5(const void *name, Size len, pg_uuid_t *id)
{
	uint8 digest[SHA1_DIGEST_LENGTH];
	pg_cryptohash_ctx *ctx = pg_cryptohash_create(PG_SHA1);
	bool ok;

	if (ctx == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	ok = pg_cryptohash_init(ctx) >= 0 &&
		 pg_cryptohash_update(ctx, event_id_namespace, UUID_LEN) >= 0 &&
		 pg_cryptohash_update(ctx, (const uint8 *) name, len) >= 0 &&
		 pg_cryptohash_final(ctx, digest, sizeof(digest)) >= 0;
	pg_cryptohash_free(ctx);
	if (!ok)
		elog(ERROR, "could not compute SHA1 hash");
	memcpy(id->data, digest, UUID_LEN);
	set_version(id, 5);
}

void
event_id_from_text(const char *text, Size len, pg_uuid_t *id)
{
	if (!event_parse_uuid(text, len, id->data))
		uuid_v5(text, len, id);
}

void
event_id_derive(const char *log_name, int32 partition, int64 offset, pg_uuid_t *id)
{
	char name[512];
	int len;

	/* \x01 keeps places apart from the texts that an event can name */
	len = snprintf(name, sizeof(name), "\x01%s:%d:" INT64_FORMAT, log_name, partition, offset);
	if (len >= (int) sizeof(name))
		elog(ERROR, "name of log is too long: \"%s\"", log_name);
	uuid_v5(name, len, id);
}

bool
event_id_of(const Event *event, pg_uuid_t *id)
{
	if (event->event_id.data == NULL)
		return false;
	if (event->event_id_is_uuid)
		memcpy(id->data, event->event_uuid, UUID_LEN);
	else
		uuid_v5(event->event_id.data, event->event_id.len, id);
	return true;
}

PG_FUNCTION_INFO_V1(evstream_event_id);

/* evstream_event_id(text) returns uuid */
Datum
evstream_event_id(PG_FUNCTION_ARGS)
{
	text *name = PG_GETARG_TEXT_PP(0);
	pg_uuid_t *id = palloc(sizeof(pg_uuid_t));

	event_id_from_text(VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name), id);
	PG_RETURN_UUID_P(id);
}
