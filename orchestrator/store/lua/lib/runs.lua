-- A run in memory, and every move between its places. See architecture: a run that has not ended is in exactly one place.
--
-- A run is read once per script (`load_run`), changed in memory (`set`), and written once at the end. The table TRANSITIONS
-- comes from states.py. A field that is absent reads as ''. `due` is when the run was meant to start; `ready`, stored where it
-- differs, is when it may start next: a retry's time, or when it was queued again.

local FIELDS = {
  'state', 'label', 'message', 'at', 'place', 'gate', 'msg', 'attempt', 'pool', 'queue', 'prio', 'dep', 'sched', 'flow', 'tags',
  'due', 'ready', 'started', 'expires', 'starts', 'crashes', 'budget', 'worker', 'parent', 'idem', 'gates', 'reserved', 'outcome',
  'history', 'kind', 'name', 'ended',
}
local NUMBERS = {attempt = 0, prio = 1, due = 0, ready = 0, starts = 0, crashes = 0, budget = 1}
local PRIORITY_NAMES = {[0] = 'high', [1] = 'normal', [2] = 'low'}
local GROUP = 'workers'
local HISTORY_BYTES = 32768
local loaded = {}

-- One HSET and at most one HDEL per changed run, however many fields a script touched.
local function save(run)
  local sets, gone = {}, {}
  for field in pairs(run.changed) do
    local value = run[field]
    if value == '' then
      gone[#gone + 1] = field
    else
      sets[#sets + 1] = field
      sets[#sets + 1] = value
    end
  end
  if #sets > 0 then redis.call('HSET', run.key, unpack(sets)) end
  if #gone > 0 and not run.new then redis.call('HDEL', run.key, unpack(gone)) end
end

set = function(run, field, value)
  if not run.changed then
    run.changed = {}
    later(function() if not run.deleted then save(run) end end)
  end
  run[field] = value
  run.changed[field] = true
end

local function load_run(id)
  local run = loaded[id]
  if run ~= nil then return run end
  local key = prefix .. 'run:' .. id
  local values = redis.call('HMGET', key, unpack(FIELDS))
  if not values[1] then
    loaded[id] = false
    return false
  end
  run = {id = id, key = key}
  for i, field in ipairs(FIELDS) do
    run[field] = values[i] or ''
    if NUMBERS[field] then run[field] = tonumber(run[field]) or NUMBERS[field] end
  end
  if run.ready == 0 then run.ready = run.due end
  loaded[id] = run
  return run
end

local function index_key(of, value)
  return prefix .. 'index:' .. of .. ':' .. value
end

-- The indexes that a run stands in for as long as it exists. The one by state follows its state.
local function index_keys(run)
  local keys = {prefix .. 'index:all', index_key('flow', run.flow)}
  if present(run.dep) then keys[#keys + 1] = index_key('deployment', run.dep) end
  if present(run.parent) then keys[#keys + 1] = index_key('parent', run.parent) end
  for _, tag in ipairs(split(run.tags)) do keys[#keys + 1] = index_key('tag', tag) end
  return keys
end

-- The history with one more entry. One that has grown beyond HISTORY_BYTES loses its older half: a run that is retried for
-- ever must not grow for ever.
local function extended(history, entry)
  if #history < HISTORY_BYTES then return history .. cmsgpack.pack(entry) end
  local place = 0
  while place < HISTORY_BYTES / 2 do place = cmsgpack.unpack_one(history, place) end
  return string.sub(history, place + 1) .. cmsgpack.pack(entry)
end

-- Enter a state (`since` a moment, now if not given), if the table allows it. Moves the state index, extends the history, tells the feed.
local function enter(run, state, message, label, since)
  if run.state ~= '' and not TRANSITIONS[run.state][state] then return false end
  if run.state ~= '' and run.state ~= state then write('ZREM', index_key('state', run.state), run.id) end
  local waits = state == 'Scheduled' or state == 'Late' or state == 'AwaitingRetry' or state == 'AwaitingConcurrencySlot'
  since = since or now
  write('ZADD', index_key('state', state), waits and run.ready or since, run.id)
  set(run, 'state', state)
  set(run, 'label', label ~= state and label or '')
  set(run, 'message', message or '')
  set(run, 'at', since)
  set(run, 'history', extended(run.history, {present(label) and label or state, since, run.attempt, message or ''}))
  emit('run.' .. state, 'r', run.id, 'f', run.flow, 'a', run.attempt)
  return true
end

-- The keys that live as long as the run: without a TTL until it ends, with one from then on.
local function kept_keys(run)
  local keys = {run.key, prefix .. 'log:' .. run.id, prefix .. 'tasks:' .. run.id}
  if present(run.idem) then keys[#keys + 1] = prefix .. 'idempotency:' .. run.idem end
  return keys
end

-- How long Redis keeps what has ended if the pruner never comes: the namespace's retention and a week.
local net_ms
local function net_ttl()
  net_ms = net_ms or (tonumber(redis.call('HGET', prefix .. 'settings', 'retention_ms') or RETENTION_MS) + 7 * 86400000)
  return net_ms
end

-- Take the run out of the place it is in. Freed gates are woken by `wake_freed` at the end of the script.
local function leave(run)
  local place = run.place
  if place == 'due' then
    write('ZREM', prefix .. 'due', run.id)
    if present(run.sched) then write('ZREM', prefix .. 'planned:' .. run.dep .. ':' .. run.sched, run.id) end
  elseif place == 'queued' then
    local id, stream = string.match(run.msg, '^(%S+) (.*)$')
    write('XACK', prefix .. stream, GROUP, id)
    write('XDEL', prefix .. stream, id)
    set(run, 'msg', '')
  elseif place == 'parked' then
    write('ZREM', prefix .. 'parked:' .. run.gate, run.id)
    set(run, 'gate', '')
  elseif place == 'leased' then
    write('ZREM', prefix .. 'leases', run.id)
  elseif place == 'paused' then
    write('ZREM', prefix .. 'paused', run.id)
  elseif place == 'ended' then
    for _, key in ipairs(kept_keys(run)) do write('PERSIST', key) end
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
  write('ZADD', prefix .. 'due', due, run.id)
  signal()
end

local function to_stream(run, stream)
  set(run, 'place', 'queued')
  later(function()
    local id = redis.call('XADD', prefix .. stream, '*', 'r', run.id)
    redis.call('HSET', run.key, 'msg', id .. ' ' .. stream)
  end)
end

local function to_queue(run)
  to_stream(run, 'queue:' .. run.pool .. ':' .. run.queue .. ':' .. PRIORITY_NAMES[run.prio])
end

local function to_resumed(run)
  to_stream(run, 'resumed:' .. run.pool)
end

local function parking_score(run)
  return run.prio * 1e13 + run.due
end

local function to_parked(run, gate, score)
  set(run, 'place', 'parked')
  set(run, 'gate', gate.name)
  write('ZADD', prefix .. 'parked:' .. gate.name, score, run.id)
end

local function to_leased(run, worker, lease_ms)
  set(run, 'place', 'leased')
  set(run, 'attempt', run.attempt + 1)
  set(run, 'worker', worker)
  write('ZADD', prefix .. 'leases', now + lease_ms, run.id)
  if present(run.expires) then write('ZREM', prefix .. 'expires', run.id) end
end

local function to_paused(run, deadline)
  set(run, 'place', 'paused')
  write('ZADD', prefix .. 'paused', deadline, run.id)
end

local function let_expire(run)
  for _, key in ipairs(kept_keys(run)) do write('PEXPIRE', key, net_ttl()) end
end

local function to_ended(run)
  set(run, 'place', 'ended')
  set(run, 'ended', now)
  if present(run.expires) then write('ZREM', prefix .. 'expires', run.id) end
  let_expire(run)
end

-- Tell the worker that holds the run to stop it now, and not only when it next renews the lease.
local function tell_worker(run)
  local control = prefix .. 'control:' .. run.worker
  write('XADD', control, 'MAXLEN', '~', 1000, '*', 'c', 'cancel', 'r', run.id)
  write('PEXPIRE', control, 3600000)
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

-- A run that no key stands for yet, from the flat list of its first fields; it is in no place and has no state.
local function new_run(id, fields, tags, due)
  local run = {id = id, key = prefix .. 'run:' .. id, new = true}
  for _, field in ipairs(FIELDS) do run[field] = NUMBERS[field] or '' end
  loaded[id] = run
  for i = 1, #fields, 2 do set(run, fields[i], NUMBERS[fields[i]] and tonumber(fields[i + 1]) or fields[i + 1]) end
  set(run, 'tags', table.concat(tags, '\n'))
  set(run, 'due', due)
  run.ready = due
  set(run, 'created', now)
  for _, key in ipairs(index_keys(run)) do write('ZADD', key, due, id) end
  return run
end

-- Remove every trace of a run that is in no place any more, or has ended.
local function forget(run)
  for _, key in ipairs(index_keys(run)) do write('ZREM', key, run.id) end
  write('ZREM', index_key('state', run.state), run.id)
  if present(run.expires) then write('ZREM', prefix .. 'expires', run.id) end
  for _, key in ipairs(kept_keys(run)) do write('DEL', key) end
  run.deleted = true
  emit('run.deleted', 'r', run.id, 'f', run.flow)
end
