-- Every move of a run between its places. See architecture: a run that has not ended is in exactly one place.

local PRIORITY_NAMES = {[0] = 'high', [1] = 'normal', [2] = 'low'}

-- A long queue is shared: beyond its first SHARE messages it takes at most SHARE of each deployment, and the other runs of that
-- deployment wait until one of these is claimed. So ten thousand runs of one keep another's from a worker for a few hundred, not
-- for all of them. A run that stands in a queue as part of such a share has a slot of it.

local depths = {}

local function queue_of(run)
  return 'queue:' .. run.pool .. ':' .. run.queue .. ':' .. PRIORITY_NAMES[run.prio]
end

local function share_of(run)
  return find_gate('share:' .. string.sub(queue_of(run), 7) .. ':' .. run.dep)
end

local function take_share(run, gate)
  gate.used = gate.used + 1
  set(run, 'share', '1')
  zadd(gate.slots, now, slot(run, run.attempt + 1))
end

local function free_share(run)
  local gate = share_of(run)
  gate.used = gate.used - 1
  set(run, 'share', '')
  zrem(gate.slots, slot(run, run.attempt + 1))
  freed[#freed + 1] = gate.name
end

-- The id of the run that an entry of a stream of runs stands for; else nil, and why it stands for none.
local function read_message(fields)
  for i = 1, #fields, 2 do
    if fields[i] ~= 'r' then return nil, 'it has a field that this release does not know' end
  end
  if #fields ~= 2 or not is_id(fields[2]) then return nil, 'it names no run' end
  return fields[2]
end

-- Take the run out of the place it is in. Freed gates are woken by `wake_freed` at the end of the script.
local function leave(run)
  local place = run.place
  if place == 'due' then
    zrem(prefix .. 'due', run.id)
    if present(run.sched) then zrem(prefix .. 'planned:' .. run.dep .. ':' .. run.sched, run.id) end
  elseif place == 'queued' then
    local id, stream = string.match(run.msg, '^(%S+) (.*)$')
    xdrop(stream, id)
    set(run, 'msg', '')
    if present(run.share) then free_share(run) end
  elseif place == 'parked' then
    zrem(prefix .. 'parked:' .. run.gate, run.id)
    set(run, 'gate', '')
  elseif place == 'leased' then
    zrem(prefix .. 'leases', run.id)
  elseif place == 'paused' then
    zrem(prefix .. 'paused', run.id)
  elseif place == 'ended' then
    for _, key in ipairs(kept_keys(run)) do expire(key, false) end
    set(run, 'ended', '')
  end
end

-- Leave, and give back the slots: every move but the one from a queue with a reservation to a worker.
local function leave_and_free(run)
  leave(run)
  free_slots(run)
end

local function to_due(run, due)
  set(run, 'place', 'due')
  zadd(prefix .. 'due', due, run.id)
  signal()
end

local function to_stream(run, stream)
  set(run, 'place', 'queued')
  later(function() set(run, 'msg', redis.call('XADD', prefix .. stream, '*', 'r', run.id) .. ' ' .. stream) end)
end

-- Runs that come in one call, and are due in the same millisecond, keep their order: a score has room for some 200 of them.
local scores_made = 0
local function parking_score(run)
  scores_made = scores_made + 1
  return run.prio * 1e13 + run.due + (scores_made % 200) / 256
end

local function to_parked(run, gate, score)
  set(run, 'place', 'parked')
  set(run, 'gate', gate.name)
  zadd(prefix .. 'parked:' .. gate.name, score, run.id)
end

local function to_queue(run)
  local queue = queue_of(run)
  depths[queue] = (depths[queue] or redis.call('XLEN', prefix .. queue)) + 1
  if depths[queue] > SHARE and present(run.dep) then
    local share = share_of(run)
    if not fits(share, 1) then return to_parked(run, share, parking_score(run)) end
    take_share(run, share)
  end
  to_stream(run, queue)
end

local function to_resumed(run)
  to_stream(run, 'resumed:' .. run.pool)
end

-- The queued run whose message an entry is, or false: then the entry is taken out of the stream. It stands for nothing any more, or it
-- is a dead letter, because it cannot be read, or its run cannot. A run whose message cannot be read gets another one.
local function open_message(stream, message, fields)
  local id, why = read_message(fields)
  local run = load_run(id or fields[2])
  local is_message = run and run.place == 'queued' and run.msg == message .. ' ' .. stream
  if id and is_message then return run end
  if why then
    dead_letter(stream, message, '', why, table.concat(fields, ' '))
  elseif unreadable[id] then
    local letter = unreadable[id]
    letter.stream, letter.message, letter.is_new = stream, message, true
  end
  if is_message then
    leave(run)
    to_resumed(run)
  else
    xdrop(stream, message)
  end
  return false
end

local function to_leased(run, worker, lease_ms)
  set(run, 'place', 'leased')
  set(run, 'attempt', run.attempt + 1)
  set(run, 'worker', worker)
  zadd(prefix .. 'leases', now + lease_ms, run.id)
  if present(run.expires) then zrem(prefix .. 'expires', run.id) end
end

local function to_paused(run, deadline)
  set(run, 'place', 'paused')
  zadd(prefix .. 'paused', deadline, run.id)
end

local function let_expire(run)
  for _, key in ipairs(kept_keys(run)) do expire(key, net_ttl()) end
end

local function to_ended(run, ended)
  set(run, 'place', 'ended')
  set(run, 'ended', ended or now)
  if present(run.expires) then zrem(prefix .. 'expires', run.id) end
  let_expire(run)
end

-- Tell the worker that holds the run something now, and not only when it next renews the lease: cancel it (0), or that its call of
-- that number was granted.
local function tell_worker(run, what, call)
  local control = prefix .. 'control:' .. run.worker
  write('XADD', control, 'MAXLEN', '~', 1000, '*', 'c', what, 'r', run.id, 'n', call)
  write('PEXPIRE', control, 3600000)
end

-- Cancel a run that has not ended: at once where it waits, by asking its worker where it runs.
local function cancel_run(run, message)
  if run.state == 'Cancelling' then return end
  if run.place == 'leased' then
    enter(run, 'Cancelling', message)
    tell_worker(run, 'cancel', 0)
  else
    leave_and_free(run)
    enter(run, 'Cancelled', message)
    to_ended(run)
  end
end

-- Scheduled, and on its way to a worker: requeued runs stand before all others.
local function requeue(run, message)
  set(run, 'ready', now)
  if not enter(run, 'Scheduled', message) then return false end
  to_resumed(run)
  return true
end

-- The end of an attempt is recorded, so that the same call made twice can be answered "again".
local function record_outcome(run, state)
  set(run, 'outcome', run.attempt .. ' ' .. state)
end

-- Whether the attempt has ended so already, and not another worker's of the same number, as far as nobody has claimed the run since.
local function has_ended_so(run, attempt, state, worker)
  return run.outcome == attempt .. ' ' .. state and (run.attempt ~= attempt or run.worker == worker)
end
