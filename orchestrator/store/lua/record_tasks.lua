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

local found = load_run(run)
local key = prefix .. 'tasks:' .. run
if not found then return 'superseded' end
if not is_leased(found, attempt, worker) and not (found.place == 'ended' and is_attempt_of(found, attempt, worker)) then
  return 'superseded'
end
has_beside(found, 'tasks')
for i = 1, #items, 100 do
  write('HSET', key, unpack(items, i, math.min(i + 99, #items)))
end
if found.place == 'ended' then expire(key, net_ttl()) end
return 'ok'
