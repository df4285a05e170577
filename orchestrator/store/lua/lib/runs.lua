-- A run in memory: read once, changed, written once; its state, its history, the indexes it stands in, its birth and its end.
--
-- A run is read once per script (`load_run`), changed in memory (`set`), and written once at the end. The tables
-- TRANSITIONS and PLACE_STATES come from states.py. A field that is absent reads as ''. `due` is when the run was meant to start;
-- `ready`, stored where it differs, is when it may start next: a retry's time, or when it was queued again.
--
-- A run that cannot be read (its key is no hash, fields are missing or garbled) counts as none: whoever meets it goes on with the
-- others. Who meets it first writes a dead letter about it and gives it a TTL.

local FIELDS = {
  'state', 'label', 'message', 'at', 'place', 'gate', 'msg', 'attempt', 'pool', 'queue', 'prio', 'dep', 'sched', 'flow', 'tags',
  'due', 'ready', 'started', 'expires', 'starts', 'crashes', 'budget', 'worker', 'parent', 'idem', 'gates', 'reserved', 'outcome',
  'history', 'kind', 'name', 'ended', 'calls', 'share',
}
local NUMBERS = {attempt = 0, prio = 1, due = 0, ready = 0, starts = 0, crashes = 0, budget = 1}
local TIMES = {'at', 'started', 'expires', 'reserved', 'ended'}
local HISTORY_BYTES = 32768
local LETTERS_KEPT, LETTER_BYTES = 10000, 1024
local loaded = {}
local unreadable = {}

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

-- How long Redis keeps what has ended if the pruner never comes: the namespace's retention and a week.
local net_ms
local function net_ttl()
  net_ms = net_ms or (tonumber(redis.call('HGET', prefix .. 'settings', 'retention_ms') or RETENTION_MS) + 7 * 86400000)
  return net_ms
end

-- Note for people what nobody can work with: from which stream and message, about which run, why, and the beginning of it.
local function dead_letter(stream, message, id, why, content)
  write('XADD', prefix .. 'malformed', 'MAXLEN', '~', LETTERS_KEPT, '*',
    's', stream, 'm', message, 'r', id, 'w', why, 'c', string.sub(content, 1, LETTER_BYTES))
end

local function is_id(text)
  return type(text) == 'string' and #text == 22 and not string.find(text, '[^%w_-]')
end

local function is_whole(text)
  return #text <= 16 and string.find(text, '^%-?%d+$')
end

-- The id of an entry, and the stream that it stands in.
local function is_place(text)
  local ms, number = string.match(text, '^(%d+)%-(%d+) %l+:')
  return ms and #ms <= 16 and #number <= 16
end

local function is_call(call)
  return type(call) == 'table' and type(call[1]) == 'number' and type(call[2]) == 'string' and type(call[3]) == 'number'
    and type(call[4]) == 'string' and type(call[5]) == 'number' and type(call[6]) == 'table'
end

local function are_calls(packed)
  local fine, list = pcall(cmsgpack.unpack, packed)
  if not fine or type(list) ~= 'table' then return false end
  for _, call in ipairs(list) do
    if not is_call(call) then return false end
  end
  return true
end

-- Why nobody can work with a run's fields, all of them still text; nil if everybody can. records.defect says the same.
local function defect(run)
  if run.state == '' then return 'it has no state' end
  if not TRANSITIONS[run.state] then return 'its state is unknown' end
  if not PLACE_STATES[run.place] then return 'its place is unknown' end
  if not string.find(PLACE_STATES[run.place], ' ' .. run.state .. ' ', 1, true) then return 'it cannot be in that state there' end
  for field in pairs(NUMBERS) do
    if run[field] ~= '' and not is_whole(run[field]) then return 'its ' .. field .. ' is no number' end
  end
  for _, field in ipairs(TIMES) do
    if run[field] ~= '' and not is_whole(run[field]) then return 'its ' .. field .. ' is no number' end
  end
  local prio = tonumber(run.prio ~= '' and run.prio or 1)
  if prio < 0 or prio > 2 then return 'its prio is unknown' end
  if run.flow == '' or run.at == '' then return 'it has no ' .. (run.flow == '' and 'flow' or 'at') end
  if (run.dep ~= '' and not is_id(run.dep)) or (run.parent ~= '' and not is_id(run.parent)) then return 'it names what is no id' end
  if (run.place == 'queued' or run.msg ~= '') and not is_place(run.msg) then return 'its message is none' end
  if run.calls ~= '' and not are_calls(run.calls) then return 'its calls cannot be read' end
end

-- Nobody can work with this run: a dead letter, unless there is one already, and a TTL for what it has left.
local function give_up(id, why, content)
  local is_new = redis.call('PTTL', prefix .. 'run:' .. id) == -1
  unreadable[id] = {stream = '', message = '', why = why, is_new = is_new}
  local ttl = net_ttl()
  later(function()
    local letter = unreadable[id]
    if not letter.is_new then return end
    dead_letter(letter.stream, letter.message, id, why, content)
    for _, kind in ipairs({'run:', 'log:', 'tasks:'}) do redis.call('PEXPIRE', prefix .. kind .. id, ttl) end
  end)
end

local function load_run(id)
  local run = loaded[id]
  if run ~= nil then return run end
  if not is_id(id) then return false end
  loaded[id] = false
  local key = prefix .. 'run:' .. id
  local values = redis.pcall('HMGET', key, unpack(FIELDS))
  if values.err then
    local kind = redis.call('TYPE', key).ok
    if kind == 'hash' or kind == 'none' then values = redis.call('HMGET', key, unpack(FIELDS)) end
    if values.err then
      give_up(id, 'its key is no hash', kind)
      return false
    end
  end
  if not values[1] and redis.call('EXISTS', key) == 0 then return false end
  run = {id = id, key = key}
  for i, field in ipairs(FIELDS) do run[field] = values[i] or '' end
  local why = defect(run)
  if why then
    local content = {}
    for i, field in ipairs(FIELDS) do
      if values[i] then content[#content + 1] = field .. '=' .. string.sub(values[i], 1, 200) end
    end
    give_up(id, why, table.concat(content, ' '))
    return false
  end
  for field, otherwise in pairs(NUMBERS) do run[field] = tonumber(run[field]) or otherwise end
  if run.ready == 0 then run.ready = run.due end
  loaded[id] = run
  return run
end

-- Whether the run's latest attempt is this one, and this worker's: a fail-over that forgot a claim has given the number out twice.
local function is_attempt_of(run, attempt, worker)
  return run.attempt == attempt and run.worker == worker
end

-- The fence: whether the run is leased to this worker under this attempt. Whatever is done on behalf of an attempt needs it.
local function is_leased(run, attempt, worker)
  return run.place == 'leased' and is_attempt_of(run, attempt, worker)
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
  local place, fine = 0, true
  while fine and place < HISTORY_BYTES / 2 do fine, place = pcall(cmsgpack.unpack_one, history, place) end
  return (fine and string.sub(history, place + 1) or '') .. cmsgpack.pack(entry)
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

local function leave_indexes(run)
  for _, key in ipairs(index_keys(run)) do write('ZREM', key, run.id) end
  write('ZREM', index_key('state', run.state), run.id)
  if present(run.expires) then write('ZREM', prefix .. 'expires', run.id) end
end

-- Remove every trace of a run that is in no place any more, or has ended.
local function forget(run)
  leave_indexes(run)
  for _, key in ipairs(kept_keys(run)) do write('DEL', key) end
  run.deleted = true
  loaded[run.id] = false
  emit('run.deleted', 'r', run.id, 'f', run.flow)
end
