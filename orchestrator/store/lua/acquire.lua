-- Slots for code that runs: all of them, or a place among those who wait for them.
--
-- The same call again is answered as it stands, or that it can never be: its limit was lowered since. Whoever waits at a limit
-- before this call goes before it.
--
-- FLAGS allow-oom
-- USES core gates runs places calls
-- ARGV run      str     the run whose code asks
--      attempt  int     its attempt
--      worker   str     who executes it
--      call     int     the call's number in that attempt, from 1
--      of       str     global = names are those of global limits; tag = tags of a task run
--      names    packed  a list
--      slots    int     how many of each
--      rate     int     1 = only limits with slot decay will do
--      strict   int     1 = every name needs a limit
--      alive_ms int     a scheduler that was silent so long is gone
-- RETURN {'granted', names without a limit} | {'waiting', what for, when to call wake in ms if no scheduler will, else ''}
--        | {'missing', name} | {'impossible', what refuses} | {'no_decay', name} | {'superseded', attempt}

local MOST_SLOTS = 1000

local found = load_run(run)
if not found then return {'superseded', 0} end
if not is_leased(found, attempt, worker) then return {'superseded', found.attempt} end

-- What a call that waits is told: the limit with its figures, and when to wake it where nobody else would.
local function waiting(gate)
  local wakes = ''
  local moment = room_at(gate, slots)
  if moment and redis.call('ZCOUNT', prefix .. 'schedulers', now - alive_ms, '+inf') == 0 then
    wakes = math.max(1, moment - now)
  end
  local figures = gate.limit and ' (' .. gate.used .. '/' .. gate.limit .. ' used)' or ' (paused)'
  return {'waiting', title(gate) .. figures, wakes}
end

local function too_few(gate)
  return gate.limit and gate.limit > 0 and slots > gate.limit
end

local function impossible(gate)
  return {'impossible', title(gate) .. ' has ' .. gate.limit .. ' in all'}
end

local known, place = call_of(found, call)
if known then
  if known[CALL.waits] == '' then return {'granted', ''} end
  local gate = find_gate(known[CALL.waits])
  if not too_few(gate) then return waiting(gate) end
  -- The limit was lowered since: the call would wait for ever, and everybody behind it.
  unpark_call(found, known)
  table.remove(calls_of(found), place)
  save_calls(found)
  wake_at(gate, now)
  return impossible(gate)
end

-- A tag's slot that the flow run has, or the run in whose process it was called, holds for its task runs too.
local function held_above(gate)
  local above = found
  while not present(above.pool) and present(above.parent) do
    local parent = load_run(above.parent)
    if not parent then break end
    above = parent
  end
  return held_gates(above)[gate]
end

local asked, missing = {}, {}
for _, name in ipairs(names) do
  local gate = of == 'tag' and find_gate('tag:' .. name) or of == 'global' and global_gate(name)
  if not gate or not gate.stored then
    missing[#missing + 1] = name
  elseif rate == 1 and not gate.decay and not gate.defect then
    return {'no_decay', name}
  elseif too_few(gate) then
    return impossible(gate)
  elseif slots > MOST_SLOTS and not gate.decay then
    return {'impossible', title(gate) .. ' gives ' .. MOST_SLOTS .. ' at a time at most'}
  elseif of == 'global' or not held_above(gate.name) then
    asked[#asked + 1] = gate
  end
end
if strict == 1 and missing[1] then return {'missing', missing[1]} end
local without = table.concat(missing, '\n')
if not asked[1] then return {'granted', without} end

local gate_list = {}
for i, gate in ipairs(asked) do gate_list[i] = gate.name end
local asking = {call, of == 'tag' and 'task' or 'code', slots, '', now, gate_list}
-- In the order of asking, also within one millisecond.
local score = found.prio * 1e13 + now + (call % 256) / 512

local function refuses(gate)
  if not gate.limit then return false end
  local first = redis.call('ZRANGE', prefix .. 'parked:' .. gate.name, 0, 0, 'WITHSCORES')
  return not fits(gate, slots) or (first[2] and tonumber(first[2]) <= score)
end

local refusing
for _, gate in ipairs(asked) do refusing = refusing or (refuses(gate) and gate) end
local list = calls_of(found)
list[#list + 1] = asking
if refusing then park_call(found, asking, refusing, score) else take_call(found, asking) end
save_calls(found)
if refusing then return waiting(refusing) end
return {'granted', without}
