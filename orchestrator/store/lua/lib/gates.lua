-- Gates: what a run, or its code, may have to wait for. A pool, a work queue, a deployment, a tag, a global limit: each may carry a
-- limit and, the first three, be paused.
--
-- hash limits       gate -> JSON {limit, held, disabled, paused, strategy, decay, name}; only gates with a limit or a pause stand here.
--                   held: how many slots were taken when the limit was set; so many may be used until they are given back.
--                   disabled: the limit is remembered and holds nobody back. decay: a rate limit, whose slots come back by
--                   time alone, so many a second. name: of a global limit, whose gate is called by an id that survives renaming
-- hash rates        gate with decay -> when all its slots will have come back, in ms
-- zset slots:GATE   members <run>:<attempt>:<call>:<i>, one per slot taken; call 0 is the run's own claim
-- zset parked:GATE  runs that wait, and calls that wait (<run>:<attempt>:<call>), by priority, then the time that they are due
--
-- A gate of its own kind is the share of a deployment in a long queue, share:POOL:QUEUE:PRIORITY:DEPLOYMENT: see places.lua.
--
-- A gate whose setting cannot be read lets nobody through, as one with a limit of 0, until somebody sets it anew or `reconcile_gates`
-- writes down that it has that limit. A rate that cannot be read counts as all slots taken just now.
--
-- A gate is read once per script; slots taken and freed by the script itself are counted in memory.

local RESERVED_MS = 5000
local gates = {}
local freed = {}
local parked_here = {}  -- gate -> the runs and calls that this very script has parked there: they are not among those it can read

local function gate_names(run)
  local names = {'pool:' .. run.pool, 'queue:' .. run.pool .. ':' .. run.queue}
  if present(run.dep) then names[#names + 1] = 'deployment:' .. run.dep end
  for _, tag in ipairs(split(run.tags)) do names[#names + 1] = 'tag:' .. tag end
  return names
end

local function has_gate(run, wanted)
  for _, name in ipairs(gate_names(run)) do
    if name == wanted then return true end
  end
  return false
end

-- A gate as people call it.
local function title(gate)
  local kind, name = string.match(gate.name, '^(%w+):(.*)$')
  if kind == 'deployment' then return 'its deployment' end
  if kind == 'global' then return gate.called and "global limit '" .. gate.called .. "'" or 'a global limit' end
  local pool, queue = string.match(name, '^([^:]*):(.*)$')
  if kind == 'queue' then return "work queue '" .. queue .. "' of '" .. pool .. "'" end
  return (kind == 'pool' and 'work pool' or kind) .. " '" .. name .. "'"
end

-- How many slots of a rate limit have not come back yet.
local function used_of_rate(gate)
  return math.max(0, math.ceil((gate.back_at - now) * gate.decay / 1000 - 1e-6))
end

local function is_between(value, least, most)
  return type(value) == 'number' and value >= least and value <= most
end

local function is_count(value)
  return is_between(value, 0, 2 ^ 53) and value == math.floor(value)
end

local STRATEGIES = {ENQUEUE = true, CANCEL_NEW = true, CANCEL_RUNNING = true}
local FITS = {
  limit = is_count, held = is_count,
  disabled = function(value) return type(value) == 'boolean' end,
  paused = function(value) return type(value) == 'boolean' end,
  strategy = function(value) return STRATEGIES[value] end,
  decay = function(value) return is_between(value, 1e-9, 1e9) end,
  name = function(value) return type(value) == 'string' end,
}

-- What a gate is set to; and why nobody can read that, if so. records.read_setting says the same.
local function read_setting(name, text)
  local fine, set = pcall(cjson.decode, text)
  if not fine or type(set) ~= 'table' then return {limit = 0}, 'it is no JSON object' end
  for field, fits in pairs(FITS) do
    if set[field] == cjson.null then set[field] = nil end
    if set[field] ~= nil and not fits(set[field]) then return {limit = 0}, 'its ' .. field .. ' makes no sense' end
  end
  if set.limit == nil and not set.paused then return {limit = 0}, 'it has neither a limit nor a pause' end
  if string.sub(name, 1, 7) == 'global:' and not set.name then return {limit = 0}, 'it has no name' end
  return set
end

local function read_rate(gate)
  local back_at = tonumber(redis.call('HGET', prefix .. 'rates', gate.name) or 0)
  if is_between(back_at, 0, 1e15) then return back_at end
  gate.forgot_rate = true
  back_at = now + (gate.stored or 0) * 1000 / gate.decay
  write('HSET', prefix .. 'rates', gate.name, string.format('%.3f', back_at))
  return back_at
end

local function read_gate(name, text)
  local gate = {name = name, slots = prefix .. 'slots:' .. name}
  if text then
    local set, defect = read_setting(name, text)
    gate.defect = defect
    gate.stored = set.limit
    gate.disabled = set.disabled
    gate.limit = not gate.disabled and gate.stored or nil
    gate.held = set.held
    gate.paused = set.paused
    gate.strategy = set.strategy
    gate.decay = set.decay
    gate.called = set.name
  end
  if string.sub(name, 1, 6) == 'share:' then
    gate.is_share = true
    gate.limit = SHARE
  end
  if gate.decay then
    gate.back_at = read_rate(gate)
    gate.used = used_of_rate(gate)
  elseif gate.limit then
    gate.used = redis.call('ZCARD', gate.slots)
  end
  gates[name] = gate
  return gate
end

local function find_gate(name)
  return gates[name] or read_gate(name, redis.call('HGET', prefix .. 'limits', name))
end

-- The gate of the global limit of that name, or nil. The hash global_limits, name -> id, says where it stands; what it says wrongly is
-- put right.
local function global_gate(called)
  local id = redis.call('HGET', prefix .. 'global_limits', called)
  if not id then return end
  local gate = find_gate('global:' .. id)
  if gate.stored and (gate.defect or gate.called == called) then return gate end
  local all = redis.call('HGETALL', prefix .. 'limits')
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 7) == 'global:' and read_setting(all[i], all[i + 1]).name == called then
      write('HSET', prefix .. 'global_limits', called, string.sub(all[i], 8))
      return find_gate(all[i])
    end
  end
end

-- Whether so many more may go through now.
local function fits(gate, slots)
  return not gate.paused and (not gate.limit or gate.used + slots <= gate.limit)
end

-- All gates of a run that hold anybody back, in the order in which they are asked.
local function gates_of(run)
  local names, unread, found = gate_names(run), {}, {}
  for _, name in ipairs(names) do
    if not gates[name] then unread[#unread + 1] = name end
  end
  if #unread > 0 then
    local texts = redis.call('HMGET', prefix .. 'limits', unpack(unread))
    for i, name in ipairs(unread) do read_gate(name, texts[i]) end
  end
  for _, name in ipairs(names) do
    local gate = gates[name]
    if gate.limit or gate.paused then found[#found + 1] = gate end
  end
  return found
end

local function held_gates(run)
  local held = {}
  for _, name in ipairs(split(run.gates)) do held[name] = true end
  return held
end

-- The first gate that does not let the run through, or nil. A slot that is reserved for the run lets it through, and a pause stops
-- nobody who `runs` already.
local function refusal(run, runs)
  local held = held_gates(run)
  for _, gate in ipairs(gates_of(run)) do
    if gate.paused and not runs then return gate end
    if gate.limit and not held[gate.name] and gate.used >= gate.limit then return gate end
  end
end

local function slot(run, attempt)
  return run.id .. ':' .. attempt .. ':0:0'
end

-- Take one slot at each of the run's limited gates for the given attempt; what is reserved for it is kept.
local function take_slots(run, attempt)
  local held, names = held_gates(run), split(run.gates)
  for _, gate in ipairs(gates_of(run)) do
    if gate.limit and not held[gate.name] then
      zadd(gate.slots, now, slot(run, attempt))
      gate.used = gate.used + 1
      gate.takers = gate.takers or {}
      gate.takers[#gate.takers + 1] = run
      names[#names + 1] = gate.name
    end
  end
  set(run, 'gates', table.concat(names, '\n'))
end

-- Give back every slot that the run and its code hold, have reserved or wait for.
local function free_slots(run)
  if present(run.calls) then free_calls(run) end
  if not present(run.gates) then return end
  local attempt = present(run.reserved) and run.attempt + 1 or run.attempt
  for _, name in ipairs(split(run.gates)) do
    local gate = find_gate(name)
    zrem(gate.slots, slot(run, attempt))
    if gate.used then gate.used = gate.used - 1 end
    freed[#freed + 1] = name
  end
  set(run, 'gates', '')
  if present(run.reserved) then
    set(run, 'reserved', '')
    zrem(prefix .. 'reservations', run.id)
  end
end
