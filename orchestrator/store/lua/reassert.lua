-- Hold what a worker knows of runs against a server that may have forgotten it: ends that were accepted, and what it executes now.
--
-- The fence decides as ever: what belongs to a later attempt is left alone. An end that the history knows is not touched, also if
-- the run was retried since. An end that it does not know is recorded under its attempt; a claim that it does not know is taken
-- again, if the run waits and its limits have room.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake reports
-- ARGV worker   str     whose ends and runs these are
--      lease_ms int     length of a lease
--      ends     packed  a list of {run id, attempt, state, label, message, result, ended ms, retry at ms or 0, accepted}
--                       accepted 1 = an earlier history had accepted it; 0 = it was not told before
--      held     packed  a list of {run id, attempt, 1 if its body has started}
-- RETURN {answers, answers}, of ends and of held, each {answer, detail}
--        ok        nothing was lost, or nothing that a worker has to see to
--        restored  it was lost and has been recorded anew
--        missing   no record is left of the run: reported as lost
--        twice     a later attempt, or another worker (detail), has the run: reported
--        full      the run was given up to others (detail: the limit without room): it starts again, reported as twice
--        other     this attempt has ended otherwise (detail: the run's state)

local WAITS = {due = true, queued = true, parked = true, paused = true}
local AGAIN = 'Recorded anew: a fail-over had lost it.'

local function knows_end(run, attempt, state, label)
  if has_ended_so(run, attempt, state, worker) then return true end
  if run.attempt == attempt and run.worker ~= worker then return false end
  local name, place, entry = present(label) and label or state, 0, nil
  while place >= 0 and run.history ~= '' do
    place, entry = cmsgpack.unpack_one(run.history, place)
    if entry[1] == name and entry[3] == attempt then return true end
  end
  return false
end

-- Someone else's that must not be touched: a later attempt, or the same number given out twice.
local function is_taken(run, attempt)
  return run.attempt > attempt
    or ((run.place == 'leased' or run.place == 'ended') and run.attempt == attempt and run.worker ~= worker)
end

local function taken(run)
  report('twice', run.id, 'by', worker, 'other', run.worker)
  return {'twice', run.worker}
end

local function missing(id)
  report('lost', id, 'by', worker)
  return {'missing', ''}
end

-- Out of its place and into the hands of this worker, under its attempt; in no place yet.
local function take_over(run, attempt)
  if run.place == 'leased' and run.worker ~= worker then tell_worker(run, 'cancel', 0) end
  leave_and_free(run)
  set(run, 'attempt', attempt)
  set(run, 'worker', worker)
  report('restored', run.id, 'by', worker)
end

local function begin(run, message)
  if run.state == 'Running' or run.state == 'Cancelling' then return end
  if not allows(run.state, 'Running') then enter(run, 'Scheduled', message) end
  enter(run, 'Running', message)
  set(run, 'starts', run.starts + 1)
  if run.started == '' then set(run, 'started', now) end
end

local function assert_end(run, attempt, state, label, message, result, ended_ms, retry_ms, accepted)
  if knows_end(run, attempt, state, label) then return {'ok', ''} end
  if is_taken(run, attempt) then return taken(run) end
  if not WAITS[run.place] and run.place ~= 'leased' then return {'other', run.state} end
  if accepted == 0 and run.attempt == attempt and run.place ~= 'leased' then return {'other', run.state} end
  local was_waiting = run.place ~= 'leased'
  take_over(run, attempt)
  local ended = math.min(now, math.max(ended_ms, tonumber(run.at) or now))
  if state == 'AwaitingRetry' then
    if was_waiting then begin(run, AGAIN) end
    set(run, 'ready', math.max(now, retry_ms))
  elseif was_waiting then
    set(run, 'starts', run.starts + 1)
  end
  enter(run, state, message == '' and AGAIN or message .. ' (' .. AGAIN .. ')', label, ended)
  record_outcome(run, state)
  if state == 'AwaitingRetry' then
    to_due(run, ready_of(run))
  else
    if result ~= '' then set(run, 'result', result) end
    to_ended(run, ended)
  end
  return {'restored', ''}
end

local function assert_held(run, attempt, has_started)
  if is_leased(run, attempt, worker) then
    zadd(prefix .. 'leases', now + lease_ms, run.id)
    return {'ok', ''}
  end
  if is_taken(run, attempt) or (run.place == 'leased' and run.worker ~= worker) then return taken(run) end
  if run.place == 'ended' or run.attempt == attempt then return {'other', run.state} end
  local gate = refusal(run, true)
  if gate then
    report('twice', run.id, 'by', worker, 'limit', title(gate))
    return {'full', title(gate)}
  end
  take_over(run, attempt - 1)
  take_slots(run, attempt)
  local message = 'Goes on at ' .. worker .. ': a fail-over had lost its claim.'
  to_leased(run, worker, lease_ms)
  if has_started == 1 then
    begin(run, message)
  else
    if not allows(run.state, 'Pending') then enter(run, 'Scheduled', message) end
    enter(run, 'Pending', message)
  end
  return {'restored', ''}
end

local of_ends, of_held = {}, {}
for i, item in ipairs(ends) do
  local run = load_run(item[1])
  of_ends[i] = run and assert_end(run, unpack(item, 2)) or missing(item[1])
end
for i, item in ipairs(held) do
  local run = load_run(item[1])
  of_held[i] = run and assert_held(run, item[2], item[3]) or missing(item[1])
end
wake_freed()
return {of_ends, of_held}
