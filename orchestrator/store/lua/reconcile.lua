-- Mend what a lost write or a restored backup broke, for some runs and gates. The run's hash is the truth.
--
-- USES core gates runs wake
-- ARGV runs  packed  run ids, from the hashes or from any index
--      names packed  names of gates
-- RETURN a list of {what was mended, run or gate}

local mended = {}

local function mend(what, id)
  mended[#mended + 1] = {what, id}
end

local PLACE_KEYS = {due = 'due', leased = 'leases', paused = 'paused'}

local function mend_place(run)
  for place, key in pairs(PLACE_KEYS) do
    local stands = redis.call('ZSCORE', prefix .. key, run.id)
    if stands and run.place ~= place then
      write('ZREM', prefix .. key, run.id)
      mend('stood in ' .. key .. ' too', run.id)
    elseif not stands and run.place == place then
      write('ZADD', prefix .. key, place == 'due' and run.ready or now, run.id)
      mend('was missing in ' .. key, run.id)
    end
  end
  if run.place == 'parked' and not redis.call('ZSCORE', prefix .. 'parked:' .. run.gate, run.id) then
    write('ZADD', prefix .. 'parked:' .. run.gate, parking_score(run), run.id)
    mend('was missing among the parked', run.id)
  elseif run.place == 'queued' then
    local id, stream = string.match(run.msg, '^(%S+) (.*)$')
    local entry = id and redis.call('XRANGE', prefix .. stream, id, id)
    if not entry or not entry[1] or entry[1][2][2] ~= run.id then
      to_queue(run)
      mend('had no message', run.id)
    end
  elseif run.place == 'ended' and redis.call('PTTL', run.key) < 0 then
    to_ended(run)
    mend('had no TTL', run.id)
  end
end

local function mend_indexes(run)
  for _, key in ipairs(index_keys(run)) do
    if not redis.call('ZSCORE', key, run.id) then
      write('ZADD', key, run.due, run.id)
      mend('was missing in an index', run.id)
    end
  end
  for state in pairs(TRANSITIONS) do
    local stands = redis.call('ZSCORE', index_key('state', state), run.id)
    if stands and run.state ~= state then
      write('ZREM', index_key('state', state), run.id)
      mend('stood in the index of another state', run.id)
    elseif not stands and run.state == state then
      write('ZADD', index_key('state', state), run.at, run.id)
      mend('was missing in the index of its state', run.id)
    end
  end
end

local function mend_slots(run)
  if run.place ~= 'leased' then return end
  for _, name in ipairs(split(run.gates)) do
    if not redis.call('ZSCORE', prefix .. 'slots:' .. name, slot(run, run.attempt)) then
      write('ZADD', prefix .. 'slots:' .. name, now, slot(run, run.attempt))
      mend('had lost its slot of ' .. name, run.id)
    end
  end
end

local function mend_gate(name)
  for _, member in ipairs(redis.call('ZRANGE', prefix .. 'slots:' .. name, 0, -1)) do
    local id, attempt = string.match(member, '^([^:]+):(%d+):')
    local run = load_run(id)
    local holds = run and ((run.place == 'leased' and run.attempt == tonumber(attempt))
      or (present(run.reserved) and run.attempt + 1 == tonumber(attempt)))
    if not holds then
      write('ZREM', prefix .. 'slots:' .. name, member)
      mend('held by nobody', name)
    end
  end
  for _, id in ipairs(redis.call('ZRANGE', prefix .. 'parked:' .. name, 0, -1)) do
    local run = load_run(id)
    if not run or run.place ~= 'parked' or run.gate ~= name then
      write('ZREM', prefix .. 'parked:' .. name, id)
      mend('a waiter that does not wait', name)
    end
  end
  write('ZADD', prefix .. 'wake_due', now, name)
end

for _, id in ipairs(runs) do
  local run = load_run(id)
  if run then
    mend_place(run)
    mend_indexes(run)
    mend_slots(run)
  else
    for _, key in ipairs({'due', 'leases', 'paused', 'expires', 'reservations', 'index:all'}) do
      if redis.call('ZSCORE', prefix .. key, id) then
        write('ZREM', prefix .. key, id)
        mend('a member of ' .. key .. ' that is no run', id)
      end
    end
  end
end
for _, name in ipairs(names) do mend_gate(name) end
return mended
