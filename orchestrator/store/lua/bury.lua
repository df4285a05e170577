-- Take a run out of its place for good that its reader cannot make sense of, though the scripts can: a dead letter about it.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake
-- ARGV run str  the run
--      why str  what cannot be read
-- RETURN 1 if there was such a run, else 0

local found = load_run(run)
if not found then return 0 end
leave_and_free(found)
leave_indexes(found)
set(found, 'place', 'malformed')
let_expire(found)
dead_letter('', '', found.id, why, found.name .. ' of ' .. found.flow)
wake_freed()
return 1
