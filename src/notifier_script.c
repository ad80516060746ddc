/*-------------------------------------------------------------------------
 *
 * notifier_script.c
 *	  The scripts that run in Redis.
 *
 * A script is not undone by an error in its middle: so each one looks at
 * everything first, and writes the hash of cursors and sequences before any
 * stream, as a Redis that is full, read-only or cannot save refuses the first
 * write.  What fails nevertheless is set aside: its sequence becomes -1, and
 * the next delivery begins a new epoch.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "notifier.h"

/*
 * KEYS: the hash, then the streams of the subscribers.
 * ARGV: owner, field of the cursor, its value, its new value, least new epoch,
 * length of streams, prefix of channels, channel of all events or '', number of
 * events; then the events; then the subscribers; then for each event who gets it.
 *
 * A stream that others have filled with ids of the far future goes on behind
 * them, and does not draw the epochs of all others, and of the mirror, there.
 *
 * Gives {'ok', highest new epoch, deliveries, failed publications, why, number
 * set aside, name, why, ...}, or {'owner', who}, or {'moved', cursor}.
 */
const char *const notifier_script_send =
	"local state, owner, field = KEYS[1], ARGV[1], ARGV[2]\n"
	"local floor, maxlen, notify, all = tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8]\n"
	"local nevents, nsubs = tonumber(ARGV[9]), #KEYS - 1\n"
	"local first_sub, first_list = 9 + nevents, 9 + nevents + nsubs\n"
	"local head = redis.call('HMGET', state, 'owner', field, 'base')\n"
	"if head[1] ~= owner then return {'owner', head[1] or ''} end\n"
	"if (head[2] or '') ~= ARGV[3] then return {'moved', head[2] or ''} end\n"
	"local base = tonumber(head[3] or '0')\n"
	"floor = math.max(floor, base)\n"
	"local function text(n) return string.format('%.0f', n) end\n"
	/* in portions, as the stack of a call is limited */
	"local old = {}\n"
	"for from = 1, nsubs, 1000 do\n"
	"  local fields = {}\n"
	"  for i = from, math.min(from + 999, nsubs) do fields[#fields + 1] = 's:' .. ARGV[first_sub + i] end\n"
	"  local values = redis.call('HMGET', state, unpack(fields))\n"
	"  for i = 1, #fields do old[from + i - 1] = values[i] end\n"
	"end\n"
	"local epochs, seqs, aside, expiring, newest_epoch = {}, {}, {}, {}, 0\n"
	"for i = 1, nsubs do\n"
	"  local key = KEYS[i + 1]\n"
	"  local e, s, x = string.match(old[i] or '', '^(%d+) (%-?%d+)( ?x?)$')\n"
	"  local kind, last = redis.call('TYPE', key).ok, nil\n"
	"  if kind == 'stream' then\n"
	"    local entry = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]\n"
	"    last = entry and entry[1]\n"
	"    if not e or last ~= e .. '-' .. s then\n"
	"      local info = redis.call('XINFO', 'STREAM', key)\n"
	"      for k = 1, #info, 2 do if info[k] == 'last-generated-id' then last = info[k + 1] end end\n"
	"    end\n"
	"  elseif kind ~= 'none' then\n"
	"    aside[i] = 'its key holds a ' .. kind\n"
	"  end\n"
	"  epochs[i], seqs[i] = tonumber(e or 0), tonumber(s or -1)\n"
	"  if x == ' x' then expiring[i] = true end\n"
	"  if not aside[i] and (not e or last ~= e .. '-' .. s or epochs[i] < base) then\n"
	"    local ms = last and tonumber(string.match(last, '^%d+')) or 0\n"
	"    local epoch = math.max(floor, epochs[i] + 1, ms + 1)\n"
	"    if epoch > 9007199254740991 then\n"
	"      aside[i] = 'no id can follow ' .. (last or text(epoch - 1))\n"
	"    else\n"
	"      epochs[i], seqs[i] = epoch, 0\n"
	"      if epoch <= floor + 86400000 then newest_epoch = math.max(newest_epoch, epoch) end\n"
	"    end\n"
	"  end\n"
	"end\n"
	"local adds = {}\n"
	"for e = 1, nevents do\n"
	"  for number in string.gmatch(ARGV[first_list + e], '%d+') do\n"
	"    local i = tonumber(number)\n"
	"    if not aside[i] then\n"
	"      seqs[i] = seqs[i] + 1\n"
	"      adds[#adds + 1] = i\n"
	"      adds[#adds + 1] = e\n"
	"      adds[#adds + 1] = seqs[i]\n"
	"    end\n"
	"  end\n"
	"end\n"
	"local pairs_ = {field, ARGV[4]}\n"
	"local function write()\n"
	"  if #pairs_ > 0 then redis.call('HSET', state, unpack(pairs_)) end\n"
	"  pairs_ = {}\n"
	"end\n"
	"local function put_state(i, seq)\n"
	"  pairs_[#pairs_ + 1] = 's:' .. ARGV[first_sub + i]\n"
	"  pairs_[#pairs_ + 1] = text(epochs[i]) .. ' ' .. text(seq)\n"
	"  if #pairs_ >= 2000 then write() end\n"
	"end\n"
	"for i = 1, nsubs do\n"
	"  if not aside[i] then put_state(i, seqs[i]) elseif old[i] and seqs[i] >= 0 then put_state(i, -1) end\n"
	"end\n"
	"write()\n"
	"local function undo()\n"
	"  local function restore(name, value)\n"
	"    if value then redis.call('HSET', state, name, value) else redis.call('HDEL', state, name) end\n"
	"  end\n"
	"  restore(field, head[2])\n"
	"  for i = 1, nsubs do restore('s:' .. ARGV[first_sub + i], old[i]) end\n"
	"end\n"
	"local added, refused, refused_key = 0, nil, nil\n"
	"for k = 1, #adds, 3 do\n"
	"  local i, e, seq = adds[k], adds[k + 1], adds[k + 2]\n"
	"  if not aside[i] then\n"
	"    local done = redis.pcall('XADD', KEYS[i + 1], 'MAXLEN', '~', maxlen, text(epochs[i]) .. '-' .. text(seq), 'event', ARGV[9 + e])\n"
	"    if type(done) == 'table' and done.err then\n"
	"      local own = string.find(done.err, '^WRONGTYPE') or string.find(done.err, '^ERR The ID ') or string.find(done.err, '^ERR The stream ')\n"
	"      if not refused and not own then\n"
	"        refused, refused_key = done.err, KEYS[i + 1]\n"
	"      end\n"
	"      aside[i] = done.err\n"
	"      put_state(i, -1)\n"
	"    else\n"
	"      added = added + 1\n"
	"      if expiring[i] then\n"
	"        redis.pcall('PERSIST', KEYS[i + 1])\n"
	"        expiring[i] = nil\n"
	"      end\n"
	"    end\n"
	"  end\n"
	"end\n"
	/*
	 * Nothing could be added, and not for what the keys hold or their last ids:
	 * as if nothing had been.  Texts differ, so Redis is asked whether it is the
	 * rights, where it can be (7.0).
	 */
	"if refused and added == 0 then\n"
	"  undo()\n"
	"  refused = string.gsub(refused, '^ERR ', '')\n"
	"  if redis.acl_check_cmd and not redis.acl_check_cmd('XADD', refused_key, '*', 'event', '') then\n"
	"    return redis.error_reply('NOPERM ' .. refused)\n"
	"  end\n"
	"  return redis.error_reply(string.find(refused, '^%u+ ') and refused or 'ERR ' .. refused)\n"
	"end\n"
	"write()\n"
	"local failed, why = 0, ''\n"
	"local function publish(channel, message)\n"
	"  local done = redis.pcall('PUBLISH', channel, message)\n"
	"  if type(done) == 'table' and done.err then\n"
	"    failed = failed + 1\n"
	"    why = done.err\n"
	"  end\n"
	"end\n"
	"if all ~= '' then\n"
	"  for e = 1, nevents do publish(all, ARGV[9 + e]) end\n"
	"end\n"
	"local heads = {}\n"
	"for k = 1, #adds, 3 do\n"
	"  local i, e, seq = adds[k], adds[k + 1], adds[k + 2]\n"
	"  if not aside[i] then\n"
	"    local sub = ARGV[first_sub + i]\n"
	"    if not heads[i] then\n"
	"      local quoted = string.find(sub, '[%c\"\\\\]') and cjson.encode(sub) or '\"' .. sub .. '\"'\n"
	"      heads[i] = {'{\"epoch\": ' .. text(epochs[i]) .. ', \"seq\": ', ', \"subscriber_id\": ' .. quoted .. ', \"event\": '}\n"
	"    end\n"
	"    publish(notify .. sub, heads[i][1] .. text(seq) .. heads[i][2] .. ARGV[9 + e] .. '}')\n"
	"  end\n"
	"end\n"
	"local reply, naside = {'ok', text(newest_epoch), added, failed, why, 0}, 0\n"
	"for i = 1, nsubs do\n"
	"  if aside[i] then\n"
	"    naside = naside + 1\n"
	"    if naside <= 100 then\n"
	"      reply[#reply + 1] = ARGV[first_sub + i]\n"
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
