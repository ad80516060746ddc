/*-------------------------------------------------------------------------
 *
 * launcher.h
 *	  The launcher: which workers should run, and starting them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_LAUNCHER_H
#define EVSTREAM_LAUNCHER_H

#include "postgres.h"

/* Registers the launcher; from _PG_init() of a preloaded library only. */
extern void launcher_register(void);

extern PGDLLEXPORT void evstream_launcher_main(Datum main_arg);

/*
 * Looks into one database for the launcher: is the extension there, and what
 * do the settings of this database ask for?
 */
extern PGDLLEXPORT void evstream_scout_main(Datum main_arg);

#endif /* EVSTREAM_LAUNCHER_H */
