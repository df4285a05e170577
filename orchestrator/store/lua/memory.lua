-- Whether the server that holds the namespace has room for new runs.
--
-- FLAGS allow-oom
-- USES core
-- ARGV most int  how much of its maxmemory may be used, in percent
-- RETURN {1 = there is room, how much is used in percent}; a server without a maxmemory always has room

local info = redis.call('INFO', 'memory')
local function number(name)
  return tonumber(string.match(info, name .. ':(%d+)') or 0)
end
local limit = number('maxmemory')
if limit == 0 then return {1, 0} end
local used = (number('used_memory') - number('mem_not_counted_for_evict')) * 100 / limit
return {used > most and 0 or 1, math.floor(used)}
