-- Record task runs of a flow run, under the fence of its attempt.
--
-- Also after that attempt's end, until there is another: where a restarted server has forgotten some scripts and not others,
-- an end can overtake the task runs that were sent before it.
--
-- USES core gates runs places
-- ARGV run     str     the flow run
--      attempt int     the caller's attempt
--      items   packed  a flat list of task run id, msgpack
-- RETURN ok | superseded

local stored = redis.pcall('HMGET', prefix .. 'run:' .. run, 'place', 'attempt')
local key = prefix .. 'tasks:' .. run
if tonumber(stored[2]) ~= attempt or (stored[1] ~= 'leased' and stored[1] ~= 'ended') then return 'superseded' end
for i = 1, #items, 100 do
  write('HSET', key, unpack(items, i, math.min(i + 99, #items)))
end
if stored[1] == 'ended' then write('PEXPIRE', key, net_ttl()) end
return 'ok'
