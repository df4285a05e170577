-- Hand queued runs to one worker, with a lease and all their slots; park those that a gate holds back.
--
-- First what the worker was already handed by its blocked read, then what stands in the streams, in the order given, until
-- its free slots are full. Deliveries beyond the free slots go to `resumed`. Looks at 100 messages at the most.
--
-- USES core gates runs places calls wake collide
-- ARGV worker    str     who claims
--      free      int     how many runs it can take
--      lease_ms  int     length of the lease
--      start     int     1 = the body starts at once, enter Running; 0 = enter Pending
--      streams   packed  stream names below the prefix, in the order of reading
--      delivered packed  a list of {stream, message id, run id; '' = whoever was handed it cannot read it}
-- RETURN {claimed, parked, gone, more}
--        claimed  list of {id, its fields as they are stored now, params, its deployment's revision and name, '' for none}
--        parked   list of {run id, gate}
--        gone     how many messages stood for nothing any more
--        more     1 = the bound was reached, call again

local claimed, parked, gone, seen = {}, {}, 0, 0
read_too = 'params'
local revisions = {}

local function revision_of(run)
  if not present(run.dep) then return {'', ''} end
  if not revisions[run.dep] then
    revisions[run.dep] = redis.call('HMGET', prefix .. 'deployment:' .. run.dep, 'revision', 'name')
  end
  return revisions[run.dep]
end

local function lease(run)
  local deployment = revision_of(run)
  take_slots(run, run.attempt + 1)
  if present(run.reserved) then
    set(run, 'reserved', '')
    zrem(prefix .. 'reservations', run.id)
  end
  to_leased(run, worker, lease_ms)
  if start == 1 then
    set(run, 'starts', run.starts + 1)
    if run.started == '' then set(run, 'started', now) end
  end
  enter(run, start == 1 and 'Running' or 'Pending', 'Claimed by ' .. worker .. '.')
  claimed[#claimed + 1] = {run.id, packed(run), run.params, deployment[1] or '', deployment[2] or ''}
end

local function take(stream, message, fields)
  seen = seen + 1
  local run = open_message(stream, message, fields)
  if not run then
    gone = gone + 1
    return
  end
  if #claimed >= free then
    leave(run)
    return to_resumed(run)
  end
  -- Only its first start can come too late: one that has begun is gone on with.
  if run.attempt == 0 and present(run.expires) and tonumber(run.expires) <= now then
    leave_and_free(run)
    enter(run, 'Cancelled', 'It expired before a worker was free.')
    return to_ended(run)
  end
  local gate = refusal(run)
  if gate and gate.strategy == 'CANCEL_RUNNING' then
    make_way(run)
    gate = refusal(run)
  end
  if not gate then
    leave(run)
    return lease(run)
  end
  leave_and_free(run)
  if gate.strategy == 'CANCEL_NEW' and not gate.paused then
    enter(run, 'Cancelled', 'No free slot of ' .. title(gate) .. ', whose strategy is CANCEL_NEW.')
    return to_ended(run)
  end
  park(run, gate, parking_score(run))
  parked[#parked + 1] = {run.id, gate.name}
end

local function read(stream, count)
  local key = prefix .. stream
  local reply = redis.pcall('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', count, 'STREAMS', key, '>')
  if reply and reply.err then
    -- The group is gone with lost data: start again from the first entry.
    redis.call('XGROUP', 'CREATE', key, GROUP, '0', 'MKSTREAM')
    reply = redis.call('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', count, 'STREAMS', key, '>')
  end
  return reply and reply[1] and reply[1][2] or {}
end

local function fields_of(stream, message)
  local found = redis.call('XRANGE', prefix .. stream, message, message)
  return found[1] and found[1][2] or {}
end

for _, delivery in ipairs(delivered) do
  local stream, message, id = delivery[1], delivery[2], delivery[3]
  take(stream, message, id ~= '' and {'r', id} or fields_of(stream, message))
end
for _, stream in ipairs(streams) do
  while #claimed < free and seen < 100 do
    local entries = read(stream, math.min(free - #claimed, 100 - seen))
    handed_out[stream] = handed_out[stream] or {}
    for _, entry in ipairs(entries) do
      table.insert(handed_out[stream], entry[1])
      take(stream, entry[1], entry[2])
    end
    if #entries == 0 then break end
  end
end
wake_freed()
return {claimed, parked, gone, seen >= 100 and 1 or 0}
