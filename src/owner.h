/*-------------------------------------------------------------------------
 *
 * owner.h
 *	  The owner's mark: whose a Kafka group and a Redis prefix are.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_OWNER_H
#define EVSTREAM_OWNER_H

#include "postgres.h"

#define OWNER_MARK_SIZE 128

/* Who this database is */
typedef struct Owner
{
	bool ours;   /* false: restored or moved, and it has not taken over */
	bool taken;  /* by evstream_take_over() */
	int64 claim; /* milliseconds when it was taken over, or else the extension created */
	char mark[OWNER_MARK_SIZE];
} Owner;

/* What another's mark is to us */
typedef enum OwnerVerdict
{
	OWNER_NOT_FOREIGN, /* ours, or of a claim before ours */
	OWNER_FOREIGN,     /* of another database */
	OWNER_COPY         /* of another extension in what looks like this database */
} OwnerVerdict;

/* Reads evstream.identity; within a unit of work. */
extern void owner_read(Owner *owner);

/* Whether a text is a mark at all. */
extern bool owner_is_mark(const char *text);

/*
 * Whose mark is it that was found?  One of another database counts if it was not
 * taken from it before: the group or the prefix is the first one's, until
 * evstream_take_over().  So does one of this database's extension.  A mark of this system
 * and database with another id is of an extension that was here before, or of a copy of
 * the data directory that was made before it had one: of these two the one that was
 * created or taken over last goes on.
 */
extern OwnerVerdict owner_judge(const Owner *owner, const char *mark);

/*
 * Is it the mark of a database of this system that is no more, from before ours was
 * created or took over?  Within a unit of work.
 */
extern bool owner_was_dropped(const Owner *owner, const char *mark);

/* What is said of one that is foreign, in palloc'd memory; what: "the Kafka group". */
extern char *owner_message(OwnerVerdict verdict, const char *what, const char *name,
						   const char *mark);

#endif /* EVSTREAM_OWNER_H */
