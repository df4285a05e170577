-- A draining worker gives a run back; no crash is charged.
--
-- FLAGS allow-oom
-- USES core gates runs places wake
-- ARGV run     str  the run
--      attempt int  the caller's attempt
-- RETURN ok | superseded

local found = load_run(run)
if not found or found.place ~= 'leased' or found.attempt ~= attempt then return 'superseded' end
local state = found.state == 'Cancelling' and 'Cancelled' or present(found.pool) and 'Scheduled' or 'Crashed'
record_outcome(found, state)
leave_and_free(found)
if state == 'Scheduled' then
  requeue(found, 'Handed back by a worker that shuts down.')
else
  -- A run without a pool lives and dies with its own process.
  enter(found, state, state == 'Cancelled' and 'Cancelled while its worker shut down.' or 'Its process shut down.')
  to_ended(found)
end
wake_freed()
return 'ok'
