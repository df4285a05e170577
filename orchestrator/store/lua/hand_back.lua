-- A worker that has stopped a run gives it back; no crash is charged. A run that may start once ends here if it has started.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake
-- ARGV run     str  the run
--      attempt int  the caller's attempt
--      worker  str  the caller
-- RETURN ok | superseded

local found = load_run(run)
if not found or not is_leased(found, attempt, worker) then return 'superseded' end
-- A run without a pool lives and dies with its own process; a budget of one start means never again, whoever stopped it.
local may_start_again = present(found.pool) and (found.budget > 1 or found.state == 'Pending')
local state = found.state == 'Cancelling' and 'Cancelled' or may_start_again and 'Scheduled' or 'Crashed'
record_outcome(found, state)
leave_and_free(found)
if state == 'Scheduled' then
  requeue(found, 'Stopped and handed back by its worker.')
else
  local why = state == 'Cancelled' and 'Cancelled while its worker shut down.'
    or present(found.pool) and 'Stopped by its worker (1 of 1 starts).'
    or 'Its process shut down.'
  enter(found, state, why)
  to_ended(found)
end
wake_freed()
return 'ok'
