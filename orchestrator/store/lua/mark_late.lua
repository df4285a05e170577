-- Mark runs Late that should have started a while ago and wait in a queue or behind a pause.
--
-- FLAGS allow-oom
-- USES core gates runs places
-- ARGV after_ms int  late means so long past due
--      limit    int  at most so many
-- RETURN how many were marked

local marked = 0
local overdue = redis.call('ZRANGE', prefix .. 'index:state:Scheduled', '-inf', now - after_ms, 'BYSCORE', 'LIMIT', 0, limit)
for _, id in ipairs(overdue) do
  local run = load_run(id)
  if not run then
    zrem(prefix .. 'index:state:Scheduled', id)
  elseif run.place == 'queued' or run.place == 'parked' then
    enter(run, 'Late', 'No worker has started it yet.')
    marked = marked + 1
  end
end
return marked
