-- Move runs whose time has come from `due` to their work queues.
--
-- USES core gates runs places
-- ARGV limit int  at most so many
-- RETURN {how many were moved, the next due time in ms or ''}

local due = redis.call('ZRANGE', prefix .. 'due', '-inf', now, 'BYSCORE', 'LIMIT', 0, limit + 1)
local moved = 0
for i = 1, math.min(#due, limit) do
  local run = load_run(due[i])
  if not run or run.place ~= 'due' then
    write('ZREM', prefix .. 'due', due[i])
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
