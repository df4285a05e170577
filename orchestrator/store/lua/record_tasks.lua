-- Record task runs of a flow run, under the fence of its attempt.
--
-- USES core
-- ARGV run     str     the flow run
--      attempt int     the caller's attempt
--      items   packed  a flat list of task run id, msgpack
-- RETURN ok | superseded

local stored = redis.call('HMGET', prefix .. 'run:' .. run, 'place', 'attempt')
if stored[1] ~= 'leased' or tonumber(stored[2]) ~= attempt then return 'superseded' end
for i = 1, #items, 100 do
  write('HSET', prefix .. 'tasks:' .. run, unpack(items, i, math.min(i + 99, #items)))
end
return 'ok'
