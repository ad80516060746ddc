#!/usr/bin/env python3
"""Receives a subscriber's events, each once, and resumes after any gap.

usage: subscriber.py SUBSCRIBER FILE [SINCE]

Appends each event to FILE, one JSON object a line, and prints its id in the stream.
FILE is also all that is remembered: started again, it goes on behind it. With an
empty FILE it begins with what is in the stream, or with the events since SINCE (a timestamp).

Environment: REDIS_URL (redis://127.0.0.1:6379/0), REDIS_PREFIX (evstream:), and for
the database PGHOST, PGDATABASE ... as psql takes them. Needs Python 3 and psql only.
"""
import collections
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse


# --- the subscriber ---------------------------------------------------------------

def follow(redis, stream, who, have, start):
    while True:
        # 1. Note the stream's last id. One who has nothing yet takes what is in the stream.
        entries = redis("XREVRANGE", stream, "+", "-", "COUNT", "1")
        last = entries[0][0].decode() if entries else "0-0"
        if not have.newest and not start:
            for entry, fields in redis("XRANGE", stream, "-", last):
                have.add(event_of(fields), entry.decode())
            start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        # 2. Backfill from a minute before the last event that we have, page by page.
        since, less, after = have.newest or start, "1 minute", ""
        while page := backfill(who, since, less, after):
            for text in page:
                event = have.add(text, "backfill")
            since, less, after = event["received_at"], "0", event["event_id"]
        # 3. Read on from the id of step 1; what we have is dropped by its event_id.
        gap = False
        while not gap:
            for _, entries in redis("XREAD", "COUNT", "1000", "BLOCK", "5000", "STREAMS", stream, last) or []:
                for entry, fields in entries:
                    gap = is_gap(last, entry.decode())
                    if gap:
                        break
                    last = entry.decode()
                    have.add(event_of(fields), last)


def event_of(fields):
    return fields[fields.index(b"event") + 1].decode()


def is_gap(last, entry):
    """A new epoch, or entries trimmed before we read them: join again."""
    (epoch0, seq0), (epoch1, seq1) = (map(int, i.split("-")) for i in (last, entry))
    return seq1 != seq0 + 1 or epoch0 not in (0, epoch1)


def backfill(who, since, less, after):
    sql = """SELECT to_jsonb(b) FROM evstream_backfill(:'who', :'since'::timestamptz - :'less'::interval,
        after_event_id => nullif(:'after', '')::uuid) b;"""
    result = subprocess.run(
        ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-v", "who=" + who, "-v", "since=" + since, "-v", "less=" + less,
         "-v", "after=" + after], input=sql.encode(), stdout=subprocess.PIPE,
        env=dict(os.environ, PGTZ="UTC", PGCLIENTENCODING="UTF8"))
    if result.returncode != 0:
        raise OSError("backfill failed")
    return result.stdout.decode().split("\n")[:-1]


class Have:
    """The events that we have: a file, and the newest ids of it."""

    def __init__(self, path):
        self.ids, self.newest = collections.OrderedDict(), ""
        self.file = open(path, "a+b")
        self.file.seek(0)
        end = 0
        for line in self.file:
            if line.endswith(b"\n"):
                self.remember(json.loads(line))
                end += len(line)
        self.file.truncate(end)  # a line that broke off is asked for again

    def remember(self, event):
        self.ids[event["event_id"]] = None
        if len(self.ids) > 100000:
            self.ids.popitem(last=False)
        # To the second, in UTC.
        self.newest = max(self.newest, event["received_at"][:19] + "Z")

    def add(self, text, whence):
        event = json.loads(text)
        if event["event_id"] not in self.ids:
            # As it came: a float would not hold every amount.
            self.file.write(text.encode() + b"\n")
            self.file.flush()
            self.remember(event)
            print(whence, event["event_type"], event["user_id"], event.get("amount"), flush=True)
        return event


# --- Redis, in a few lines ---------------------------------------------------------

class Redis:
    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port or 6379), 30)
        self.file = self.socket.makefile("rb")
        if parts.password:
            user = [urllib.parse.unquote(parts.username)] if parts.username else []
            self("AUTH", *user, urllib.parse.unquote(parts.password))
        if parts.path.strip("/"):
            self("SELECT", parts.path.strip("/"))

    def __call__(self, *args):
        parts = [a.encode() for a in args]
        self.socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
        return self.reply()

    def reply(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("Redis has closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise ConnectionError(rest.decode())
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if int(rest) < 0:
            return None
        if kind == b"$":
            data = self.file.read(int(rest) + 2)
            if len(data) < int(rest) + 2:
                raise ConnectionError("Redis has closed the connection")
            return data[:-2]
        return [self.reply() for _ in range(int(rest))]


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    who, path, start = (sys.argv[1:] + [""])[:3]
    have = Have(path)
    while True:
        try:
            redis = Redis(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
            follow(redis, os.environ.get("REDIS_PREFIX", "evstream:") + "stream:" + who, who, have, start)
        except OSError as error:
            print("again in a second:", error, file=sys.stderr, flush=True)
            time.sleep(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
