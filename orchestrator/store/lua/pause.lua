-- A running run waits for a person. Its attempt ends, its slots are free. Refused without a pool that could go on with it.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake
-- ARGV run        str  the run
--      attempt    int  the caller's attempt
--      worker     str  the caller
--      state      str  Paused or Suspended
--      message    str  why
--      timeout_ms int  how long it may wait
-- RETURN {'ok', state} | {'refused', state} | {'superseded', attempt} | {'missing', ''}

local found = load_run(run)
if not found then return {'missing', ''} end
if not is_leased(found, attempt, worker) then return {'superseded', found.attempt} end
if not allows(found.state, state) or not present(found.pool) then return {'refused', found.state} end
record_outcome(found, state)
leave_and_free(found)
enter(found, state, message)
to_paused(found, now + timeout_ms)
wake_freed()
return {'ok', state}
