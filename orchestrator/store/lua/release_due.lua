-- What time brings about: runs whose time has come move from `due` to their work queues, and gates that are to be woken are.
--
-- Runs that a schedule planned and whose time is long over wait for a planner, who knows what their schedule wants: there was an
-- outage. They are looked at again after a minute.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake collide
-- ARGV limit      int  at most so many runs
--      misfire_ms int  long over means so long
-- RETURN {how many were moved, when to come again in ms or ''}

local function first_after(key)
  return tonumber(redis.call('ZRANGE', prefix .. key, '(' .. now, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')[2] or math.huge)
end

local due = redis.call('ZRANGE', prefix .. 'due', '-inf', now, 'BYSCORE', 'LIMIT', 0, limit + 1)
local moved = 0

local function is_missed(run)
  if not present(run.sched) or run.due >= now - misfire_ms then return false end
  return redis.call('ZSCORE', prefix .. 'planned:' .. run.dep .. ':' .. run.sched, run.id)
    and redis.call('HEXISTS', prefix .. 'schedules:' .. run.dep, run.sched) == 1
end

for i = 1, math.min(#due, limit) do
  local run = load_run(due[i])
  if not run or run.place ~= 'due' then
    zrem(prefix .. 'due', due[i])
  elseif is_missed(run) then
    zadd(prefix .. 'due', now + 60000, run.id)
    write('ZADD', prefix .. 'planning', 'LT', now, run.dep .. ':' .. run.sched)
  else
    leave(run)
    if run.state == 'AwaitingRetry' then enter(run, 'Scheduled', 'The time of the retry has come.') end
    make_way(run)
    to_queue(run)
    moved = moved + 1
  end
end
wake_due()
wake_freed()
local later = math.min(first_after('due'), first_after('wake_due'))
for _, gate in pairs(gates) do later = math.min(later, gate.wakes_at or math.huge) end
if #due > limit then later = now end
return {moved, later < math.huge and later or ''}
