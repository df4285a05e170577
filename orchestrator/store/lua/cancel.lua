-- Cancel a run: at once where it waits, by asking its worker where it runs.
--
-- USES core gates runs wake
-- ARGV run     str  the run
--      message str  why
-- RETURN {'ok', state} | {'refused', state} | {'missing', ''}

local found = load_run(run)
if not found then return {'missing', ''} end
if found.place == 'ended' then return {'refused', found.state} end
if found.state == 'Cancelling' then return {'ok', 'Cancelling'} end
if found.place == 'leased' then
  enter(found, 'Cancelling', message)
  write('XADD', prefix .. 'control:' .. found.worker, 'MAXLEN', '~', 1000, '*', 'c', 'cancel', 'r', found.id)
  write('PEXPIRE', prefix .. 'control:' .. found.worker, 3600000)
else
  leave_and_free(found)
  enter(found, 'Cancelled', message)
  to_ended(found)
end
wake_freed()
return {'ok', found.state}
