-- Waking: when a gate has room, its waiters are asked in order, each against all of its gates.
--
-- One that another gate refuses moves there, with its old score. One that fits gets its slots reserved for RESERVED_MS and
-- goes to the pool's `resumed` stream. At most 100 waiters a call; a gate with more left over stands in `wake_due`.

local wake_budget = 100
local parked_here = {}

local function admit(run, message)
  leave(run)
  set(run, 'ready', now)
  if run.state == 'AwaitingConcurrencySlot' then enter(run, 'Scheduled', message) end
  take_slots(run, run.attempt + 1)
  if present(run.gates) then
    set(run, 'reserved', now + RESERVED_MS)
    write('ZADD', prefix .. 'reservations', now + RESERVED_MS, run.id)
  end
  to_resumed(run)
end

-- Park a run that is in no place at a gate. A limit shows in the state; behind a pause the run stays as it was.
local function park(run, gate, score)
  if gate.paused then
    if run.state == 'AwaitingConcurrencySlot' then enter(run, 'Scheduled', 'Waits for ' .. title(gate) .. ' to be resumed.') end
  elseif run.state ~= 'AwaitingConcurrencySlot' then
    enter(run, 'AwaitingConcurrencySlot', 'Waits for a slot of ' .. title(gate) .. '.')
  end
  to_parked(run, gate, score)
  parked_here[gate.name] = true
end

local function has_room(gate)
  return not gate.paused and (not gate.limit or gate.used < gate.limit)
end

local function wake(name)
  local gate, woken = find_gate(name), 0
  if not has_room(gate) then
    -- Whoever makes room wakes it again; left here, gates without room would keep those that have some out of a bounded look.
    write('ZREM', prefix .. 'wake_due', name)
    return 0
  end
  local parked = prefix .. 'parked:' .. name
  local waiters = redis.call('ZRANGE', parked, 0, wake_budget, 'WITHSCORES')
  local asked = math.min(#waiters / 2, wake_budget)
  for i = 1, asked do
    local run = load_run(waiters[2 * i - 1])
    if not run then
      write('ZREM', parked, waiters[2 * i - 1])
    elseif run.place == 'parked' and run.gate == name then
      local other = refusal(run)
      if not other then
        admit(run, 'A slot of ' .. title(gate) .. ' became free.')
        woken = woken + 1
      elseif other.name ~= name then
        leave(run)
        park(run, other, waiters[2 * i])
      else
        break
      end
    end
  end
  wake_budget = wake_budget - asked
  -- Whom this very script has parked here is not among the waiters yet: it came before the slot that it waits for was freed.
  if (#waiters / 2 > asked or parked_here[name]) and has_room(gate) then
    write('ZADD', prefix .. 'wake_due', now, name)
  else
    write('ZREM', prefix .. 'wake_due', name)
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
