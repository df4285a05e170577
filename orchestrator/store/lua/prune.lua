-- Delete runs that ended before a moment, oldest first.
--
-- FLAGS allow-oom
-- USES core gates runs places
-- ARGV state     str  one of the four end states
--      before_ms int  ended before this
--      limit     int  at most so many
-- RETURN how many were deleted

local index = index_key('state', state)
local old = redis.call('ZRANGE', index, '-inf', '(' .. before_ms, 'BYSCORE', 'LIMIT', 0, limit)
for _, id in ipairs(old) do
  local run = load_run(id)
  if run and run.place == 'ended' then forget(run) else zrem(index, id) end
end
return #old
