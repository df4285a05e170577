-- Cancel a run: at once where it waits, by asking its worker where it runs.
--
-- FLAGS allow-oom
-- USES core gates runs places wake
-- ARGV run     str  the run
--      message str  why
-- RETURN {'ok', state} | {'refused', state} | {'missing', ''}

local found = load_run(run)
if not found then return {'missing', ''} end
if found.place == 'ended' then return {'refused', found.state} end
if found.state == 'Cancelling' then return {'ok', 'Cancelling'} end
if found.place == 'leased' then
  enter(found, 'Cancelling', message)
  tell_worker(found)
else
  leave_and_free(found)
  enter(found, 'Cancelled', message)
  to_ended(found)
end
wake_freed()
return {'ok', found.state}
