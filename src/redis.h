/*-------------------------------------------------------------------------
 *
 * redis.h
 *	  The adapter to hiredis: the only user of hiredis.h.
 *
 * No function here raises a PostgreSQL error or waits, but for the name
 * service: sockets are non-blocking, and the caller waits for redis_fd() and
 * calls redis_advance(), as it also knows when it has waited long enough.
 * Memory of a client and of replies is malloc'd.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_REDIS_H
#define EVSTREAM_REDIS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REDIS_ERROR_SIZE 512

typedef enum RedisStatus
{
	RSTATUS_OK = 0,
	RSTATUS_AWAY,     /* no connection, or it was lost: close, open */
	RSTATUS_CONFIG,   /* the URL or TLS cannot be used */
	RSTATUS_NOAUTH,   /* user or password missing or wrong */
	RSTATUS_NOPERM,   /* the user may not do that */
	RSTATUS_LOADING,  /* reads its data at its start */
	RSTATUS_OOM,      /* maxmemory is reached */
	RSTATUS_READONLY, /* a replica */
	RSTATUS_MISCONF,  /* refuses writes, as it cannot save them */
	RSTATUS_BUSY,     /* a script of somebody runs */
	RSTATUS_NOSCRIPT, /* does not have the script any more */
	RSTATUS_WRONGTYPE,
	RSTATUS_FAILED /* any other error; see its text */
} RedisStatus;

/* What a client is made from; the texts need to live during the call only. */
typedef struct RedisConf
{
	const char *url;      /* redis://, rediss:// or unix:// */
	const char *user;     /* or NULL */
	const char *password; /* or NULL */
	const char *ca;       /* file of CA certificates for TLS; NULL: the system's */
} RedisConf;

typedef struct RedisClient RedisClient;
typedef struct RedisReply RedisReply;

/* Host (malloc'd; or the path), port and database of a URL; false where it is none. */
extern bool redis_url_parts(const char *url, char **host, int *port, int *db);

/* Can this library speak TLS (rediss://)? */
extern bool redis_has_tls(void);

/*
 * Begins to connect; NULL, with a text in error (REDIS_ERROR_SIZE) and the kind
 * in *status, where that failed at once.  AUTH and SELECT go out first.
 */
extern RedisClient *redis_open(const RedisConf *conf, RedisStatus *status, char *error);

/* Closes the connection and frees it; NULL is fine. */
extern void redis_close(RedisClient *client);

/* Is the address of the host still looked for?  That may take the resolver's time. */
extern bool redis_is_looking_up(const RedisClient *client);

/* What to wait for: readable, and also writable if redis_wants_write(). */
extern int redis_fd(const RedisClient *client);
extern bool redis_wants_write(const RedisClient *client);

/*
 * Connects, writes and reads as far as that goes without waiting.  Anything but
 * RSTATUS_OK means that the client is of no more use; the text is that of
 * redis_error().
 */
extern RedisStatus redis_advance(RedisClient *client);

/* Is it connected, and has it answered to AUTH and SELECT? */
extern bool redis_is_ready(const RedisClient *client);

/* The last error's text ("" if none); valid until the next call. */
extern const char *redis_error(const RedisClient *client);

/* Queues a command (a copy); its reply comes in order.  False: out of memory. */
extern bool redis_command(RedisClient *client, int argc, const char **argv, const size_t *lens);

/*
 * The next reply, if it has arrived, to be freed by redis_reply_free(); NULL
 * where there is none yet, or on an error, which the next redis_advance() tells.
 */
extern RedisReply *redis_reply(RedisClient *client);
extern void redis_reply_free(RedisReply *reply);

/* RSTATUS_OK, or what kind of error it is; its text is redis_reply_text(). */
extern RedisStatus redis_reply_status(const RedisReply *reply);

/* Text of a string, a status or an error; NULL where it is none, or nil. */
extern const char *redis_reply_text(const RedisReply *reply, size_t *len);

/*
 * Makes a text fit for a message: what is no UTF-8 and each control character
 * becomes a question mark.  For all that Redis has said.
 */
extern void redis_clean_text(char *text);

/* Value of an integer, also of one written as text; 0 where it is none. */
extern int64_t redis_reply_integer(const RedisReply *reply);

/* Elements of an array; NULL behind its end. */
extern size_t redis_reply_count(const RedisReply *reply);
extern const RedisReply *redis_reply_at(const RedisReply *reply, size_t i);

#endif /* EVSTREAM_REDIS_H */
