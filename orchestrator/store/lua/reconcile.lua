-- Mend what a lost write or a restored backup broke, for some runs. The run's hash is the truth.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake
-- ARGV runs packed  run ids
-- RETURN a list of {what was mended, run}

local PLACE_KEYS = {due = 'due', leased = 'leases', paused = 'paused'}
local PAUSE_MS = 3600000
local mended = {}

local function mend(run, what)
  mended[#mended + 1] = {what, run.id}
end

-- See that a run stands in a sorted set of that name if it should, and not if it should not.
local function mend_member(run, key, should, score)
  local stands = redis.call('ZSCORE', prefix .. key, run.id)
  if stands and not should then
    zrem(prefix .. key, run.id)
    mend(run, 'stood in ' .. key .. ' too')
  elseif should and not stands then
    zadd(prefix .. key, score, run.id)
    mend(run, 'was missing in ' .. key)
  end
end

-- A run that stands in a long queue as part of its deployment's share has a slot of that.
local function mend_share(run)
  if not present(run.share) then return end
  if run.place ~= 'queued' then
    set(run, 'share', '')
    mend(run, 'had a share of a queue that it does not stand in')
  elseif not redis.call('ZSCORE', share_of(run).slots, slot(run, run.attempt + 1)) then
    take_share(run, share_of(run))
    mend(run, 'had lost its share of its queue')
  end
end

local function mend_place(run)
  local scores = {due = ready_of(run), leased = now, paused = now + PAUSE_MS}
  for place, key in pairs(PLACE_KEYS) do mend_member(run, key, run.place == place, scores[place]) end
  mend_member(run, 'expires', present(run.expires) and run.attempt == 0 and run.place ~= 'ended', run.expires)
  if run.place == 'parked' then mend_member(run, 'parked:' .. run.gate, true, parking_score(run)) end
  if present(run.sched) and run.place ~= 'due' then mend_member(run, 'planned:' .. run.dep .. ':' .. run.sched, false) end
  if run.place == 'queued' then
    local id, stream = string.match(run.msg, '^(%S+) (.*)$')
    local entry = id and redis.call('XRANGE', prefix .. stream, id, id)
    if not entry or not entry[1] or entry[1][2][2] ~= run.id then
      -- First, or the run would be in its own way where its share is full.
      if present(run.share) then free_share(run) end
      to_queue(run)
      mend(run, 'had no message')
    end
  end
end

local function mend_indexes(run)
  for _, key in ipairs(index_keys(run)) do mend_member(run, string.sub(key, #prefix + 1), true, run.due) end
  for state in pairs(TRANSITIONS) do mend_member(run, 'index:state:' .. state, run.state == state, run.at) end
end

-- The calls of code that runs hold their slots, or stand among the waiters.
local function mend_calls(run)
  for _, call in ipairs(calls_of(run)) do
    local gate = call[CALL.waits]
    if gate ~= '' then
      if not redis.call('ZSCORE', prefix .. 'parked:' .. gate, waiter_name(run, call)) then
        zadd(prefix .. 'parked:' .. gate, run.prio * 1e13 + call[CALL.since], waiter_name(run, call))
        zadd(prefix .. 'wake_due', now, gate)
        mend(run, 'its code had lost its place at ' .. gate)
      end
    else
      for _, name in ipairs(call[CALL.gates]) do
        local slots, lost = prefix .. 'slots:' .. name, false
        for _, member in ipairs(slot_names(run, call)) do
          if not redis.call('ZSCORE', slots, member) then
            zadd(slots, now, member)
            lost = true
          end
        end
        if lost then mend(run, 'its code had lost its slots of ' .. name) end
      end
    end
  end
end

local function mend_slots(run)
  local reserved = present(run.reserved)
  mend_member(run, 'reservations', reserved, run.reserved)
  if not present(run.gates) and not present(run.calls) then return end
  if run.place ~= 'leased' and not reserved then
    free_slots(run)
    return mend(run, 'held slots without a lease')
  end
  mend_calls(run)
  local member = slot(run, reserved and run.attempt + 1 or run.attempt)
  for _, name in ipairs(split(run.gates)) do
    if not redis.call('ZSCORE', prefix .. 'slots:' .. name, member) then
      zadd(prefix .. 'slots:' .. name, now, member)
      mend(run, 'had lost its slot of ' .. name)
    end
  end
end

local function mend_idempotency(run)
  if not present(run.idem) then return end
  local holder = redis.call('GET', prefix .. 'idempotency:' .. run.idem)
  if holder == run.id then return end
  local other = holder and load_run(holder)
  if other and other.idem == run.idem then
    set(run, 'idem', '')
  else
    write('SET', prefix .. 'idempotency:' .. run.idem, run.id)
    if run.place == 'ended' then let_expire(run) end
  end
  mend(run, 'had lost its idempotency key')
end

local function mend_ttl(run)
  for _, key in ipairs(kept_keys(run)) do
    local ttl = redis.call('PTTL', key)
    if run.place == 'ended' and ttl == -1 then
      let_expire(run)
      return mend(run, 'had no TTL')
    elseif run.place ~= 'ended' and ttl >= 0 then
      expire(key, false)
      mend(run, 'had a TTL')
    end
  end
end

for _, id in ipairs(runs) do
  local run = load_run(id)
  if run then
    mend_share(run)
    mend_place(run)
    mend_indexes(run)
    mend_slots(run)
    mend_idempotency(run)
    mend_ttl(run)
  elseif unreadable[id] and unreadable[id].is_new then
    mended[#mended + 1] = {'could not be read: ' .. unreadable[id].why, id}
  end
end
wake_freed()
return mended
