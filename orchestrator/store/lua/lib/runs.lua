-- A run in memory: read once, changed, written once; its state, its history, the indexes it stands in, its birth and its end.
--
-- A run is read once per script (`load_run`), changed in memory (`set`), and written once at the end. The table TRANSITIONS
-- comes from states.py. A field that is absent reads as ''. `due` is when the run was meant to start; `ready`, stored where it
-- differs, is when it may start next: a retry's time, or when it was queued again.

local FIELDS = {
  'state', 'label', 'message', 'at', 'place', 'gate', 'msg', 'attempt', 'pool', 'queue', 'prio', 'dep', 'sched', 'flow', 'tags',
  'due', 'ready', 'started', 'expires', 'starts', 'crashes', 'budget', 'worker', 'parent', 'idem', 'gates', 'reserved', 'outcome',
  'history', 'kind', 'name', 'ended', 'calls', 'share',
}
local NUMBERS = {attempt = 0, prio = 1, due = 0, ready = 0, starts = 0, crashes = 0, budget = 1}
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

-- Whether the table lets one state follow another.
local function allows(from, to)
  return string.find(TRANSITIONS[from], ' ' .. to .. ' ', 1, true) ~= nil
end

-- Enter a state (`since` a moment, now if not given), if the table allows it. Moves the state index,
-- extends the history, tells the feed.
local function enter(run, state, message, label, since)
  if run.state ~= '' and not allows(run.state, state) then return false end
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
  loaded[run.id] = false
  emit('run.deleted', 'r', run.id, 'f', run.flow)
end
