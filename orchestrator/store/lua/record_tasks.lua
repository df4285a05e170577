-- Record task runs of a flow run, under the fence of its attempt.
--
-- Also after that attempt's end, until there is another: where a restarted server has forgotten some scripts and not others,
-- an end can overtake the task runs that were sent before it.
--
-- FLAGS allow-oom
-- USES core gates runs places
-- ARGV run     str     the flow run
--      attempt int     the caller's attempt
--      worker  str     the caller
--      items   packed  a flat list of task run id, msgpack
-- RETURN ok | superseded

local stored = redis.pcall('HMGET', prefix .. 'run:' .. run, 'place', 'attempt', 'worker')
local key = prefix .. 'tasks:' .. run
local found = {place = stored[1], attempt = tonumber(stored[2]), worker = stored[3]}
if not is_leased(found, attempt, worker) and not (found.place == 'ended' and is_attempt_of(found, attempt, worker)) then
  return 'superseded'
end
for i = 1, #items, 100 do
  write('HSET', key, unpack(items, i, math.min(i + 99, #items)))
end
if found.place == 'ended' then write('PEXPIRE', key, net_ttl()) end
return 'ok'
