-- Open an ended run again: a new attempt, a fresh crash budget, no TTL.
--
-- USES core gates runs places
-- ARGV run     str  the run
--      message str  who asks
--      params  str  new parameters, msgpack; '' = as they were
-- RETURN {'ok', state before} | {'refused', state} | {'missing', ''}

local found = load_run(run)
if not found then return {'missing', ''} end
if found.place ~= 'ended' or not present(found.pool) then return {'refused', found.state} end
local before = found.state
leave(found)
set(found, 'crashes', 0)
set(found, 'started', '')
set(found, 'result', '')
set(found, 'expires', '')
if params ~= '' then set(found, 'params', params) end
set(found, 'ready', now)
enter(found, 'Scheduled', message)
to_queue(found)
return {'ok', before}
