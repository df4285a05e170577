-- Cancel runs that waited past their time of expiry.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake
-- ARGV limit int  at most so many
-- RETURN how many were cancelled

local cancelled = 0
for _, id in ipairs(redis.call('ZRANGE', prefix .. 'expires', '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)) do
  local run = load_run(id)
  if run and (run.place == 'due' or run.place == 'queued' or run.place == 'parked') then
    leave_and_free(run)
    enter(run, 'Cancelled', 'It expired before a worker was free.')
    to_ended(run)
    cancelled = cancelled + 1
  else
    zrem(prefix .. 'expires', id)
  end
end
wake_freed()
return cancelled
