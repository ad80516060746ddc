/*-------------------------------------------------------------------------
 *
 * evstream.c
 *	  Module start: settings, shared memory, hook, launcher.
 *
 * Without shared_preload_libraries there are the settings and the functions,
 * but no shared memory and no workers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "compat.h"
#include "hooks.h"
#include "launcher.h"
#include "settings.h"
#include "shared.h"

COMPAT_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	settings_define();
	if (!process_shared_preload_libraries_in_progress)
		return;
	shared_request();
	hooks_install();
	launcher_register();
}
