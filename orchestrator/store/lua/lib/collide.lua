-- What a run does to others when it comes to a deployment's limit whose strategy is CANCEL_RUNNING: the oldest make way for it.

-- The runs that stand in one of the gate's sets, with those that this script has put there, as far as they may be cancelled.
local function runs_at(gate, key, here)
  local found = {}
  local function add(run)
    if run and run.place ~= 'ended' and run.state ~= 'Cancelling' then found[#found + 1] = run end
  end
  for _, member in ipairs(redis.call('ZRANGE', prefix .. key .. ':' .. gate.name, 0, 99)) do
    add(load_run(string.match(member, '^[^:]+')))
  end
  for _, run in ipairs(here or {}) do add(run) end
  return found
end

local function is_older(one, other)
  return one.due < other.due or one.due == other.due and one.id < other.id
end

-- Cancel so many of those that execute or wait, and are older than this one, that the newest are as many as may execute.
local function make_way(run)
  if not present(run.dep) then return end
  local gate = find_gate('deployment:' .. run.dep)
  if gate.strategy ~= 'CANCEL_RUNNING' or not gate.limit or gate.paused or held_gates(run)[gate.name] then return end
  local others = runs_at(gate, 'slots', gate.takers)
  for _, waiter in ipairs(runs_at(gate, 'parked', parked_here[gate.name])) do others[#others + 1] = waiter end
  table.sort(others, is_older)
  for i = 1, #others + 1 - math.max(1, gate.limit) do
    if is_older(others[i], run) then
      cancel_run(others[i], 'A newer run took its place: the strategy of its deployment is CANCEL_RUNNING.')
    end
  end
  for _, name in ipairs(freed) do zadd(prefix .. 'wake_due', now, name) end
end
