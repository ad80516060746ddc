/*-------------------------------------------------------------------------
 *
 * notifier_cursor.c
 *	  Where sending goes on: cursors in Redis, their mirror, and the owner's mark.
 *
 * After each connection, and whenever the script has found something else
 * than we know, all of it is compared anew:
 *	- the mark is of another database: nothing is sent;
 *	- a cursor in Redis whose event is stored: on from there, also if it is
 *	  older than the mirror, as the streams are as old as it is;
 *	- no cursor in Redis, but a mirror: Redis came back empty;
 *	- a cursor whose event is not stored: the database went back.
 * In the last two sending goes on from the mirror, and every stream begins a
 * new epoch.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "notifier.h"
#include "partition.h"
#include "redis_answer.h"
#include "settings.h"
#include "sql.h"
#include "status.h"
#include "worker.h"

#define MIRROR_EVERY USECS_PER_SEC

/* ---- text of a cursor ---- */

void
cursor_format(const NotifierCursor *cursor, char *buf)
{
	char id[37];

	if (!cursor->any)
	{
		buf[0] = '\0';
		return;
	}
	event_format_uuid(cursor->event_id.data, id);
	if (cursor->log_offset >= 0)
		snprintf(buf, CURSOR_SIZE, INT64_FORMAT " %s " INT64_FORMAT,
				 cursor->received_at + UNIX_EPOCH_OFFSET_US, id, cursor->log_offset);
	else
		snprintf(buf, CURSOR_SIZE, INT64_FORMAT " %s", cursor->received_at + UNIX_EPOCH_OFFSET_US,
				 id);
}

/* False: it is no cursor. */
static bool
cursor_parse(const char *text, NotifierCursor *cursor)
{
	int64_t us;
	int64_t log_offset;

	memset(cursor, 0, sizeof(*cursor));
	cursor->any = redis_answer_cursor(text, &us, cursor->event_id.data, &log_offset);
	cursor->log_offset = cursor->any ? log_offset : -1;
	if (cursor->any)
		cursor->received_at = us - UNIX_EPOCH_OFFSET_US;
	return cursor->any;
}

/* ---- what the tables say ---- */

typedef struct CheckPart
{
	NotifierPartition *part;
	char *found;           /* in Redis; "": none */
	NotifierCursor cursor; /* that */
	bool stored;           /* its event is there, or expired */
} CheckPart;

typedef struct CheckUnit
{
	CheckPart *parts;
	int nparts;
} CheckUnit;

static void
owner_unit(void *arg)
{
	owner_read(arg);
}

/* The mirror and the highest epoch. */
static void
load_mirror(void)
{
	uint64 n;
	bool isnull;

	if (sql_execute("SELECT epoch FROM evstream.notifier_state", 0, NULL, NULL, NULL,
					SPI_OK_SELECT) > 0)
	{
		notifier.mirrored_epoch = DatumGetInt64(sql_column(0, 1, NULL));
		notifier.epoch = Max(notifier.epoch, notifier.mirrored_epoch);
	}
	for (int i = 0; i < notifier.nparts; i++)
		notifier.parts[i]->has_mirror = false;
	n = sql_execute(
		"SELECT log_id, log_partition, received_at, event_id::pg_catalog.uuid, passed_at"
		" FROM evstream.notifier_cursors",
		0, NULL, NULL, NULL, SPI_OK_SELECT);
	for (uint64 row = 0; row < n; row++)
	{
		int32 log_id = DatumGetInt32(sql_column(row, 1, NULL));
		int32 number = DatumGetInt32(sql_column(row, 2, NULL));

		for (int i = 0; i < notifier.nparts; i++)
		{
			NotifierPartition *part = notifier.parts[i];

			if (part->log_id != log_id || part->partition != number)
				continue;
			part->has_mirror = true;
			memset(&part->mirror, 0, sizeof(part->mirror));
			part->mirror.log_offset = -1;
			part->mirror.received_at = DatumGetTimestampTz(sql_column(row, 3, &isnull));
			part->mirror.any = !isnull;
			if (part->mirror.any)
				part->mirror.event_id = *DatumGetUUIDP(sql_column(row, 4, NULL));
			part->mirrored_at = DatumGetTimestampTz(sql_column(row, 5, NULL));
		}
	}
}

/* Is the event of this cursor stored, or was it, and has expired? */
static bool
is_stored(const CheckPart *check)
{
	const NotifierCursor *cursor = &check->cursor;
	Oid types[5] = {INT4OID, INT4OID, TIMESTAMPTZOID, UUIDOID, INT8OID};
	Datum values[5] = {Int32GetDatum(check->part->log_id), Int32GetDatum(check->part->partition),
					   TimestampTzGetDatum(cursor->received_at), UUIDPGetDatum(&cursor->event_id),
					   Int64GetDatum(cursor->log_offset)};
	int64 kept = setting_interval_us(setting_retention);

	if (sql_execute(cursor->log_offset >= 0
						? "SELECT FROM evstream.events WHERE log_id = $1 AND log_partition = $2"
						  " AND received_at = $3 AND event_id = $4 AND log_offset = $5 LIMIT 1"
						: "SELECT FROM evstream.events WHERE log_id = $1 AND log_partition = $2"
						  " AND received_at = $3 AND event_id = $4 LIMIT 1",
					cursor->log_offset >= 0 ? 5 : 4, types, values, NULL, SPI_OK_SELECT) > 0)
		return true;
	/* the day as a whole is dropped */
	return kept >= 0 &&
		   partition_day(cursor->received_at) < partition_day(GetCurrentTimestamp() - kept);
}

static void
check_unit(void *arg)
{
	CheckUnit *unit = arg;

	load_mirror();
	for (int i = 0; i < unit->nparts; i++)
	{
		CheckPart *check = &unit->parts[i];

		if (check->cursor.any)
			check->stored = is_stored(check);
	}
}

/* ---- comparing ---- */

/* Asks for the owner and the cursors; NULL: not now. */
static char *
ask(CheckPart *checks, int nchecks)
{
	int argc = nchecks + 3;
	const char **argv = palloc(argc * sizeof(char *));
	RedisReply *reply;
	const char *text;
	char *owner;

	argv[0] = "HMGET";
	argv[1] = notifier_name("state", "");
	argv[2] = "owner";
	for (int i = 0; i < nchecks; i++)
		argv[i + 3] = psprintf("c:%d:%d", checks[i].part->log_id, checks[i].part->partition);
	if (link_call(argc, argv, NULL, LINK_COMMAND_MS, &reply) != RSTATUS_OK)
		return NULL;
	text = redis_reply_text(redis_reply_at(reply, 0), NULL);
	owner = pstrdup(text ? text : "");
	for (int i = 0; i < nchecks; i++)
	{
		text = redis_reply_text(redis_reply_at(reply, i + 1), NULL);
		checks[i].found = pstrdup(text ? text : "");
		if (text != NULL)
			(void) cursor_parse(text, &checks[i].cursor);
	}
	redis_reply_free(reply);
	return owner;
}

/* Sets owner and cursors in Redis, where they are not so; false: not now. */
static bool
anchor(const char *owner, bool new_epochs, const CheckPart *checks, int nchecks)
{
	const char **argv = palloc((4 + 3 * nchecks) * sizeof(char *));
	int argc = 0;
	RedisReply *reply;
	bool done;

	if (new_epochs)
		notifier.epoch =
			Max(notifier.epoch + 1, (GetCurrentTimestamp() + UNIX_EPOCH_OFFSET_US) / 1000);
	argv[argc++] = notifier_name("state", "");
	argv[argc++] = owner;
	argv[argc++] = notifier.owner.mark;
	argv[argc++] = new_epochs ? psprintf(INT64_FORMAT, notifier.epoch) : "";
	for (int i = 0; i < nchecks; i++)
	{
		const NotifierPartition *part = checks[i].part;

		if (strcmp(part->sent, checks[i].found) == 0)
			continue;
		argv[argc++] = psprintf("c:%d:%d", part->log_id, part->partition);
		argv[argc++] = checks[i].found;
		argv[argc++] = part->sent;
	}
	if (argc == 4 && !new_epochs && strcmp(owner, notifier.owner.mark) == 0)
		return true;
	if (link_script(notifier_script_anchor, 1, argc, argv, NULL, LINK_COMMAND_MS, &reply) !=
		RSTATUS_OK)
		return false;
	done = redis_answer_is_ok(reply);
	redis_reply_free(reply);
	return done;
}

/* Decides for each partition where it goes on; is any cursor lost, or behind? */
static void
decide(const CheckUnit *unit, bool *lost, bool *went_back, bool *older)
{
	*lost = *went_back = *older = false;
	for (int i = 0; i < unit->nparts; i++)
	{
		const CheckPart *check = &unit->parts[i];
		NotifierPartition *part = check->part;
		NotifierPlace *place = &part->place;
		bool from_redis = check->cursor.any && check->stored;
		NotifierCursor cursor = {0};

		cursor.log_offset = -1;
		if (from_redis)
			cursor = check->cursor;
		else if (part->has_mirror)
			cursor = part->mirror;
		if (check->cursor.any && !check->stored)
			*went_back = true;
		else if (!check->cursor.any && part->has_mirror && part->mirror.any)
			*lost = true;
		else if (from_redis && part->has_mirror && part->mirror.any &&
				 cursor.received_at < part->mirror.received_at)
			*older = true;

		/* reading goes on where it is, if that is where the cursor stands */
		cursor_format(&cursor, part->sent);
		if (place->placed && place->cursor.any == cursor.any &&
			(!cursor.any || (place->cursor.received_at == cursor.received_at &&
							 memcmp(&place->cursor.event_id, &cursor.event_id, UUID_LEN) == 0)))
			continue;
		memset(place, 0, sizeof(*place));
		place->cursor = cursor;
	}
}

/*
 * Tells how far sending is, which in Redis may be farther than we have heard.
 * What an earlier notifier has told stands unless that is not true any more.
 */
static void
note_sent(bool set_back)
{
	for (int i = 0; i < notifier.nparts; i++)
	{
		const NotifierPartition *part = notifier.parts[i];
		const NotifierPlace *place = &part->place;
		TimestampTz sent_at = place->cursor.any ? place->cursor.received_at : DT_NOBEGIN;

		if (place->passed_at != 0)
			sent_at = Max(sent_at, place->passed_at);
		status_notifying(part->log_id, part->partition, DT_NOBEGIN);
		if (set_back || sent_at > status_notified_at(MyDatabaseId, part->log_id, part->partition))
			status_notified(part->log_id, part->partition, sent_at);
	}
}

void
cursor_doubt(void)
{
	notifier.checked = false;
}

bool
cursor_check(void)
{
	CheckUnit unit = {0};
	MemoryContext old;
	bool new_parts = false;
	bool lost;
	bool went_back;
	bool older;
	char *owner;
	Owner self;
	OwnerVerdict verdict;

	if (notifier.checked)
		return true;
	notifier.ahead = NULL;
	MemoryContextReset(notifier.scratch);
	old = MemoryContextSwitchTo(notifier.scratch);

	if (!worker_run("reading the identity", owner_unit, &self, NULL) ||
		!worker_run("finding the partitions", read_partitions_unit, &new_parts, NULL))
	{
		MemoryContextSwitchTo(old);
		return false;
	}
	notifier.owner = self;
	if (!self.ours)
	{
		notifier_problem(
			NP_FOREIGN,
			"this database was restored or moved, and has not taken over its Redis prefix");
		MemoryContextSwitchTo(old);
		return false;
	}
	unit.nparts = notifier.nparts;
	unit.parts = palloc0(Max(1, unit.nparts) * sizeof(CheckPart));
	for (int i = 0; i < unit.nparts; i++)
		unit.parts[i].part = notifier.parts[i];

	owner = ask(unit.parts, unit.nparts);
	if (owner == NULL)
	{
		MemoryContextSwitchTo(old);
		return false;
	}
	/* what is no mark is nevertheless somebody's */
	if (owner_is_mark(owner))
		verdict = owner_judge(&self, owner);
	else
		verdict = owner[0] == '\0' ? OWNER_NOT_FOREIGN : OWNER_FOREIGN;
	if (verdict != OWNER_NOT_FOREIGN)
	{
		char *message = owner_message(verdict, "the Redis prefix", setting_redis_prefix, owner);

		redis_clean_text(message);
		notifier_problem(NP_FOREIGN, message);
		MemoryContextSwitchTo(old);
		return false;
	}
	notifier_problem(NP_FOREIGN, NULL);

	if (!worker_run("comparing the cursors", check_unit, &unit, NULL))
	{
		MemoryContextSwitchTo(old);
		return false;
	}
	decide(&unit, &lost, &went_back, &older);
	notifier.checked = anchor(owner, lost || went_back, unit.parts, unit.nparts);
	if (notifier.checked)
	{
		note_sent(lost || went_back || older);
		if (went_back)
			notifier_problem(
				NP_WENT_BACK,
				"the database is older than what Redis holds: all streams begin a new epoch");
		else if (lost)
			notifier_problem(NP_EMPTIED, "Redis came back empty: all streams begin a new epoch");
		else if (older)
			ereport(
				LOG,
				(errmsg("Redis came back as it was some time before, sending goes on from there")));
	}
	MemoryContextSwitchTo(old);
	return notifier.checked;
}

/* ---- the mirror ---- */

static void
mirror_unit(void *arg)
{
	Oid types[5] = {INT4OID, INT4OID, TIMESTAMPTZOID, UUIDOID, TIMESTAMPTZOID};

	for (int i = 0; i < notifier.nparts; i++)
	{
		const NotifierPartition *part = notifier.parts[i];
		const NotifierCursor *cursor = &part->place.cursor;
		Datum values[5] = {Int32GetDatum(part->log_id), Int32GetDatum(part->partition),
						   TimestampTzGetDatum(cursor->received_at),
						   UUIDPGetDatum(&cursor->event_id),
						   TimestampTzGetDatum(part->place.passed_at)};

		if (part->place.passed_at == 0 || part->place.passed_at == part->mirrored_at)
			continue;
		sql_execute(
			"INSERT INTO evstream.notifier_cursors"
			" (log_id, log_partition, received_at, event_id, passed_at)"
			" VALUES ($1, $2, $3, $4, $5)"
			" ON CONFLICT (log_id, log_partition) DO UPDATE SET received_at = excluded.received_at,"
			" event_id = excluded.event_id, passed_at = excluded.passed_at",
			5, types, values, cursor->any ? NULL : "  nn ", SPI_OK_INSERT);
	}
	if (notifier.epoch != notifier.mirrored_epoch)
	{
		Datum epoch = Int64GetDatum(notifier.epoch);
		Oid type = INT8OID;

		sql_execute("UPDATE evstream.notifier_state SET epoch = GREATEST(epoch, $1)", 1, &type,
					&epoch, NULL, SPI_OK_UPDATE);
	}
}

void
cursor_mirror(void)
{
	int64 at = clock_us();
	bool moved = notifier.epoch != notifier.mirrored_epoch;

	for (int i = 0; i < notifier.nparts; i++)
	{
		const NotifierPartition *part = notifier.parts[i];

		moved |= part->place.passed_at != 0 && part->place.passed_at != part->mirrored_at;
	}
	if (!moved || (at >= notifier.mirrored && at < notifier.mirrored + MIRROR_EVERY))
		return;
	if (!worker_run("mirroring the cursors", mirror_unit, NULL, NULL))
		return;
	notifier.mirrored = at;
	notifier.mirrored_epoch = notifier.epoch;
	for (int i = 0; i < notifier.nparts; i++)
	{
		NotifierPartition *part = notifier.parts[i];

		if (part->place.passed_at == 0)
			continue;
		part->mirrored_at = part->place.passed_at;
		part->mirror = part->place.cursor;
		part->has_mirror = true;
	}
}
