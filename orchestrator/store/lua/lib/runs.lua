-- A run in memory: read once, changed, written once; its state, its history, the indexes it stands in, its birth and its end.
--
-- A run is read once per script (`load_run`), changed in memory (`set`), and written once at the end. Its hash holds:
--
--   run      msgpack, an array of the fields that layout.py lists; it also makes the functions that read and write it
--   history  msgpack, one entry after the other: {name, since in ms, attempt, message}
--   params, result  msgpack, if there are any: read by nobody here but `create` and `claim`
--
-- `due` is when the run was meant to start; `ready`, stored where it differs, is when it may start next: a retry's time, or when it
-- was queued again. The tables TRANSITIONS and PLACE_STATES come from states.py.
--
-- A run that cannot be read (its key is no hash, fields are missing or garbled) counts as none: whoever meets it goes on with the
-- others. Who meets it first writes a dead letter about it and gives it a TTL.

local HISTORY_BYTES = 32768
local LETTERS_KEPT, LETTER_BYTES = 10000, 1024
local loaded = {}
local unreadable = {}
local read_too  -- a field of its own that a script wants of every run, beside `history`

local OWN = {history = true, params = true, result = true}  -- fields of the hash of their own

-- What is stored of a run, once nothing more is to be changed.
local function packed(run)
  run.as_stored = run.as_stored or cmsgpack.pack(array_of(run))
  return run.as_stored
end

save = function(run)
  if run.deleted then return end
  local sets, gone = {'run', packed(run)}, {}
  for field, value in pairs(run.own) do
    if value == '' then
      gone[#gone + 1] = field
    else
      sets[#sets + 1] = field
      sets[#sets + 1] = value
    end
  end
  redis.call('HSET', run.key, unpack(sets))
  if #gone > 0 and not run.new then redis.call('HDEL', run.key, unpack(gone)) end
end

set = function(run, field, value)
  run.as_stored = nil
  if not run.own then
    run.own = {}
    changed_runs[#changed_runs + 1] = run
  end
  run[field] = value
  if OWN[field] then run.own[field] = value end
end

-- How long Redis keeps what has ended if the pruner never comes: the namespace's retention and a week.
local net_ms
local function net_ttl()
  net_ms = net_ms or as_text(tonumber(redis.call('HGET', prefix .. 'settings', 'retention_ms') or RETENTION_MS) + 7 * 86400000)
  return net_ms
end

-- Note for people what nobody can work with: from which stream and message, about which run, why, and the beginning of it.
local function dead_letter(stream, message, id, why, content)
  write('XADD', prefix .. 'malformed', 'MAXLEN', '~', LETTERS_KEPT, '*',
    's', stream, 'm', message, 'r', id, 'w', why, 'c', string.sub(content, 1, LETTER_BYTES))
end

local function is_id(text)
  return #text == 22 and not string.find(text, '[^%w_-]')
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

-- Why nobody can work with a run; nil if everybody can. records.defect says the same.
local function defect(run)
  local states = PLACE_STATES[run.place]
  if not TRANSITIONS[run.state] then return 'its state is unknown' end
  if not states then return 'its place is unknown' end
  if not string.find(states, ' ' .. run.state .. ' ', 1, true) then return 'it cannot be in that state there' end
  if run.prio > 2 then return 'its prio is unknown' end
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

local function read_array(id, array)
  return is_run(array) and run_of(id, array)
end

local function give_up_array(id, array, why)
  local wrong, shown = describe(array)
  return give_up(id, why or wrong, shown)
end

-- The run as its hash has it, or nil if there is none, or none that can be read.
local function stored_run(id)
  local key = prefix .. 'run:' .. id
  local values = read_too and redis.pcall('HMGET', key, 'run', 'history', read_too) or redis.pcall('HMGET', key, 'run', 'history')
  if values.err then return give_up(id, 'its key is no hash', redis.call('TYPE', key).ok) end
  local packed = values[1]
  if not packed then
    if redis.call('EXISTS', key) == 1 then give_up(id, 'it has no fields', '') end
    return
  end
  local fine, array = pcall(cmsgpack.unpack, packed)
  if not fine or type(array) ~= 'table' then return give_up(id, 'its fields cannot be read', packed) end
  local whole, run = pcall(read_array, id, array)
  if not whole or not run then return give_up_array(id, array) end
  local why = defect(run)
  if why then return give_up_array(id, array, why) end
  run.history = values[2] or ''
  if read_too then run[read_too] = values[3] or '' end
  return run
end

local function load_run(id)
  if loaded[id] == nil then loaded[id] = #id == 22 and stored_run(id) or false end
  return loaded[id]
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

local function ready_of(run)
  return run.ready ~= '' and run.ready or run.due
end

-- Enter a state (`since` a moment, now if not given), if the table allows it. Moves the state index,
-- extends the history, tells the feed.
local function enter(run, state, message, label, since)
  if run.state ~= '' and not allows(run.state, state) then return false end
  if run.state ~= '' and run.state ~= state then zrem(index_key('state', run.state), run.id) end
  local waits = state == 'Scheduled' or state == 'Late' or state == 'AwaitingRetry' or state == 'AwaitingConcurrencySlot'
  since = since or now
  zadd(index_key('state', state), waits and ready_of(run) or since, run.id)
  set(run, 'state', state)
  set(run, 'label', label ~= state and label or '')
  set(run, 'message', message or '')
  set(run, 'at', since)
  set(run, 'history', extended(run.history, {present(label) and label or state, since, run.attempt, message or ''}))
  emit('run.' .. state, 'r', run.id, 'f', run.flow, 'a', as_text(run.attempt))
  return true
end

-- Note that there is a key of that kind, log or tasks, beside the run.
local function has_beside(run, kind)
  if not string.find(run.beside, kind, 1, true) then set(run, 'beside', run.beside == '' and kind or run.beside .. ' ' .. kind) end
end

-- The keys that live as long as the run: without a TTL until it ends, with one from then on.
local function kept_keys(run)
  local keys = {run.key}
  for kind in string.gmatch(run.beside, '%l+') do keys[#keys + 1] = prefix .. kind .. ':' .. run.id end
  if present(run.idem) then keys[#keys + 1] = prefix .. 'idempotency:' .. run.idem end
  return keys
end

-- A run that no key stands for yet, from the array of its first fields; it is in no place and has no state.
local function new_run(id, fields, tags, due, params)
  local run = run_of(id, fields)
  run.new = true
  run.history = ''
  loaded[id] = run
  set(run, 'tags', table.concat(tags, '\n'))
  set(run, 'due', due)
  set(run, 'created', now)
  if params ~= '' then set(run, 'params', params) end
  for _, key in ipairs(index_keys(run)) do zadd(key, due, id) end
  return run
end

local function leave_indexes(run)
  for _, key in ipairs(index_keys(run)) do zrem(key, run.id) end
  zrem(index_key('state', run.state), run.id)
  if present(run.expires) then zrem(prefix .. 'expires', run.id) end
end

-- Remove every trace of a run that is in no place any more, or has ended.
local function forget(run)
  leave_indexes(run)
  for _, key in ipairs(kept_keys(run)) do write('DEL', key) end
  run.deleted = true
  loaded[run.id] = false
  emit('run.deleted', 'r', run.id, 'f', run.flow)
end
