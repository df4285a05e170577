-- Free what nobody alive holds of a gate: slots of runs and calls that are gone; of a rate limit, all of them.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake
-- ARGV gate str  the gate
-- RETURN how many slots

local found, count = find_gate(gate), 0
if found.decay then
  count = found.used
  found.used, found.back_at = 0, 0
  write('HDEL', prefix .. 'rates', gate)
else
  for _, member in ipairs(redis.call('ZRANGE', found.slots, 0, -1)) do
    if not holds(gate, member) then
      zrem(found.slots, member)
      if found.used then found.used = found.used - 1 end
      count = count + 1
    end
  end
end
freed[#freed + 1] = gate
wake_freed()
return count
