-- Limit, free, disable, enable, pause or resume a gate, and wake who may now go on.
--
-- Runs that are executing behind a gate without a limit hold no slot there; when it gets one, they are counted first.
--
-- USES core gates runs places wake
-- ARGV gate     str  the gate
--      limit    str  how many at once; '' = as it is, 'none' = no limit
--      disabled str  '1' = remember the limit and hold nobody back, '0' = hold to it again, '' = as it is
--      paused   str  '1', '0', or '' = as it is
--      strategy str  ENQUEUE or CANCEL_NEW; '' = as it is
--      expect   str  'new' = only if it has no limit, 'old' = only if it has one, '' = in any case
-- RETURN {'ok', how many runs went on} | {'exists', 0} | {'missing', 0}

local set_now = find_gate(gate)
if expect == 'new' and set_now.stored then return {'exists', 0} end
if expect == 'old' and not set_now.stored then return {'missing', 0} end
local limited = set_now.limit

-- All of them, however many: one that is not counted now would be an excess for as long as it runs.
local function count_executing()
  set_now.used = redis.call('ZCARD', set_now.slots)
  for _, id in ipairs(redis.call('ZRANGE', prefix .. 'leases', 0, -1)) do
    local run = load_run(id)
    if run and run.place == 'leased' and not held_gates(run)[gate] and has_gate(run, gate) then
      write('ZADD', set_now.slots, now, slot(run, run.attempt))
      set(run, 'gates', present(run.gates) and run.gates .. '\n' .. gate or gate)
      set_now.used = set_now.used + 1
    end
  end
end

if limit ~= '' then set_now.stored = tonumber(limit) end
if disabled ~= '' then set_now.disabled = disabled == '1' or nil end
set_now.limit = not set_now.disabled and set_now.stored or nil
if paused ~= '' then set_now.paused = paused == '1' or nil end
if strategy ~= '' then set_now.strategy = strategy end
if set_now.limit and not limited then count_executing() end
if set_now.limit and (limit ~= '' or not limited) then set_now.held = set_now.used end
if set_now.stored or set_now.paused then
  local text = cjson.encode({
    limit = set_now.stored, held = set_now.limit and set_now.held, disabled = set_now.stored and set_now.disabled,
    paused = set_now.paused, strategy = set_now.strategy,
  })
  write('HSET', prefix .. 'limits', gate, text)
else
  write('HDEL', prefix .. 'limits', gate)
end
emit('gate.changed', 'g', gate)
return {'ok', wake(gate)}
