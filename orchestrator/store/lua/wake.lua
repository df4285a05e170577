-- Wake waiters: of one gate, or of every gate that has some left over. Reservations that nobody used are given back first.
--
-- USES core gates runs places wake
-- ARGV gate str  a gate's name, or '' for all that are due
-- RETURN how many runs went on

local unused = redis.call('ZRANGE', prefix .. 'reservations', '-inf', now, 'BYSCORE', 'LIMIT', 0, 100)
for _, id in ipairs(unused) do
  local run = load_run(id)
  if run and present(run.reserved) then free_slots(run) else write('ZREM', prefix .. 'reservations', id) end
end
local names = gate ~= '' and {gate} or redis.call('ZRANGE', prefix .. 'wake_due', 0, 9)
for _, name in ipairs(names) do freed[#freed + 1] = name end
return wake_freed()
