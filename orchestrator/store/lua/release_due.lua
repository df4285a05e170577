-- Move runs whose time has come from `due` to their work queues.
--
-- Those that a schedule planned and whose time is long over wait for a planner, who knows what their schedule wants: there was an
-- outage. They are looked at again after a minute.
--
-- USES core gates runs places
-- ARGV limit      int  at most so many
--      misfire_ms int  long over means so long
-- RETURN {how many were moved, the next due time in ms or ''}

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
    write('ZREM', prefix .. 'due', due[i])
  elseif is_missed(run) then
    write('ZADD', prefix .. 'due', now + 60000, run.id)
    write('ZADD', prefix .. 'planning', 'LT', now, run.dep .. ':' .. run.sched)
  else
    leave(run)
    if run.state == 'AwaitingRetry' then enter(run, 'Scheduled', 'The time of the retry has come.') end
    to_queue(run)
    moved = moved + 1
  end
end
if #due > limit then return {moved, now} end
local after = redis.call('ZRANGE', prefix .. 'due', '(' .. now, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
return {moved, after[2] or ''}
