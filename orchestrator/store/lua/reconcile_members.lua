-- Remove members of sorted sets that stand for nothing: slots that nobody holds, waiters that do not wait, runs that are gone.
--
-- USES core gates runs places
-- ARGV members packed  a list of {sorted set below the prefix, member}
-- RETURN a list of {what was mended, sorted set}

local mended = {}

local function holds(gate, member)
  local id, attempt = string.match(member, '^([^:]+):(%d+):')
  local run = id and load_run(id)
  if not run or not held_gates(run)[gate] then return false end
  if present(run.reserved) then return run.attempt + 1 == tonumber(attempt) end
  return run.place == 'leased' and run.attempt == tonumber(attempt)
end

local function belongs(key, member)
  local kind, name = string.match(key, '^(%l+):(.*)$')
  if kind == 'slots' then return holds(name, member), 'a slot that nobody held' end
  local run = load_run(member)
  if kind == 'parked' then
    return run and run.place == 'parked' and run.gate == name, 'a waiter that did not wait'
  end
  return run, 'a member that was no run'
end

for _, item in ipairs(members) do
  local key, member = item[1], item[2]
  local right, what = belongs(key, member)
  local gate = string.match(key, '^slots:(.*)$') or string.match(key, '^parked:(.*)$')
  if gate then write('ZADD', prefix .. 'wake_due', now, gate) end
  if not right and redis.call('ZSCORE', prefix .. key, member) then
    write('ZREM', prefix .. key, member)
    mended[#mended + 1] = {what, key}
  end
end
return mended
