-- Extend leases, only of runs that are leased under the caller's attempt.
--
-- FLAGS allow-oom
-- USES core gates runs places
-- ARGV worker   str     who holds them
--      lease_ms int     length of the lease from now
--      items    packed  a list of {run id, attempt}
-- RETURN per item: ok | cancel (extended; someone asked for it to be cancelled) | ended | lost

local answers = {}
for i, item in ipairs(items) do
  local run = load_run(item[1])
  if not run then
    answers[i] = 'lost'
  elseif run.place == 'ended' and is_attempt_of(run, item[2], worker) then
    answers[i] = 'ended'
  elseif not is_leased(run, item[2], worker) or not redis.call('ZSCORE', prefix .. 'leases', run.id) then
    answers[i] = 'lost'
  else
    zadd(prefix .. 'leases', now + lease_ms, run.id)
    answers[i] = run.state == 'Cancelling' and 'cancel' or 'ok'
  end
end
return answers
