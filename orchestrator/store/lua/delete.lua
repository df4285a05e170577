-- Remove runs for good, with their logs and task runs. One that a worker holds is refused: cancel it first.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake
-- ARGV runs packed  a list of ids
-- RETURN per run: ok | refused | missing

local answers = {}
for i, id in ipairs(runs) do
  local run = load_run(id)
  if not run then
    answers[i] = 'missing'
  elseif run.place == 'leased' then
    answers[i] = 'refused'
  else
    leave_and_free(run)
    forget(run)
    answers[i] = 'ok'
  end
end
wake_freed()
return answers
