-- Give back the slots of calls, or let them wait no longer. A call that is not there any more is none.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake
-- ARGV worker str    who executes the runs
--      calls packed  a list of {run id, attempt, number}
-- RETURN how many there were

local count = 0
for _, item in ipairs(calls) do
  local run = load_run(item[1])
  local call, place
  if run and is_leased(run, item[2], worker) then call, place = call_of(run, item[3]) end
  if call then
    free_call(run, call)
    table.remove(calls_of(run), place)
    save_calls(run)
    count = count + 1
  end
end
wake_freed()
return count
