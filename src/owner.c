/*-------------------------------------------------------------------------
 *
 * owner.c
 *	  The owner's mark: whose a Kafka group and a Redis prefix are.
 *
 * A mark is evstream/<id>/<system identifier>/<database oid>/<claim>.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/uuid.h"

#include "event.h"
#include "owner.h"
#include "sql.h"

#define PREFIX "evstream/"
/* up to the end of the id */
#define ID_LEN (strlen(PREFIX) + 36)

void
owner_read(Owner *owner)
{
	char id[37];
	int64 system;
	Oid database;

	memset(owner, 0, sizeof(*owner));
	if (sql_execute(
			"SELECT mark::pg_catalog.uuid, system_identifier, database_oid, claim, claimed_at IS NOT NULL"
			" FROM evstream.identity",
			0, NULL, NULL, NULL, SPI_OK_SELECT) == 0)
		return;
	event_format_uuid(DatumGetUUIDP(sql_column(0, 1, NULL))->data, id);
	system = DatumGetInt64(sql_column(0, 2, NULL));
	database = DatumGetObjectId(sql_column(0, 3, NULL));
	owner->claim = DatumGetInt64(sql_column(0, 4, NULL));
	owner->taken = DatumGetBool(sql_column(0, 5, NULL));
	owner->ours = system == (int64) GetSystemIdentifier() && database == MyDatabaseId;
	snprintf(owner->mark, sizeof(owner->mark), PREFIX "%s/" UINT64_FORMAT "/%u/" INT64_FORMAT, id,
			 (uint64) system, database, owner->claim);
}

bool
owner_is_mark(const char *text)
{
	return strncmp(text, PREFIX, strlen(PREFIX)) == 0;
}

static int64
claim_of(const char *mark)
{
	return strtoll(strrchr(mark, '/') + 1, NULL, 10);
}

OwnerVerdict
owner_judge(const Owner *owner, const char *mark)
{
	const char *place = owner->mark + ID_LEN;
	Size place_len = strrchr(owner->mark, '/') + 1 - place;

	if (strlen(mark) <= ID_LEN || strncmp(mark + ID_LEN, place, place_len) != 0)
		/* what was only created has claimed nothing from others */
		return claim_of(mark) >= (owner->taken ? owner->claim : 0) ? OWNER_FOREIGN
																   : OWNER_NOT_FOREIGN;
	if (strncmp(mark, owner->mark, ID_LEN) == 0)
		return OWNER_NOT_FOREIGN;
	return claim_of(mark) >= owner->claim ? OWNER_COPY : OWNER_NOT_FOREIGN;
}

bool
owner_was_dropped(const Owner *owner, const char *mark)
{
	unsigned long long system;
	unsigned int database;

	return strlen(mark) > ID_LEN && sscanf(mark + ID_LEN, "/%llu/%u/", &system, &database) == 2 &&
		   system == GetSystemIdentifier() && claim_of(mark) < owner->claim &&
		   get_database_name(database) == NULL;
}

char *
owner_message(OwnerVerdict verdict, const char *what, const char *name, const char *mark)
{
	if (verdict == OWNER_COPY)
		return psprintf("%s \"%s\" belongs to a copy of this database, or to the extension that "
						"was here before (mark %s)",
						what, name, mark);
	return psprintf("%s \"%s\" belongs to another database (mark %s)", what, name, mark);
}
