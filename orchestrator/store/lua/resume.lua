-- Let paused runs go on: one that someone resumes, or (run = '') end those that waited too long.
--
-- FLAGS allow-oom
-- USES core gates runs places
-- ARGV run     str  the run, or '' for all whose time is over
--      message str  why
-- RETURN {'ok', state} | {'refused', state} | {'missing', ''}; for run = '': {'ok', how many}

if run == '' then
  local over = redis.call('ZRANGE', prefix .. 'paused', '-inf', now, 'BYSCORE', 'LIMIT', 0, 100)
  for _, id in ipairs(over) do
    local found = load_run(id)
    if found and found.place == 'paused' then
      leave(found)
      enter(found, 'Failed', 'Nobody resumed it in time.')
      to_ended(found)
    else
      zrem(prefix .. 'paused', id)
    end
  end
  return {'ok', #over}
end
local found = load_run(run)
if not found then return {'missing', ''} end
if found.place ~= 'paused' or not present(found.pool) then return {'refused', found.state} end
leave(found)
requeue(found, message)
return {'ok', found.state}
