-- Runs whose process is gone: charge a crash, and queue them again while their budget lasts.
--
-- With `run` '', those whose lease is over; but none while the server itself has been up for less than `grace_ms`: leases ran
-- out while nobody could renew them, and their workers get the time to come back. With a run, that one, whose child has died,
-- under the fence.
--
-- FLAGS allow-oom
-- USES core gates runs places wake
-- ARGV run      str  a run's id, or ''
--      attempt  int  its attempt
--      reason   str  what happened, for the state's message
--      limit    int  at most so many
--      grace_ms int  how long after the server's start no lease counts as over; 0 = it always does
-- RETURN {requeued, crashed, cancelled, looked at}

local requeued, crashed, cancelled = 0, 0, 0

local function lapse(found)
  set(found, 'crashes', found.crashes + 1)
  leave_and_free(found)
  if found.state == 'Cancelling' then
    record_outcome(found, 'Cancelled')
    enter(found, 'Cancelled', 'Its process ended while it was being cancelled: ' .. reason .. '.')
    to_ended(found)
    cancelled = cancelled + 1
  elseif found.crashes < found.budget and present(found.pool) then
    record_outcome(found, 'Scheduled')
    requeue(found, 'Started again, ' .. found.crashes .. ' of ' .. found.budget .. ' starts lost: ' .. reason .. '.')
    requeued = requeued + 1
  else
    record_outcome(found, 'Crashed')
    enter(found, 'Crashed', 'Its process was lost (' .. found.crashes .. ' of ' .. found.budget .. ' starts): ' .. reason .. '.')
    to_ended(found)
    crashed = crashed + 1
  end
end

local function server_is_young()
  if grace_ms == 0 then return false end
  local uptime = string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)')
  return uptime ~= nil and tonumber(uptime) * 1000 < grace_ms
end

if run == '' and server_is_young() then return {0, 0, 0, 0} end
local over = run ~= '' and {run} or redis.call('ZRANGE', prefix .. 'leases', '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
for _, id in ipairs(over) do
  local found = load_run(id)
  if found and found.place == 'leased' then
    if run == '' or found.attempt == attempt then lapse(found) end
  elseif run == '' then
    write('ZREM', prefix .. 'leases', id)
  end
end
wake_freed()
return {requeued, crashed, cancelled, #over}
