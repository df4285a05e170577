-- Waking: when a gate has room, its waiters are asked in order, each against all of its gates.
--
-- One that another gate refuses moves there, with its old score. A run that fits gets its slots reserved for RESERVED_MS and goes to
-- the pool's `resumed` stream; a call that fits has them, and its worker is told. At most 100 waiters a call; a gate with more left
-- over stands in `wake_due`, and so does a rate limit, until time has made room for the first of its waiters.

local wake_budget = 100

local function admit(run, message)
  leave(run)
  set(run, 'ready', now)
  if run.state == 'AwaitingConcurrencySlot' then enter(run, 'Scheduled', message) end
  take_slots(run, run.attempt + 1)
  if present(run.gates) then
    set(run, 'reserved', now + RESERVED_MS)
    zadd(prefix .. 'reservations', now + RESERVED_MS, run.id)
  end
  to_resumed(run)
end

local function note_parked(gate, who)
  parked_here[gate.name] = parked_here[gate.name] or {}
  table.insert(parked_here[gate.name], who)
end

-- Park a run that is in no place at a gate. A limit shows in the state; behind a pause the run stays as it was.
local function park(run, gate, score)
  if gate.paused then
    if run.state == 'AwaitingConcurrencySlot' then enter(run, 'Scheduled', 'Waits for ' .. title(gate) .. ' to be resumed.') end
  elseif run.state ~= 'AwaitingConcurrencySlot' then
    enter(run, 'AwaitingConcurrencySlot', 'Waits for a slot of ' .. title(gate) .. '.')
  end
  to_parked(run, gate, score)
  note_parked(gate, run)
end

-- Ask one that waits at the gate, whose name there is `member`: whether the next one may be asked too, which it may not if this gate
-- refuses it; how many slots it wants; and 1 if it went on.
local function ask_run(gate, member, score)
  local run = load_run(member)
  if not run then
    zrem(prefix .. 'parked:' .. gate.name, member)
  elseif run.place == 'parked' and run.gate == gate.name then
    if gate.is_share then
      leave(run)
      take_share(run, gate)
      to_stream(run, queue_of(run))
      return true, 1, 1
    end
    local other = refusal(run)
    if not other then
      admit(run, 'A slot of ' .. title(gate) .. ' became free.')
      return true, 1, 1
    elseif other.name == gate.name then
      return false, 1, 0
    end
    leave(run)
    park(run, other, score)
  end
  return true, 1, 0
end

local function ask_call(gate, member, score)
  local run, call = read_name(member)
  if not call then
    zrem(prefix .. 'parked:' .. gate.name, member)
    return true, 1, 0
  end
  local slots = call[CALL.slots]
  if call[CALL.waits] ~= gate.name then return true, slots, 0 end
  local other = call_refusal(call)
  if other and other.name == gate.name then return false, slots, 0 end
  unpark_call(run, call)
  if other then
    park_call(run, call, other, score)
    note_parked(other, call)
  else
    take_call(run, call)
    tell_worker(run, 'granted', call[CALL.number])
  end
  save_calls(run)
  return true, slots, other and 0 or 1
end

local function wake(name)
  local gate, woken = find_gate(name), 0
  if not gate.decay and not fits(gate, 1) then
    -- Whoever makes room wakes it again; left here, gates without room would keep those that have some out of a bounded look.
    gate.wakes_at = math.huge
    zrem(prefix .. 'wake_due', name)
    return 0
  end
  local most = gate.is_share and math.min(wake_budget, gate.limit - gate.used) or wake_budget
  local waiters = redis.call('ZRANGE', prefix .. 'parked:' .. name, 0, most, 'WITHSCORES')
  local asked, refused = math.min(#waiters / 2, most), nil
  for i = 1, asked do
    local member = waiters[2 * i - 1]
    local ask = string.find(member, ':', 1, true) and ask_call or ask_run
    local went, slots, admitted = ask(gate, member, waiters[2 * i])
    woken = woken + admitted
    if not went then
      refused = slots
      break
    end
  end
  wake_budget = wake_budget - asked
  -- Whom this very script has parked here is not among the waiters yet: it came before the slot that it waits for was freed.
  local may_have_more = fits(gate, 1) and (parked_here[name] or not refused and #waiters / 2 > asked)
  gate.wakes_at = may_have_more and now or math.min(refused and room_at(gate, refused) or math.huge, gate.asked_for or math.huge)
  if gate.wakes_at < math.huge then
    zadd(prefix .. 'wake_due', gate.wakes_at, name)
  else
    zrem(prefix .. 'wake_due', name)
  end
  return woken
end

-- Wake every gate whose slots this script has given back.
local function wake_freed()
  local seen, woken = {}, 0
  for _, name in ipairs(freed) do
    if not seen[name] then
      seen[name] = true
      woken = woken + wake(name)
    end
  end
  return woken
end

-- Wake the gates that are to be woken by now.
local function wake_due()
  for _, name in ipairs(redis.call('ZRANGE', prefix .. 'wake_due', '-inf', now, 'BYSCORE', 'LIMIT', 0, 10)) do
    freed[#freed + 1] = name
  end
end
