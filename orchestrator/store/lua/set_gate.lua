-- Limit, free, disable, enable, rename, pause or resume a gate, and wake who may now go on.
--
-- Runs that are executing behind a gate without a limit hold no slot there; when it gets one, they are counted first.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake
-- ARGV gate     str  the gate; 'global:' and a name for a global limit
--      id       str  for a global limit: its id, if there is none of that name yet
--      name     str  for a global limit: what it is called from now on; '' = as it is
--      limit    str  how many at once; '' = as it is, 'none' = no limit
--      decay    str  slots that come back by time, a second; '0' = none do; '' = as it is
--      disabled str  '1' = remember the limit and hold nobody back, '0' = hold to it again, '' = as it is
--      paused   str  '1', '0', or '' = as it is
--      strategy str  ENQUEUE, CANCEL_NEW or CANCEL_RUNNING; '' = as it is
--      expect   str  'new' = only if it has no limit, 'old' = only if it has one, '' = in any case
-- RETURN {'ok', how many runs and calls went on} | {'exists', 0} | {'missing', 0} | {'taken', 0} (the new name is another's)

local called = string.match(gate, '^global:(.*)$')
local set_now = called and global_gate(called) or find_gate(called and 'global:' .. id or gate)
gate = set_now.name
if expect == 'new' and set_now.stored then return {'exists', 0} end
if expect == 'old' and not set_now.stored then return {'missing', 0} end
if called and name ~= '' and name ~= called then
  if redis.call('HEXISTS', prefix .. 'global_limits', name) == 1 then return {'taken', 0} end
  write('HDEL', prefix .. 'global_limits', called)
  called = name
end
local limited = not set_now.defect and set_now.limit

-- All of them, however many: one that is not counted now would be an excess for as long as it runs.
local function count_executing()
  set_now.used = redis.call('ZCARD', set_now.slots)
  for _, id in ipairs(redis.call('ZRANGE', prefix .. 'leases', 0, -1)) do
    local run = load_run(id)
    if run and run.place == 'leased' and not held_gates(run)[gate] and has_gate(run, gate) then
      zadd(set_now.slots, now, slot(run, run.attempt))
      set(run, 'gates', present(run.gates) and run.gates .. '\n' .. gate or gate)
      set_now.used = set_now.used + 1
    end
  end
end

-- What has not come back yet comes back at the new pace.
local function set_decay(new)
  local used = set_now.decay and used_of_rate(set_now) or 0
  set_now.decay = new > 0 and new or nil
  if set_now.decay then
    set_now.back_at = now + used * 1000 / new
    set_now.used = used
    write('HSET', prefix .. 'rates', gate, string.format('%.3f', set_now.back_at))
  else
    write('HDEL', prefix .. 'rates', gate)
    set_now.used = redis.call('ZCARD', set_now.slots)
  end
end

if limit ~= '' then set_now.stored = tonumber(limit) end
if decay ~= '' and tonumber(decay) ~= (set_now.decay or 0) then set_decay(tonumber(decay)) end
if disabled ~= '' then set_now.disabled = disabled == '1' or nil end
set_now.limit = not set_now.disabled and set_now.stored or nil
if paused ~= '' then set_now.paused = paused == '1' or nil end
if strategy ~= '' then set_now.strategy = strategy end
if set_now.limit and not limited and not set_now.decay then count_executing() end
if set_now.limit and (limit ~= '' or not limited) then set_now.held = not set_now.decay and set_now.used or nil end
if set_now.stored or set_now.paused then
  local text = cjson.encode({
    limit = set_now.stored, held = set_now.limit and set_now.held, disabled = set_now.stored and set_now.disabled,
    paused = set_now.paused, strategy = set_now.strategy, decay = set_now.decay, name = called or nil,
  })
  write('HSET', prefix .. 'limits', gate, text)
  if called then write('HSET', prefix .. 'global_limits', called, string.sub(gate, 8)) end
else
  write('HDEL', prefix .. 'limits', gate)
  if set_now.decay then write('HDEL', prefix .. 'rates', gate) end
  if called then write('HDEL', prefix .. 'global_limits', called) end
end

-- What people call it. Only here has a deployment's name to be read for it.
local function known_as()
  local deployment = string.match(gate, '^deployment:(.*)$')
  local slug = deployment and redis.call('HMGET', prefix .. 'deployment:' .. deployment, 'flow', 'name')
  return slug and slug[1] and "deployment '" .. slug[1] .. '/' .. slug[2] .. "'" or title(set_now)
end

set_now.called = called
emit('gate.changed', 'g', gate, 't', known_as())
return {'ok', wake(gate)}
