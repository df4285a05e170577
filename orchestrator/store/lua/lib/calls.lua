-- Calls: slots that running code asks for, `concurrency()`, `rate_limit()` and task runs with tags.
--
-- A call belongs to an attempt of a run that is leased, and dies with it. The run's field `calls` lists them, msgpack:
-- {number, kind, slots, the gate that it waits at or '', since when in ms, {gates}}, the kind being code or task. The gates are those
-- that a waiting call asks, and those where one that was granted has its slots: not a rate limit, whose slots come back by time.

local CALL = {number = 1, kind = 2, slots = 3, waits = 4, since = 5, gates = 6}

local function calls_of(run)
  if not run.call_list then run.call_list = present(run.calls) and cmsgpack.unpack(run.calls) or {} end
  return run.call_list
end

local function save_calls(run)
  set(run, 'calls', #calls_of(run) > 0 and cmsgpack.pack(run.call_list) or '')
end

-- A run's call of that number, and its place in the list.
local function call_of(run, number)
  for i, call in ipairs(calls_of(run)) do
    if call[CALL.number] == number then return call, i end
  end
end

-- The run and the call that a waiter's or a slot's name begins with, as long as that attempt is leased; else nil.
local function read_name(name)
  local id, attempt, number = string.match(name, '^([^:]+):(%d+):(%d+)')
  local run = id and load_run(id)
  if run and is_leased(run, tonumber(attempt), run.worker) then return run, call_of(run, tonumber(number)) end
end

local function waiter_name(run, call)
  return run.id .. ':' .. run.attempt .. ':' .. call[CALL.number]
end

local function slot_names(run, call)
  local names = {}
  for i = 1, call[CALL.slots] do names[i] = waiter_name(run, call) .. ':' .. (i - 1) end
  return names
end

-- The first of its gates that does not let the call through, or nil.
local function call_refusal(call)
  for _, name in ipairs(call[CALL.gates]) do
    local gate = find_gate(name)
    if not fits(gate, call[CALL.slots]) then return gate end
  end
end

-- Take the call's slots at all of its gates. A disabled limit counts them too, so that it knows them when it is enabled.
local function take_call(run, call)
  local slots, taken = call[CALL.slots], {}
  for _, name in ipairs(call[CALL.gates]) do
    local gate = find_gate(name)
    if gate.decay and gate.limit then
      gate.back_at = math.max(gate.back_at, now) + slots * 1000 / gate.decay
      gate.used = used_of_rate(gate)
      write('HSET', prefix .. 'rates', name, string.format('%.3f', gate.back_at))
    elseif gate.stored and not gate.decay then
      for _, member in ipairs(slot_names(run, call)) do zadd(gate.slots, now, member) end
      if gate.used then gate.used = gate.used + slots end
      taken[#taken + 1] = name
    end
  end
  call[CALL.gates] = taken
  call[CALL.waits] = ''
  call[CALL.since] = now
end

-- When time will have made room for so many, in ms; nil where it will not.
local function room_at(gate, slots)
  if not gate.decay or not gate.limit or slots > gate.limit then return end
  return math.ceil(gate.back_at - (gate.limit - slots) * 1000 / gate.decay)
end

-- Have a gate woken at a moment, if it is not to be woken before. Time alone makes room at a rate limit.
local function wake_at(gate, moment)
  gate.wakes_at = gate.wakes_at or tonumber(redis.call('ZSCORE', prefix .. 'wake_due', gate.name) or math.huge)
  if gate.wakes_at <= moment then return end
  gate.wakes_at = moment
  zadd(prefix .. 'wake_due', moment, gate.name)
  signal()
end

local function park_call(run, call, gate, score)
  call[CALL.waits] = gate.name
  zadd(prefix .. 'parked:' .. gate.name, score, waiter_name(run, call))
  local moment = room_at(gate, call[CALL.slots])
  if moment then
    gate.asked_for = math.min(gate.asked_for or math.huge, moment)
    wake_at(gate, moment)
  end
end

local function unpark_call(run, call)
  zrem(prefix .. 'parked:' .. call[CALL.waits], waiter_name(run, call))
end

-- Give back what a call holds, or let it wait no longer.
local function free_call(run, call)
  if call[CALL.waits] ~= '' then
    unpark_call(run, call)
    freed[#freed + 1] = call[CALL.waits]
    return
  end
  for _, name in ipairs(call[CALL.gates]) do
    local gate = find_gate(name)
    for _, member in ipairs(slot_names(run, call)) do zrem(gate.slots, member) end
    if gate.used and not gate.decay then gate.used = gate.used - call[CALL.slots] end
    freed[#freed + 1] = name
  end
end

free_calls = function(run)
  for _, call in ipairs(calls_of(run)) do free_call(run, call) end
  run.call_list = {}
  save_calls(run)
end

-- Whether a slot's member stands for something: the present attempt of a run or of a call of its code, or a reservation.
local function holds(gate, member)
  local id, attempt, number = string.match(member, '^([^:]+):(%d+):(%d+):')
  local run = id and load_run(id)
  if not run then return false end
  if number ~= '0' then
    local _, call = read_name(member)
    if not call or call[CALL.waits] ~= '' then return false end
    for _, name in ipairs(call[CALL.gates]) do
      if name == gate then return true end
    end
    return false
  end
  if string.sub(gate, 1, 6) == 'share:' then return run.place == 'queued' and present(run.share) and share_of(run).name == gate end
  if not held_gates(run)[gate] then return false end
  if present(run.reserved) then return run.attempt + 1 == tonumber(attempt) end
  return is_leased(run, tonumber(attempt), run.worker)
end

-- Whether what stands among a gate's waiters waits there: a run, or a call of one.
local function waits_at(gate, member)
  if string.find(member, ':', 1, true) then
    local _, call = read_name(member)
    return call and call[CALL.waits] == gate
  end
  local run = load_run(member)
  return run and run.place == 'parked' and run.gate == gate
end
