-- Wake waiters: of one gate, or of every gate that has some left over. Reservations that nobody used are given back first.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake
-- ARGV gate str  a gate's name, or '' for all that are due
-- RETURN how many runs went on

local unused = redis.call('ZRANGE', prefix .. 'reservations', '-inf', now, 'BYSCORE', 'LIMIT', 0, 100)
for _, id in ipairs(unused) do
  local run = load_run(id)
  if run and present(run.reserved) then free_slots(run) else zrem(prefix .. 'reservations', id) end
end
if gate ~= '' then freed[#freed + 1] = gate else wake_due() end
return wake_freed()
