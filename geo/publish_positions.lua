-- Takes one batch of positions and removals into a market: all of it or nothing.
--
-- KEYS  1 meta, 2 where, 3 gone, 4 cells, 5 stream (see redis_scripts.py). The cells'
--       own keys are made here from ARGV[1]; they carry the same hash tag, so the
--       whole market is one slot of a Redis Cluster.
-- ARGV  1 prefix of a cell's key
--       2 name for a new generation, used when none stands
--       3 token of this batch
--       4 sender's estimate of this Redis' time in ms, '' when it has none
--       5 how many batches the stream keeps
--       6 how long a removed driver's stamp is remembered, ms
--       7 driver ids (msgpack array of strings)
--       8 their records (78 bytes each, the first field holding minus the age in ms)
--       9 ids to remove (msgpack array), 10 their stamps (three doubles each)
-- Answers {generation, n, time in ms, applied, {0-based indexes of the outdated;
--          removals count on from the number of positions}}

local meta, where, gone, cells, stream = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local prefix, records, stamps = ARGV[1], ARGV[8], ARGV[10]
local call, sub, pack, unpack_from = redis.call, string.sub, struct.pack, struct.unpack
local RECORD, LIVE = 78, 32 -- a live driver's entry in `where` is stamp (24) and cell (8), a removed one's the stamp

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
-- A request that the network held back must not make its positions younger than they are (P5).
local sent = math.min(now, tonumber(ARGV[4]) or now)

local names = {} -- 8 raw bytes of a cell -> its hexadecimal name
local function name_of(cell)
  local name = names[cell]
  if not name then
    local low, high = unpack_from('<I4I4', cell)
    name = string.format('%x%08x', high, low)
    names[cell] = name
  end
  return name
end

local function leave(cell, id)
  local name = name_of(cell)
  call('HDEL', prefix .. name, id)
  if call('EXISTS', prefix .. name) == 0 then
    call('SREM', cells, name)
  end
end

-- 1: the held stamp is newer, 0: the same, -1: older or none. The second value: by its epoch alone.
local function compare(held, epoch, instance, seq)
  if not held then return -1, false end
  local e, i, s = unpack_from('<ddd', held)
  if e ~= epoch then return e > epoch and 1 or -1, e > epoch end
  if i ~= instance then return i > instance and 1 or -1, false end
  if s ~= seq then return s > seq and 1 or -1, false end
  return 0, false
end

local head = call('HMGET', meta, 'generation', 'n', 'token')
local generation, n, token = head[1], tonumber(head[2]), head[3]
if not generation then
  -- Flushed, evicted or new. What may be left of another generation goes, so that no driver stands in two cells (P6).
  for _, name in ipairs(call('SMEMBERS', cells)) do
    call('UNLINK', prefix .. name)
  end
  call('UNLINK', where, gone, cells, stream)
  generation, n, token = ARGV[2], 0, ''
  call('HSET', meta, 'generation', generation, 'n', '0', 'token', token)
end

-- The caller sends a driver once in a call, and at most 500 drivers: few enough for one HMGET and one HSET.
local ids = cmsgpack.unpack(ARGV[7])
local held_of = #ids > 0 and call('HMGET', where, unpack(ids)) or {}
local moved_ids, moved, entries, outdated = {}, {}, {}, {}
for index, id in ipairs(ids) do
  local at = (index - 1) * RECORD
  local held = held_of[index]
  local order, superseded = compare(held, unpack_from('<ddd', records, at + 33))
  if order < 0 then
    local cell = sub(records, at + 9, at + 16)
    local record = pack('<d', sent + unpack_from('<d', records, at + 1)) .. sub(records, at + 9, at + RECORD)
    local old = held and #held == LIVE and sub(held, 25)
    if held and not old then
      call('ZREM', gone, id)
    end
    if old ~= cell then
      if old then leave(old, id) end
      call('SADD', cells, name_of(cell))
    end
    call('HSET', prefix .. name_of(cell), id, record)
    entries[#entries + 1] = id
    entries[#entries + 1] = sub(records, at + 33, at + 56) .. cell
    moved_ids[#moved_ids + 1] = id
    moved[#moved + 1] = record
  elseif superseded then
    outdated[#outdated + 1] = index - 1
  end
end
if #entries > 0 then
  call('HSET', where, unpack(entries))
end

local removed_ids, removed = {}, {}
for index, id in ipairs(cmsgpack.unpack(ARGV[9])) do
  local at = (index - 1) * 24
  local held = call('HGET', where, id)
  local order, superseded = compare(held, unpack_from('<ddd', stamps, at + 1))
  local live = held and #held == LIVE
  if order < 0 or (order == 0 and live) then
    local stamp = sub(stamps, at + 1, at + 24)
    if live then leave(sub(held, 25), id) end
    call('HSET', where, id, stamp)
    call('ZADD', gone, now, id)
    removed_ids[#removed_ids + 1] = id
    removed[#removed + 1] = stamp
  elseif superseded then
    outdated[#outdated + 1] = #ids + index - 1
  end
end

-- Tombstones past their time, a bounded number a call (P10).
for _, id in ipairs(call('ZRANGEBYSCORE', gone, '-inf', now - tonumber(ARGV[6]), 'LIMIT', 0, 200)) do
  local held = call('HGET', where, id)
  if held and #held ~= LIVE then
    call('HDEL', where, id)
  end
  call('ZREM', gone, id)
end

local applied = #moved_ids + #removed_ids
if applied > 0 then
  n = n + 1
  local packed_ids = #moved_ids == #ids and ARGV[7] or cmsgpack.pack(moved_ids)
  local entry = {
    'chain', generation .. ' ' .. ARGV[3] .. ' ' .. token,
    'ids', packed_ids, 'records', table.concat(moved),
  }
  if #removed_ids > 0 then
    entry[7], entry[8], entry[9], entry[10] = 'removed', cmsgpack.pack(removed_ids), 'stamps', table.concat(removed)
  end
  call('XADD', stream, 'MAXLEN', '~', ARGV[5], string.format('%.0f-1', n), unpack(entry))
  call('HSET', meta, 'n', string.format('%.0f', n), 'token', ARGV[3])
end
return {generation, n, now, applied, outdated}
