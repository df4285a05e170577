-- Turn a schedule's next fires into runs and move its high-water mark, unless someone else did so first.
--
-- Runs that it had planned before an outage, and that nobody has queued since, are let go now or cancelled as missed.
--
-- USES core gates runs places
-- ARGV deployment str     the deployment's id
--      slug       str     the schedule
--      generation int     as the planner read it
--      old_mark   str     the high-water mark (ms) as the planner read it
--      new_mark   int     the last fire planned, ms
--      next_plan  str     when to plan again, ms; '' = never
--      fields     packed  every run's first fields, as layout.py lists them
--      params     str     their parameters, msgpack, or ''
--      tags       packed  a list
--      items      packed  a list of {id, due ms, name}
--      overdue    packed  a list of {id, 1 = let it go, 0 = cancel it}
-- RETURN {'created', how many} | {'stale', 0}

local schedules = prefix .. 'schedules:' .. deployment
local stored = redis.call('HMGET', schedules, slug .. ':generation', slug .. ':mark')
if tonumber(stored[1]) ~= generation or stored[2] ~= old_mark or new_mark < tonumber(old_mark) then return {'stale', 0} end
for _, item in ipairs(overdue) do
  local run = load_run(item[1])
  if run and run.place == 'due' and run.dep == deployment and run.sched == slug then
    if item[2] == 1 then
      zrem(prefix .. 'planned:' .. deployment .. ':' .. slug, run.id)
      zadd(prefix .. 'due', now, run.id)
      signal()
    else
      leave(run)
      enter(run, 'Cancelled', 'Missed: no scheduler was there at its time, and its schedule does not make up for it.')
      to_ended(run)
    end
  end
end
local created = 0
for _, item in ipairs(items) do
  local id, due = item[1], item[2]
  if not load_run(id) then
    local run = new_run(id, fields, tags, due, params)
    set(run, 'name', item[3])
    set(run, 'sched', slug)
    enter(run, 'Scheduled', '')
    if due <= now then
      to_queue(run)
    else
      to_due(run, due)
      zadd(prefix .. 'planned:' .. deployment .. ':' .. slug, due, id)
    end
    created = created + 1
  end
end
write('HSET', schedules, slug .. ':mark', new_mark)
local member = deployment .. ':' .. slug
if next_plan == '' then
  zrem(prefix .. 'planning', member)
else
  zadd(prefix .. 'planning', next_plan, member)
end
return {'created', created}
