-- A draining worker gives a run back; no crash is charged.
--
-- FLAGS allow-oom
-- USES core gates runs wake
-- ARGV run     str  the run
--      attempt int  the caller's attempt
-- RETURN ok | superseded

local found = load_run(run)
if not found or found.place ~= 'leased' or found.attempt ~= attempt then return 'superseded' end
local cancelling = found.state == 'Cancelling'
record_outcome(found, cancelling and 'Cancelled' or 'Scheduled')
leave_and_free(found)
if cancelling then
  enter(found, 'Cancelled', 'Cancelled while its worker shut down.')
  to_ended(found)
else
  requeue(found, 'Handed back by a worker that shuts down.')
end
wake_freed()
return 'ok'
