/*-------------------------------------------------------------------------
 *
 * notifier_script.c
 *	  The scripts that run in Redis.
 *
 * A script is not undone by an error in its middle: so each one looks at what
 * concerns all first, and moves the cursor before it writes any stream, as a
 * Redis that is full, read-only or cannot save refuses the first write.  A stream
 * that cannot be written to is set aside: its sequence becomes -1, and the next
 * delivery begins a new epoch.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "notifier.h"

/*
 * KEYS: the hash, then the streams of the subscribers.
 * ARGV: owner, least new epoch, length of streams, where a subscriber's id begins
 * in a key, prefix of channels, channel of all events or '', number of events,
 * number of cursors; then for each cursor its field, value and new value; then the
 * events; then for each subscriber the numbers of those that it gets, from 1, two
 * bytes each.
 *
 * A stream that is there and whose sequence is known is only written to: an entry
 * that cannot follow its last one is refused by Redis, and then it is looked at like
 * those that are new or have gone.  Most of what a delivery costs is the calls that
 * are made for it and the texts that are made: each one is hashed, all of it.  So
 * there are no others than id and message, numbers are written once for ten of
 * them, and streams are trimmed with the last of their entries (and some between,
 * as Redis may take few away at a time).
 *
 * A stream that others have filled with ids of the far future goes on behind
 * them, and does not draw the epochs of all others, and of the mirror, there.
 *
 * Gives {'ok', highest new epoch, deliveries, failed publications, why, number
 * set aside, name, why, ...}, or {'owner', who}, or {'moved', cursor}.
 */
const char *const notifier_script_send =
	"local keys, argv, state, owner = KEYS, ARGV, KEYS[1], ARGV[1]\n"
	"local floor, maxlen, id_at, notify = tonumber(argv[2]), argv[3], tonumber(argv[4]), argv[5]\n"
	"local all, nevents, ncursors, nsubs = argv[6], tonumber(argv[7]), tonumber(argv[8]), #keys - 1\n"
	"local events_at = 8 + 3 * ncursors\n"
	"local lists_at = events_at + nevents\n"
	"local call, try, unpack, type = redis.call, redis.pcall, unpack, type\n"
	"local format, match, find, byte = string.format, string.match, string.find, string.byte\n"
	"local moving, moved = {}, {}\n"
	"for c = 1, ncursors do\n"
	"  moving[c] = argv[6 + 3 * c]\n"
	"  moved[2 * c - 1], moved[2 * c] = moving[c], argv[8 + 3 * c]\n"
	"end\n"
	"local head = call('HMGET', state, 'owner', 'base', unpack(moving))\n"
	"if head[1] ~= owner then return {'owner', head[1] or ''} end\n"
	"for c = 1, ncursors do\n"
	"  if (head[2 + c] or '') ~= argv[7 + 3 * c] then return {'moved', head[2 + c] or ''} end\n"
	"end\n"
	"local base = tonumber(head[2] or '0')\n"
	"floor = math.max(floor, base)\n"
	"local function text(n) return format('%.0f', n) end\n"
	/* in portions, as the stack of a call is limited */
	"local subs, fields, old, gone = {}, {}, {}, {}\n"
	"for from = 1, nsubs, 1000 do\n"
	"  local to = math.min(from + 999, nsubs)\n"
	"  for i = from, to do\n"
	"    subs[i] = string.sub(keys[i + 1], id_at)\n"
	"    fields[i] = 's:' .. subs[i]\n"
	"  end\n"
	"  local values = call('HMGET', state, unpack(fields, from, to))\n"
	"  for i = from, to do old[i] = values[i - from + 1] end\n"
	"  if call('EXISTS', unpack(keys, from + 1, to + 1)) <= to - from then\n"
	"    for i = from, to do gone[i] = call('EXISTS', keys[i + 1]) == 0 end\n"
	"  end\n"
	"end\n"
	"local aside, newest_epoch = {}, 0\n"
	/* the epoch that a stream begins after an earlier one, unless it is set aside */
	"local function begin(i, epoch, look)\n"
	"  local kind, last = look('TYPE', keys[i + 1]), nil\n"
	"  if kind.ok == 'stream' then\n"
	"    local info = look('XINFO', 'STREAM', keys[i + 1])\n"
	"    for k = 1, #info, 2 do if info[k] == 'last-generated-id' then last = info[k + 1] end end\n"
	"    if not last then aside[i] = info.err or 'no last id is known' end\n"
	"  elseif kind.ok ~= 'none' then\n"
	"    aside[i] = kind.err or 'its key holds a ' .. kind.ok\n"
	"  end\n"
	"  if aside[i] then return nil end\n"
	"  epoch = math.max(floor, epoch + 1, last and tonumber(match(last, '^%d+')) + 1 or 0)\n"
	"  if epoch > 9007199254740991 then\n"
	"    aside[i] = 'no id can follow ' .. (last or text(epoch - 1))\n"
	"    return nil\n"
	"  end\n"
	"  if epoch <= floor + 86400000 then newest_epoch = math.max(newest_epoch, epoch) end\n"
	"  return text(epoch), last\n"
	"end\n"
	"local epochs, seqs, known, expiring = {}, {}, {}, {}\n"
	"for i = 1, nsubs do\n"
	"  local epoch, seq, mark = match(old[i] or '', '^(%d+) (%-?%d+)( ?x?)$')\n"
	"  if epoch and not gone[i] and seq ~= '-1' and tonumber(epoch) >= base then\n"
	"    epochs[i], seqs[i], known[i] = epoch, tonumber(seq), true\n"
	"  else\n"
	"    epochs[i], seqs[i] = begin(i, tonumber(epoch or 0), call) or epoch, 0\n"
	"  end\n"
	"  expiring[i] = mark == ' x'\n"
	"end\n"
	/* from here on nothing is to raise an error */
	"call('HSET', state, unpack(moved))\n"
	"local added, failed, why, refused, refused_key = 0, 0, '', nil, nil\n"
	/* Was it for the key, or its last id, which is another than is known? */
	"local function again(i, seq, event, done, first)\n"
	"  if first and known[i] then\n"
	"    local epoch, last = begin(i, tonumber(epochs[i]), try)\n"
	"    if not epoch then return false end\n"
	"    if last ~= epochs[i] .. '-' .. format('%d', seq - 1) then\n"
	"      epochs[i], seqs[i] = epoch, 0\n"
	"      done = try('XADD', keys[i + 1], epoch .. '-1', 'event', event)\n"
	"      if not done.err then return true end\n"
	"    end\n"
	"  end\n"
	"  local own = find(done.err, '^WRONGTYPE') or find(done.err, '^ERR The ID ') or find(done.err, '^ERR The stream ')\n"
	"  if not own and not refused then refused, refused_key = done.err, keys[i + 1] end\n"
	"  aside[i] = done.err\n"
	"  return false\n"
	"end\n"
	/* what ids and messages begin with, up to the last digit of the sequence */
	"local function heads(epoch, seq)\n"
	"  local tens = seq < 10 and '' or format('%d', math.floor(seq / 10))\n"
	"  return epoch .. '-' .. tens, '{\"epoch\": ' .. epoch .. ', \"seq\": ' .. tens\n"
	"end\n"
	"local digits = {[0] = '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'}\n"
	"local states, nstates = {}, 0\n"
	"for i = 1, nsubs do\n"
	"  local sub, key, list, seq = subs[i], keys[i + 1], argv[lists_at + i], seqs[i]\n"
	"  if not aside[i] then\n"
	"    local quoted = find(sub, '[%c\"\\\\]') and cjson.encode(sub) or '\"' .. sub .. '\"'\n"
	"    local channel, middle = notify .. sub, ', \"subscriber_id\": ' .. quoted .. ', \"event\": '\n"
	"    local ids, head = heads(epochs[i], seq)\n"
	"    local last, done = #list - 1, nil\n"
	"    for at = 1, last, 2 do\n"
	"      local high, low = byte(list, at, at + 1)\n"
	"      local event = argv[events_at + high * 256 + low]\n"
	"      local digit = (seq + 1) % 10\n"
	"      if digit == 0 then ids, head = heads(epochs[i], seq + 1) end\n"
	"      digit = digits[digit]\n"
	"      local id = ids .. digit\n"
	"      if at < last and at % 128 ~= 127 then done = try('XADD', key, id, 'event', event)\n"
	"      else done = try('XADD', key, 'MAXLEN', '~', maxlen, id, 'event', event) end\n"
	"      if done ~= id and type(done) == 'table' then\n"
	"        if not again(i, seq + 1, event, done, at == 1) then break end\n"
	"        seq, digit = 0, '1'\n"
	"        ids, head = heads(epochs[i], 1)\n"
	"      end\n"
	"      seq = seq + 1\n"
	"      added = added + 1\n"
	"      done = try('PUBLISH', channel, head .. digit .. middle .. event .. '}')\n"
	"      if done ~= 0 and type(done) == 'table' then\n"
	"        failed = failed + 1\n"
	"        why = done.err\n"
	"      end\n"
	"    end\n"
	"    if expiring[i] and seq > seqs[i] then try('PERSIST', key) end\n"
	"  end\n"
	"  if epochs[i] then\n"
	"    states[nstates + 1] = fields[i]\n"
	"    nstates = nstates + 2\n"
	"    states[nstates] = epochs[i] .. ' ' .. (aside[i] and '-1' or format('%d', seq))\n"
	"  end\n"
	"end\n"
	/*
	 * Nothing could be added, and not for what the keys hold or their last ids:
	 * as if nothing had been.  Texts differ, so Redis is asked whether it is the
	 * rights, where it can be (7.0).
	 */
	"if refused and added == 0 then\n"
	"  for c = 1, ncursors do\n"
	"    if head[2 + c] then call('HSET', state, moving[c], head[2 + c]) else call('HDEL', state, moving[c]) end\n"
	"  end\n"
	"  refused = string.gsub(refused, '^ERR ', '')\n"
	"  if redis.acl_check_cmd and not redis.acl_check_cmd('XADD', refused_key, '*', 'event', '') then\n"
	"    return redis.error_reply('NOPERM ' .. refused)\n"
	"  end\n"
	"  return redis.error_reply(find(refused, '^%u+ ') and refused or 'ERR ' .. refused)\n"
	"end\n"
	"for from = 1, nstates, 2000 do\n"
	"  call('HSET', state, unpack(states, from, math.min(from + 1999, nstates)))\n"
	"end\n"
	"if all ~= '' then\n"
	"  for e = 1, nevents do\n"
	"    local done = try('PUBLISH', all, argv[events_at + e])\n"
	"    if done ~= 0 and type(done) == 'table' then\n"
	"      failed = failed + 1\n"
	"      why = done.err\n"
	"    end\n"
	"  end\n"
	"end\n"
	"local reply, naside = {'ok', text(newest_epoch), added, failed, why, 0}, 0\n"
	"for i = 1, nsubs do\n"
	"  if aside[i] then\n"
	"    naside = naside + 1\n"
	"    if naside <= 100 then\n"
	"      reply[#reply + 1] = subs[i]\n"
	"      reply[#reply + 1] = aside[i]\n"
	"    end\n"
	"  end\n"
	"end\n"
	"reply[6] = naside\n"
	"return reply\n";

/*
 * Takes the hash over, and sets cursors right.
 * KEYS: the hash.  ARGV: owner as it was found, new owner, least epoch that goes
 * on or '', then field, value as it was found, new value ('': none), ...
 */
const char *const notifier_script_anchor =
	"local state = KEYS[1]\n"
	"if (redis.call('HGET', state, 'owner') or '') ~= ARGV[1] then return {'moved'} end\n"
	"for i = 4, #ARGV, 3 do\n"
	"  if (redis.call('HGET', state, ARGV[i]) or '') ~= ARGV[i + 1] then return {'moved'} end\n"
	"end\n"
	"redis.call('HSET', state, 'owner', ARGV[2])\n"
	"if ARGV[3] ~= '' then redis.call('HSET', state, 'base', ARGV[3]) end\n"
	"for i = 4, #ARGV, 3 do\n"
	"  if ARGV[i + 2] == '' then redis.call('HDEL', state, ARGV[i])\n"
	"  else redis.call('HSET', state, ARGV[i], ARGV[i + 2]) end\n"
	"end\n"
	"return {'ok'}\n";

/*
 * Lets streams expire, or forgets those that have gone.
 * KEYS: the hash, then streams.  ARGV: owner, milliseconds, then subscribers.
 * Gives {'ok', 1 for each stream that is there and expires, else 0, ...}.
 */
const char *const notifier_script_expire =
	"local state = KEYS[1]\n"
	"if redis.call('HGET', state, 'owner') ~= ARGV[1] then return {'moved'} end\n"
	"local reply = {'ok'}\n"
	"for i = 2, #KEYS do\n"
	"  local name = 's:' .. ARGV[i + 1]\n"
	"  local value = redis.call('HGET', state, name)\n"
	"  if redis.call('TYPE', KEYS[i]).ok == 'stream' then\n"
	"    if value and not string.find(value, ' x$') then redis.call('HSET', state, name, value .. ' x') end\n"
	"    redis.call('PEXPIRE', KEYS[i], ARGV[2])\n"
	"    reply[i] = 1\n"
	"  else\n"
	"    redis.call('HDEL', state, name)\n"
	"    reply[i] = 0\n"
	"  end\n"
	"end\n"
	"return reply\n";
