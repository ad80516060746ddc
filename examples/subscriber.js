#!/usr/bin/env node
// Receives a subscriber's events, each once, and resumes after any gap.
//
// usage: subscriber.js SUBSCRIBER FILE [SINCE]
//
// Appends each event to FILE, one JSON object a line, and prints its id in the stream.
// FILE is also all that is remembered: started again, it goes on behind it. With an
// empty FILE it begins with what is in the stream, or with the events since SINCE (a timestamp).
//
// Environment: REDIS_URL (redis://127.0.0.1:6379/0), REDIS_PREFIX (evstream:), and for
// the database PGHOST, PGDATABASE ... as psql takes them. Needs Node.js and psql only.
'use strict';

const child_process = require('child_process');
const fs = require('fs');
const net = require('net');
const util = require('util');

// --- the subscriber ----------------------------------------------------------------

async function follow(redis, stream, who, have, start) {
  for (;;) {
    // 1. Note the stream's last id. One who has nothing yet takes what is in the stream.
    const entries = await redis('XREVRANGE', stream, '+', '-', 'COUNT', '1');
    let last = entries.length ? entries[0][0] : '0-0';
    if (!have.newest && !start) {
      for (const [entry, fields] of await redis('XRANGE', stream, '-', last)) have.add(eventOf(fields), entry);
      start = new Date().toISOString();
    }
    // 2. Backfill from a minute before the last event that we have, page by page.
    let [since, less, after] = [have.newest || start, '1 minute', ''];
    for (let page; (page = await backfill(who, since, less, after)).length; ) {
      let event;
      for (const text of page) event = have.add(text, 'backfill');
      [since, less, after] = [event.received_at, '0', event.event_id];
    }
    // 3. Read on from the id of step 1; what we have is dropped by its event_id.
    for (let gap = false; !gap; ) {
      const reply = await redis('XREAD', 'COUNT', '1000', 'BLOCK', '5000', 'STREAMS', stream, last);
      for (const [entry, fields] of reply ? reply[0][1] : []) {
        gap = isGap(last, entry);
        if (gap) break;
        last = entry;
        have.add(eventOf(fields), last);
      }
    }
  }
}

const eventOf = (fields) => fields[fields.indexOf('event') + 1];

// A new epoch, or entries trimmed before we read them: join again.
function isGap(last, entry) {
  const [epoch0, seq0] = last.split('-').map(Number);
  const [epoch1, seq1] = entry.split('-').map(Number);
  return seq1 !== seq0 + 1 || (epoch0 !== 0 && epoch0 !== epoch1);
}

async function backfill(who, since, less, after) {
  const sql = `SELECT to_jsonb(b) FROM evstream_backfill(:'who', :'since'::timestamptz - :'less'::interval,
    after_event_id => nullif(:'after', '')::uuid) b;`;
  const vars = { ON_ERROR_STOP: '1', who, since, less, after };
  const args = Object.entries(vars).flatMap(([name, value]) => ['-v', `${name}=${value}`]);
  const env = { ...process.env, PGTZ: 'UTC', PGCLIENTENCODING: 'UTF8' };
  const run = util.promisify(child_process.execFile)('psql', ['-XAtq', ...args], { env, maxBuffer: 2 ** 30 });
  run.child.stdin.end(sql);
  return (await run).stdout.split('\n').slice(0, -1);
}

// The events that we have: a file, and the newest ids of it.
class Have {
  constructor(path) {
    this.ids = new Set();
    this.newest = '';
    this.file = fs.openSync(path, 'a+');
    const lines = fs.readFileSync(this.file);
    const end = lines.lastIndexOf('\n') + 1;
    fs.ftruncateSync(this.file, end); // a line that broke off is asked for again
    for (const line of lines.toString('utf8', 0, end).split('\n').slice(0, -1)) this.remember(JSON.parse(line));
  }

  remember(event) {
    this.ids.add(event.event_id);
    if (this.ids.size > 100000) this.ids.delete(this.ids.values().next().value);
    const second = event.received_at.slice(0, 19) + 'Z'; // in UTC
    if (second > this.newest) this.newest = second;
  }

  add(text, whence) {
    const event = JSON.parse(text);
    if (!this.ids.has(event.event_id)) {
      fs.writeSync(this.file, text + '\n'); // as it came: a float would not hold every amount
      this.remember(event);
      console.log(whence, event.event_type, event.user_id, event.amount ?? null);
    }
    return event;
  }
}

// --- Redis, in a few lines ------------------------------------------------------------

async function connect(url) {
  const { hostname, port, pathname, username, password } = new URL(url);
  const socket = net.connect(Number(port) || 6379, hostname.replace(/^\[|\]$/g, ''));
  const replies = parse(socket);
  const redis = async (...args) => {
    const parts = args.map((arg) => `$${Buffer.byteLength(arg)}\r\n${arg}\r\n`);
    socket.write(`*${args.length}\r\n${parts.join('')}`);
    const { value, done } = await replies.next();
    if (done) throw new Error('Redis has closed the connection');
    if (value instanceof Error) throw value;
    return value;
  };
  socket.setTimeout(30000, () => socket.destroy(new Error('Redis does not answer')));
  redis.close = () => socket.destroy();
  if (password) await redis('AUTH', ...(username ? [decodeURIComponent(username)] : []), decodeURIComponent(password));
  if (pathname.length > 1) await redis('SELECT', pathname.slice(1));
  return redis;
}

async function* parse(socket) {
  let data = Buffer.alloc(0);
  let chunks = [];
  let size = 0;
  let needed = 1;
  for await (const chunk of socket) {
    chunks.push(chunk);
    size += chunk.length;
    if (data.length + size < needed) continue;
    data = Buffer.concat([data, ...chunks]);
    chunks = [];
    size = 0;
    for (;;) {
      const found = parseOne(data, 0);
      needed = found.needed ?? 1;
      if (found.needed) break;
      data = data.subarray(found.next);
      yield found.value;
    }
  }
}

// One reply from pos on: its value and where the next begins, or how many bytes are needed at least.
function parseOne(data, pos) {
  const eol = data.indexOf('\r\n', pos);
  if (eol < 0) return { needed: data.length + 1 };
  const kind = String.fromCharCode(data[pos]);
  const rest = data.toString('utf8', pos + 1, eol);
  let next = eol + 2;
  if (kind === '-') return { value: new Error(rest), next };
  if (kind === '+') return { value: rest, next };
  if (kind === ':') return { value: Number(rest), next };
  const count = Number(rest);
  if (count < 0) return { value: null, next };
  if (kind === '$') {
    if (data.length < next + count + 2) return { needed: next + count + 2 };
    return { value: data.toString('utf8', next, next + count), next: next + count + 2 };
  }
  const value = [];
  while (value.length < count) {
    const found = parseOne(data, next);
    if (found.needed) return found;
    value.push(found.value);
    next = found.next;
  }
  return { value, next };
}

async function main() {
  const [who, path, start] = process.argv.slice(2);
  if (!path) {
    console.error('usage: subscriber.js SUBSCRIBER FILE [SINCE]');
    process.exit(2);
  }
  const have = new Have(path);
  for (;;) {
    let redis;
    try {
      redis = await connect(process.env.REDIS_URL || 'redis://127.0.0.1:6379/0');
      await follow(redis, `${process.env.REDIS_PREFIX || 'evstream:'}stream:${who}`, who, have, start);
    } catch (error) {
      console.error('again in a second:', error.message);
    }
    if (redis) redis.close();
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

main();
