-- Remove what stands for nothing: slots that nobody holds, waiters that do not wait, entries that are nobody's message, plans of
-- schedules that are gone, and what belonged to runs that are gone.
--
-- FLAGS allow-oom
-- USES core gates runs places calls
-- ARGV members packed  a list of {key below the prefix, member}: of a sorted set a member, of a stream an entry's id, of a key that
--                      lives as long as a run, ''
-- RETURN a list of {what was mended, key}

local mended = {}

-- Whether a member has to stand there, what it is if not, and whether it still does.
local function belongs(key, member)
  local kind, name = string.match(key, '^(%l+):(.*)$')
  if kind == 'slots' then return holds(name, member), 'a slot that nobody held' end
  if key == 'planning' then
    local deployment, slug = string.match(member, '^([^:]*):(.*)$')
    return deployment and redis.call('HEXISTS', prefix .. 'schedules:' .. deployment, slug) == 1, 'a plan of no schedule'
  end
  if kind == 'parked' then return waits_at(name, member), 'a waiter that did not wait' end
  local run = load_run(member)
  if run and kind == 'index' then
    local wanted = run.state == string.match(key, '^index:state:(.*)$')
    for _, index in ipairs(index_keys(run)) do wanted = wanted or index == prefix .. key end
    return wanted, 'a run of another kind'
  end
  return run, 'a member that was no run'
end

local function mend_member(key, member)
  local right, what = belongs(key, member)
  local gate = string.match(key, '^slots:(.*)$') or string.match(key, '^parked:(.*)$')
  if gate then zadd(prefix .. 'wake_due', now, gate) end
  if right or not redis.call('ZSCORE', prefix .. key, member) then return end
  zrem(prefix .. key, member)
  return what
end

local function mend_entry(stream, id)
  local found = redis.call('XRANGE', prefix .. stream, id, id)[1]
  local run = found and load_run(found[2][2] or '')
  if run and run.place == 'queued' and run.msg == id .. ' ' .. stream then return end
  xdrop(stream, id)
  return found and "an entry that was no run's message" or 'a delivery of an entry that was gone'
end

local function mend_key(key)
  local owner = string.match(key, '^%l+:(.*)$')
  if string.match(key, '^idempotency:') then owner = redis.call('GET', prefix .. key) end
  if not owner or load_run(owner) then return end
  write('DEL', prefix .. key)
  return 'belonged to no run'
end

for _, item in ipairs(members) do
  local key, member = item[1], item[2]
  local mend = mend_member
  if string.match(key, '^queue:') or string.match(key, '^resumed:') then mend = mend_entry end
  if member == '' then mend = mend_key end
  local what = mend(key, member)
  if what then mended[#mended + 1] = {what, key} end
end
return mended
