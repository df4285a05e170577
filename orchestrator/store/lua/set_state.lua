-- Move one run to a state, if the table allows it: the worker that reports a start, or an operator's decision.
--
-- Under a fence (attempt > 0) only the lease holder of that attempt may write. Pending, Late, AwaitingConcurrencySlot and
-- Cancelling are entered by their own operations only; an ended run is reopened by `retry` only; Running needs the fence.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake
-- ARGV run     str  the run
--      attempt int  the caller's attempt, 0 = an operator
--      worker  str  the caller, '' = an operator
--      state   str  the state to enter
--      label   str  its name where it has one of its own, else ''
--      message str  why
--      due     str  for Scheduled and AwaitingRetry: when, ms; '' = now
--      wait_ms int  for Paused and Suspended: how long it may wait
--      ago_ms  int  for Running: so long ago the body started; the report waited for company
-- RETURN {'ok', state before} | {'refused', state} | {'superseded', attempt} | {'missing', ''}

local REACHABLE = {
  Scheduled = true, AwaitingRetry = true, Running = true, Paused = true, Suspended = true,
  Completed = true, Failed = true, Crashed = true, Cancelled = true,
}
local ENDS = {Completed = true, Failed = true, Crashed = true, Cancelled = true}

local found = load_run(run)
if not found then return {'missing', ''} end
if attempt > 0 and not is_leased(found, attempt, worker) then return {'superseded', found.attempt} end
local before = found.state
if found.place == 'ended' or not REACHABLE[state] or not allows(before, state) or (state == 'Running' and attempt == 0) then
  return {'refused', before}
end
if state == 'Running' then
  local began = math.max(now - ago_ms, tonumber(found.at))
  enter(found, state, message, label, began)
  set(found, 'starts', found.starts + 1)
  if found.started == '' then set(found, 'started', began) end
  return {'ok', before}
end
-- A run without a pool lives in its own process alone: it cannot go on anywhere else.
if not ENDS[state] and not present(found.pool) then return {'refused', before} end
if found.place == 'leased' then
  record_outcome(found, state)
  if attempt == 0 then tell_worker(found, 'cancel', 0) end
end
leave_and_free(found)
if state == 'Scheduled' or state == 'AwaitingRetry' then set(found, 'ready', math.max(tonumber(due) or now, now)) end
enter(found, state, message, label)
if ENDS[state] then
  to_ended(found)
elseif state == 'Paused' or state == 'Suspended' then
  to_paused(found, now + wait_ms)
elseif ready_of(found) <= now and state == 'Scheduled' then
  to_queue(found)
else
  to_due(found, ready_of(found))
end
wake_freed()
return {'ok', before}
