-- Put a schedule in place, pause, resume, change or remove it: a new generation, its not-yet-due runs deleted, the mark at now.
--
-- FLAGS allow-oom
-- USES core gates runs places
-- ARGV deployment str  the deployment's id
--      slug       str  the schedule
--      definition str  the schedule, msgpack; '' = remove it
--      active     int  1 = plan its runs
-- RETURN {generation, how many planned runs were deleted}; {0, 0} if the deployment is gone

local key, schedules = prefix .. 'deployment:' .. deployment, prefix .. 'schedules:' .. deployment
local planned = prefix .. 'planned:' .. deployment .. ':' .. slug
if redis.call('HEXISTS', key, 'id') == 0 then return {0, 0} end
local generation = tonumber(redis.call('HGET', key, 'generation') or 0) + 1
local deleted = 0
for _, id in ipairs(redis.call('ZRANGE', planned, 0, -1)) do
  local run = load_run(id)
  if run and run.place == 'due' then
    leave(run)
    forget(run)
    deleted = deleted + 1
  end
end
write('DEL', planned)
write('HSET', key, 'generation', generation)
local member = deployment .. ':' .. slug
if definition == '' then
  write('HDEL', schedules, slug, slug .. ':generation', slug .. ':mark')
else
  write('HSET', schedules, slug, definition, slug .. ':generation', generation, slug .. ':mark', now)
end
if active == 1 and definition ~= '' then
  zadd(prefix .. 'planning', now, member)
  signal()
else
  zrem(prefix .. 'planning', member)
end
return {generation, deleted}
