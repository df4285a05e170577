-- The frame of every script: read first, decide, write last.
--
-- A script never writes while it still reads: `write` and `later` only collect, and the loader calls `commit` after the
-- body has returned. A slot that migrates half-way, or an error in the middle, so leaves nothing half done. The one
-- exception is XREADGROUP in claim.lua, whose loss `redeliver` mends.

local writes = {}
local sorted_sets = {}  -- key -> {member -> its score there; false = out of it}
local read_off = {}  -- stream -> ids of entries that are dealt with
local handed_out = {}  -- stream -> ids of the entries that this script has read as a member of the group, in order; all are dealt with
local events = {}
local changed_runs = {}
local ttls = {}  -- key -> ms that it has left; false = it stays
local set  -- set(run, field, value): runs.lua
local save  -- save(run): runs.lua
local free_calls  -- free_calls(run): calls.lua
local WORTH_A_SWEEP = 8
local GROUP = 'workers'  -- the consumer group of every stream of runs
local MOST_ARGUMENTS = 1000  -- of one command; Lua's stack has room for 8,000

-- Any command, run in the order of these calls.
local function write(...)
  writes[#writes + 1] = {...}
end

local function later(act)
  writes[#writes + 1] = act
end

-- Members of sorted sets. One command a set then moves them all; the last word about a member counts.
local function zadd(key, score, member)
  local members = sorted_sets[key]
  if not members then
    members = {}
    sorted_sets[key] = members
  end
  members[member] = score
end

local function zrem(key, member)
  zadd(key, false, member)
end

-- An entry of a stream of runs that is dealt with.
local function xdrop(stream, id)
  local ids = read_off[stream]
  if not ids then
    ids = {}
    read_off[stream] = ids
  end
  ids[#ids + 1] = id
end

-- How long a key may stay from now on, also one that this script writes.
local function expire(key, ms)
  ttls[key] = ms
end

-- An event in the namespace's feed. Watchers follow it; it is trimmed, and nobody's correctness depends on it.
local function emit(...)
  events[#events + 1] = {...}
end

local function in_parts(list, command, key, group)
  for i = 1, #list, MOST_ARGUMENTS do
    local last = math.min(i + MOST_ARGUMENTS - 1, #list)
    if group then redis.call(command, key, group, unpack(list, i, last)) else redis.call(command, key, unpack(list, i, last)) end
  end
end

-- A number as Redis reads it. Handed over as a number it would be written out anew each time, which costs as much as the command.
local texts = {}
local function as_text(number)
  local text = texts[number]
  if not text then
    text = number % 1 == 0 and string.format('%d', number) or string.format('%.17g', number)
    texts[number] = text
  end
  return text
end

local function move_members(key, members)
  local joining, leaving = {}, {}
  for member, score in pairs(members) do
    if score then
      joining[#joining + 1] = as_text(score)
      joining[#joining + 1] = member
    else
      leaving[#leaving + 1] = member
    end
  end
  in_parts(leaving, 'ZREM', key)
  in_parts(joining, 'ZADD', key)
end

-- Delete entries that are acknowledged. XDEL looks for each from the beginning of its node of a hundred. Where nobody holds any
-- entry, all up to the last one that was read are dealt with, and those go in one sweep.
local function delete_entries(key, ids, read)
  if not read or #read < WORTH_A_SWEEP or redis.call('XPENDING', key, GROUP)[1] > 0 then return in_parts(ids, 'XDEL', key) end
  local swept, rest = {}, {}
  for i = 1, #read - 1 do swept[read[i]] = true end
  for _, id in ipairs(ids) do
    if not swept[id] then rest[#rest + 1] = id end
  end
  redis.call('XTRIM', key, 'MINID', read[#read])
  in_parts(rest, 'XDEL', key)
end

local function commit()
  for _, entry in ipairs(writes) do
    if type(entry) == 'function' then entry() else redis.call(unpack(entry)) end
  end
  for key, members in pairs(sorted_sets) do move_members(key, members) end
  for stream, ids in pairs(read_off) do
    in_parts(ids, 'XACK', prefix .. stream, GROUP)
    delete_entries(prefix .. stream, ids, handed_out[stream])
  end
  for _, run in ipairs(changed_runs) do save(run) end
  for key, ms in pairs(ttls) do
    if ms then redis.call('PEXPIRE', key, ms) else redis.call('PERSIST', key) end
  end
  if events[1] then
    local feed = prefix .. 'events'
    for _, event in ipairs(events) do redis.call('XADD', feed, '*', 'e', unpack(event)) end
    redis.call('XTRIM', feed, 'MAXLEN', '~', EVENTS_KEPT)
  end
end

-- Redis hands out false for what is not there.
local function present(value)
  return value and value ~= ''
end

local function split(text)
  local parts = {}
  if present(text) then
    for part in string.gmatch(text, '[^\n]+') do parts[#parts + 1] = part end
  end
  return parts
end

-- Wake the schedulers that sleep until the next due run: an earlier one has come.
local function signal()
  write('XADD', prefix .. 'signals', 'MAXLEN', '~', 16, '*', 's', 'due')
end
