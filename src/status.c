/*-------------------------------------------------------------------------
 *
 * status.c
 *	  What workers tell about themselves, and wake-ups.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "shared.h"
#include "status.h"

/* This process's entries in shared->lags. */
static int *own_lags = NULL;
static int own_nlags = 0;
static int own_lags_size = 0;

bool
status_available(void)
{
	return shared != NULL;
}

/* strlcpy() that does not cut a character in two; empties dst where src is NULL. */
static void
copy_text(char *dst, const char *src, size_t size)
{
	size_t len = src ? strlen(src) : 0;

	if (len >= size)
		len = pg_mbcliplen(src, len, size - 1);
	if (len > 0)
		memcpy(dst, src, len);
	dst[len] = '\0';
}

/* ---- wake-ups ---- */

static bool
wake_slots(Oid dboid, WorkerRole role, int max_index)
{
	bool any = false;

	for (int i = 0; i < shared->nslots; i++)
	{
		WorkerSlot *slot = &shared->slots[i];

		if (slot->phase == SLOT_RUNNING && slot->dboid == dboid && slot->role == role &&
			slot->index <= max_index)
		{
			SetLatch(&slot->proc->procLatch);
			any = true;
		}
	}
	return any;
}

void
status_wake_reader(Oid dboid)
{
	if (shared == NULL)
		return;
	LWLockAcquire(shared->lock, LW_SHARED);
	/* with a relay the consumers hear of it by Kafka */
	if (!wake_slots(dboid, ROLE_RELAY, 0))
		(void) wake_slots(dboid, ROLE_CONSUMER, 0);
	LWLockRelease(shared->lock);
}

void
status_wake(Oid dboid, WorkerRole role)
{
	if (shared == NULL)
		return;
	LWLockAcquire(shared->lock, LW_SHARED);
	(void) wake_slots(dboid, role, PG_INT32_MAX);
	LWLockRelease(shared->lock);
}

void
status_unflushed_begin(void)
{
	if (shared != NULL)
		(void) pg_atomic_fetch_add_u64(&shared->unflushed_begun, 1);
}

void
status_unflushed_end(void)
{
	if (shared != NULL)
		(void) pg_atomic_fetch_add_u64(&shared->unflushed_ended, 1);
}

uint64
status_unflushed_begun(void)
{
	/* not before what was read until now */
	pg_memory_barrier();
	return pg_atomic_read_u64(&shared->unflushed_begun);
}

uint64
status_unflushed_ended(void)
{
	uint64 ended = pg_atomic_read_u64(&shared->unflushed_ended);

	/* not after what comes next */
	pg_memory_barrier();
	return ended;
}

void
status_look_again(Oid dboid, bool restart)
{
	DatabaseEntry *db;

	if (shared == NULL)
		return;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	db = shared_database(dboid);
	if (db != NULL)
	{
		db->look_wanted++;
		db->look_failures = 0;
		db->next_look = 0;
		if (restart)
			db->restart_wanted = true;
	}
	else
		shared->scan_wanted++;
	shared_wake_launcher();
	LWLockRelease(shared->lock);
}

/* ---- the own slot ---- */

void
status_count(int64 events, int64 batches)
{
	if (own_slot == NULL)
		return;
	pg_atomic_fetch_add_u64(&own_slot->events, events);
	pg_atomic_fetch_add_u64(&own_slot->batches, batches);
}

void
status_state(const char *state)
{
	if (own_slot == NULL)
		return;
	/* Nobody else writes it: compare without the lock. */
	if (strncmp(own_slot->state, state, STATE_SIZE - 1) == 0)
		return;
	SpinLockAcquire(&own_slot->mutex);
	strlcpy(own_slot->state, state, STATE_SIZE);
	SpinLockRelease(&own_slot->mutex);
}

void
status_error(const char *message)
{
	char text[TEXT_SIZE];
	TimestampTz now = GetCurrentTimestamp();

	if (own_slot == NULL)
		return;
	copy_text(text, message, TEXT_SIZE);
	pg_atomic_fetch_add_u64(&own_slot->errors, 1);
	SpinLockAcquire(&own_slot->mutex);
	memcpy(own_slot->last_error, text, TEXT_SIZE);
	own_slot->last_error_at = now;
	SpinLockRelease(&own_slot->mutex);
}

void
status_problem(StatusComponent component, StatusLevel level, const char *code, const char *message,
			   const char *hint)
{
	SlotProblem *problem;
	SlotProblem fresh;
	bool was;
	bool log_come = false;
	bool log_gone = false;
	char old_message[TEXT_SIZE];

	if (own_slot == NULL)
		return;
	/* Only this process writes it, so that it can be read without the lock. */
	problem = &own_slot->problems[component];
	was = problem->level != LEVEL_OK;
	if (message == NULL && !was && problem->logged[0] == '\0')
		return;

	fresh = *problem;
	if (message == NULL)
	{
		copy_text(old_message, problem->message, TEXT_SIZE);
		log_gone = problem->logged[0] != '\0';
		fresh.level = LEVEL_OK;
		fresh.logged[0] = '\0';
	}
	else
	{
		fresh.level = level;
		if (!was || strncmp(problem->code, code, CODE_SIZE - 1) != 0)
			fresh.since = GetCurrentTimestamp();
		copy_text(fresh.code, code, CODE_SIZE);
		copy_text(fresh.message, message, TEXT_SIZE);
		copy_text(fresh.hint, hint, TEXT_SIZE);
		log_come = strcmp(problem->logged, fresh.code) != 0;
		memcpy(fresh.logged, fresh.code, CODE_SIZE);
	}
	SpinLockAcquire(&own_slot->mutex);
	*problem = fresh;
	SpinLockRelease(&own_slot->mutex);

	if (log_come)
		ereport(WARNING, (errmsg_internal("%s", message), hint ? errhint("%s", hint) : 0));
	if (log_gone)
		ereport(LOG, (errmsg("problem is over: %s", old_message)));
}

/* ---- lag ---- */

/* The entry for a partition, or an unused one, or NULL; needs the lag lock. */
static LagEntry *
find_lag(int32 log_id, int32 partition)
{
	LagEntry *unused = NULL;

	for (int i = 0; i < shared->nlags; i++)
	{
		LagEntry *entry = &shared->lags[i];

		if (entry->slot < 0)
		{
			if (unused == NULL)
				unused = entry;
		}
		else if (entry->dboid == own_slot->dboid && entry->log_id == log_id &&
				 entry->partition == partition)
			return entry;
	}
	if (unused == NULL && shared->nlags < SHARED_LAGS)
		unused = &shared->lags[shared->nlags++];
	return unused;
}

void
status_lag(int32 log_id, const char *topic, int32 partition, int64 position, int64 end_offset,
		   TimestampTz last_record_at)
{
	int slotno;
	LagEntry *entry = NULL;

	if (own_slot == NULL)
		return;
	slotno = own_slot - shared->slots;

	LWLockAcquire(shared->lag_lock, LW_EXCLUSIVE);
	for (int i = 0; i < own_nlags; i++)
	{
		LagEntry *candidate = &shared->lags[own_lags[i]];

		if (candidate->slot == slotno && candidate->log_id == log_id &&
			candidate->partition == partition)
		{
			entry = candidate;
			break;
		}
	}
	if (entry == NULL)
		entry = find_lag(log_id, partition);
	if (entry != NULL)
	{
		bool fresh = entry->slot != slotno || entry->start_no != own_slot->start_no ||
					 entry->log_id != log_id || entry->partition != partition;

		entry->slot = slotno;
		entry->start_no = own_slot->start_no;
		entry->dboid = own_slot->dboid;
		entry->log_id = log_id;
		entry->partition = partition;
		entry->position = position;
		entry->end_offset = end_offset;
		if (fresh)
			entry->caught_up_at = 0;
		if (position >= end_offset)
			entry->caught_up_at = GetCurrentTimestamp();
		/* a quiet night before a record is no lag */
		entry->last_record_at =
			last_record_at == 0 ? entry->caught_up_at : Max(last_record_at, entry->caught_up_at);
		copy_text(entry->topic, topic, TOPIC_SIZE);
		LWLockRelease(shared->lag_lock);

		if (fresh)
		{
			if (own_nlags == own_lags_size)
			{
				own_lags_size = own_lags_size ? own_lags_size * 2 : 16;
				own_lags = own_lags
							   ? repalloc(own_lags, own_lags_size * sizeof(int))
							   : MemoryContextAlloc(TopMemoryContext, own_lags_size * sizeof(int));
			}
			own_lags[own_nlags++] = entry - shared->lags;
		}
	}
	else
		LWLockRelease(shared->lag_lock);
}

void
status_lag_clear(void)
{
	int slotno;

	if (own_slot == NULL)
		return;
	slotno = own_slot - shared->slots;
	LWLockAcquire(shared->lag_lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->nlags; i++)
	{
		if (shared->lags[i].slot == slotno)
			shared->lags[i].slot = -1;
	}
	LWLockRelease(shared->lag_lock);
	own_nlags = 0;
}

/* ---- fan-out ---- */

bool
status_fans_out(Oid dboid)
{
	DatabaseEntry *db;
	bool result;

	if (shared == NULL)
		return false;
	LWLockAcquire(shared->lock, LW_SHARED);
	db = shared_database(dboid);
	result = db != NULL && db->redis && db->enabled;
	LWLockRelease(shared->lock);
	return result;
}

/* The entry of a partition of this worker's database, made if need be; NULL: no room. */
static NotifiedEntry *
notified_entry(int32 log_id, int32 partition)
{
	NotifiedEntry *entry = NULL;

	for (int i = 0; i < shared->nnotified; i++)
	{
		NotifiedEntry *candidate = &shared->notified[i];

		if (candidate->dboid == own_slot->dboid && candidate->log_id == log_id &&
			candidate->partition == partition)
			return candidate;
		if (!OidIsValid(candidate->dboid) && entry == NULL)
			entry = candidate;
	}
	if (entry == NULL && shared->nnotified < SHARED_LAGS)
		entry = &shared->notified[shared->nnotified++];
	if (entry != NULL)
	{
		entry->dboid = own_slot->dboid;
		entry->log_id = log_id;
		entry->partition = partition;
		entry->passed_at = entry->trying_until = DT_NOBEGIN;
	}
	return entry;
}

void
status_notified(int32 log_id, int32 partition, TimestampTz passed_at)
{
	NotifiedEntry *entry;

	if (own_slot == NULL)
		return;
	LWLockAcquire(shared->lag_lock, LW_EXCLUSIVE);
	entry = notified_entry(log_id, partition);
	if (entry != NULL)
		entry->passed_at = passed_at;
	LWLockRelease(shared->lag_lock);
}

void
status_notifying(int32 log_id, int32 partition, TimestampTz until)
{
	NotifiedEntry *entry;

	if (own_slot == NULL)
		return;
	LWLockAcquire(shared->lag_lock, LW_EXCLUSIVE);
	entry = notified_entry(log_id, partition);
	if (entry != NULL)
		entry->trying_until = Max(entry->trying_until, until);
	LWLockRelease(shared->lag_lock);
}

void
status_notified_clear(Oid dboid)
{
	LWLockAcquire(shared->lag_lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->nnotified; i++)
	{
		if (shared->notified[i].dboid == dboid)
			shared->notified[i].dboid = InvalidOid;
	}
	LWLockRelease(shared->lag_lock);
}

TimestampTz
status_notified_at(Oid dboid, int32 log_id, int32 partition)
{
	TimestampTz result = 0;

	if (shared == NULL)
		return 0;
	LWLockAcquire(shared->lag_lock, LW_SHARED);
	for (int i = 0; i < shared->nnotified; i++)
	{
		const NotifiedEntry *entry = &shared->notified[i];

		if (entry->dboid == dboid && entry->log_id == log_id && entry->partition == partition)
			result = entry->passed_at;
	}
	LWLockRelease(shared->lag_lock);
	return result;
}

TimestampTz
status_notifying_last(Oid dboid)
{
	TimestampTz result = DT_NOBEGIN;

	if (shared == NULL)
		return result;
	LWLockAcquire(shared->lag_lock, LW_SHARED);
	for (int i = 0; i < shared->nnotified; i++)
	{
		if (shared->notified[i].dboid == dboid)
			result = Max(result, shared->notified[i].trying_until);
	}
	LWLockRelease(shared->lag_lock);
	return result;
}

TimestampTz
status_notifying_until(Oid dboid, int32 log_id, int32 partition)
{
	TimestampTz result = DT_NOEND;

	if (shared == NULL)
		return DT_NOBEGIN;
	LWLockAcquire(shared->lag_lock, LW_SHARED);
	for (int i = 0; i < shared->nnotified; i++)
	{
		const NotifiedEntry *entry = &shared->notified[i];

		if (entry->dboid != dboid)
			continue;
		if (entry->log_id == log_id && entry->partition == partition)
		{
			result = entry->trying_until;
			break;
		}
		/* those that there were have entries: this one came later */
		result = DT_NOBEGIN;
	}
	LWLockRelease(shared->lag_lock);
	return result;
}

/* ---- dead letters ---- */

/*
 * Entries of databases with workers stay where they are, so that what is atomic
 * in them can be used without the lock; NULL where there is none.
 */
static DatabaseEntry *
database_entry(Oid dboid)
{
	DatabaseEntry *db;

	if (shared == NULL)
		return NULL;
	LWLockAcquire(shared->lock, LW_SHARED);
	db = shared_database(dboid);
	LWLockRelease(shared->lock);
	return db;
}

static pg_atomic_uint64 *
dead_letter_count(Oid dboid)
{
	DatabaseEntry *db = database_entry(dboid);

	return db ? &db->dead_letters : NULL;
}

int64
status_dead_letters(Oid dboid)
{
	pg_atomic_uint64 *count = dead_letter_count(dboid);

	return count ? (int64) pg_atomic_read_u64(count) : -1;
}

void
status_dead_letters_counted(Oid dboid, int64 before, int64 value)
{
	pg_atomic_uint64 *count = dead_letter_count(dboid);
	uint64 expected = (uint64) before;

	if (count != NULL)
		pg_atomic_compare_exchange_u64(count, &expected, (uint64) value);
}

void
status_dead_letters_add(Oid dboid, int64 value)
{
	pg_atomic_uint64 *count = dead_letter_count(dboid);
	uint64 old;
	int64 sum;

	if (count == NULL)
		return;
	old = pg_atomic_read_u64(count);
	do
	{
		/* not known: another negative one, so that who counts just now sees it */
		sum = (int64) old < 0 ? (int64) old - 1 : Max((int64) old + value, 0);
	} while (!pg_atomic_compare_exchange_u64(count, &old, (uint64) sum));
}

/* ---- received_at ---- */

TimestampTz
status_received(Oid dboid, TimestampTz at)
{
	DatabaseEntry *db = database_entry(dboid);
	uint64 latest;

	if (db == NULL)
		return at;
	latest = pg_atomic_read_u64(&db->received_at);
	while ((TimestampTz) latest < at &&
		   !pg_atomic_compare_exchange_u64(&db->received_at, &latest, (uint64) at))
		;
	return Max(at, (TimestampTz) latest);
}
