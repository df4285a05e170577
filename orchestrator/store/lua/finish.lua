-- End attempts: in an end state, or in a retry that is due later. Only under the fence.
--
-- FLAGS allow-oom
-- USES core gates runs wake
-- ARGV items packed  a list of {run id, attempt, state, label, message, result, retry in ms}
-- RETURN per item: {'ok', state} | {'again', the recorded outcome} | {'superseded', attempt}

local answers = {}

local function finish(run, attempt, state, label, message, result, retry_ms)
  if not run then return {'superseded', 0} end
  if run.place ~= 'leased' or run.attempt ~= attempt then
    local ended, outcome = string.match(run.outcome, '^(%d+) (.*)$')
    if tonumber(ended) == attempt then return {'again', outcome} end
    return {'superseded', run.attempt}
  end
  if run.state == 'Cancelling' and state == 'AwaitingRetry' then state, label = 'Cancelled', '' end
  if state == 'AwaitingRetry' then set(run, 'ready', now + retry_ms) end
  if not enter(run, state, message, label) then return {'superseded', run.attempt} end
  record_outcome(run, state)
  leave_and_free(run)
  if state == 'AwaitingRetry' then
    to_due(run, run.ready)
  else
    if result ~= '' then set(run, 'result', result) end
    to_ended(run)
  end
  return {'ok', state}
end

for i, item in ipairs(items) do
  answers[i] = finish(load_run(item[1]), item[2], item[3], item[4], item[5], item[6], item[7])
end
wake_freed()
return answers
