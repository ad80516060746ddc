/*-------------------------------------------------------------------------
 *
 * hooks.h
 *	  Utility statements that concern the workers, and requests at commit.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_HOOKS_H
#define EVSTREAM_HOOKS_H

/* Installs the hook; from _PG_init() of a preloaded library only. */
extern void hooks_install(void);

#endif /* EVSTREAM_HOOKS_H */
