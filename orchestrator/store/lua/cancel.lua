-- Cancel a run: at once where it waits, by asking its worker where it runs.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake
-- ARGV run     str  the run
--      message str  why
-- RETURN {'ok', state} | {'refused', state} | {'missing', ''}

local found = load_run(run)
if not found then return {'missing', ''} end
if found.place == 'ended' then return {'refused', found.state} end
cancel_run(found, message)
wake_freed()
return {'ok', found.state}
