-- End attempts: in an end state, or in a retry that is due later. Only under the fence.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake
-- ARGV worker str    who executed them
--      items packed  a list of {run id, attempt, state, label, message, result, retry in ms, ms since it ended}
-- RETURN per item: {'ok', state} | {'again', the recorded outcome} | {'superseded', attempt}
--        again       the attempt has ended so already; the first answer was lost
--        superseded  the attempt has ended otherwise: its lease lapsed, or somebody decided

local answers = {}

-- What an attempt that asks for `state` ends in: no retry of a run that is being cancelled, or that no pool could start again.
local function end_state(run, state)
  if state ~= 'AwaitingRetry' then return state end
  if run.state == 'Cancelling' or run.state == 'Cancelled' then return 'Cancelled' end
  return present(run.pool) and state or 'Failed'
end

local function finish(run, attempt, asked, label, message, result, retry_ms, ago_ms)
  if not run then return {'superseded', 0} end
  local state = end_state(run, asked)
  if not is_leased(run, attempt, worker) then
    if has_ended_so(run, attempt, state, worker) then return {'again', state} end
    return {'superseded', run.attempt}
  end
  if state == 'AwaitingRetry' then set(run, 'ready', now + retry_ms) end
  -- The report may have waited for us to come back; but nothing ends before it began.
  local ended = math.min(now, math.max(now - ago_ms, tonumber(run.at) or now))
  enter(run, state, message, state == asked and label or '', ended)
  record_outcome(run, state)
  leave_and_free(run)
  if state == 'AwaitingRetry' then
    to_due(run, ready_of(run))
  else
    if result ~= '' then set(run, 'result', result) end
    to_ended(run, ended)
  end
  return {'ok', state}
end

for i, item in ipairs(items) do
  answers[i] = finish(load_run(item[1]), item[2], item[3], item[4], item[5], item[6], item[7], item[8])
end
wake_freed()
return answers
