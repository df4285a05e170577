-- Remove a work pool, or one work queue of it, unless runs are queued, parked or executing there.
--
-- Runs that are due later, or wait for a limit of a tag or a deployment, stay: they need a pool and a queue of that name again.
--
-- FLAGS allow-oom
-- USES core gates runs places
-- ARGV pool   str  the pool
--      queue  str  the work queue; '' = the whole pool
-- RETURN {'ok', 0} | {'refused', how many runs are there} | {'missing', 0}

local queues_key = prefix .. 'queues:' .. pool
local found = redis.call('EXISTS', prefix .. 'pool:' .. pool) == 1
if queue ~= '' then found = redis.call('HEXISTS', queues_key, queue) == 1 end
if not found then return {'missing', 0} end

local names = queue ~= '' and {queue} or redis.call('HKEYS', queues_key)
local gates_here, streams = {}, {}
if queue == '' then
  gates_here[1] = 'pool:' .. pool
  streams[1] = 'resumed:' .. pool
end
for _, name in ipairs(names) do
  gates_here[#gates_here + 1] = 'queue:' .. pool .. ':' .. name
  for _, priority in pairs(PRIORITY_NAMES) do streams[#streams + 1] = 'queue:' .. pool .. ':' .. name .. ':' .. priority end
end

local waiting = 0
for _, stream in ipairs(streams) do waiting = waiting + redis.call('XLEN', prefix .. stream) end
for _, gate in ipairs(gates_here) do waiting = waiting + redis.call('ZCARD', prefix .. 'parked:' .. gate) end
for _, id in ipairs(redis.call('ZRANGE', prefix .. 'leases', 0, -1)) do
  local run = load_run(id)
  if run and run.pool == pool and (queue == '' or run.queue == queue) then waiting = waiting + 1 end
end
if waiting > 0 then return {'refused', waiting} end

for _, stream in ipairs(streams) do write('DEL', prefix .. stream) end
for _, gate in ipairs(gates_here) do
  write('HDEL', prefix .. 'limits', gate)
  zrem(prefix .. 'wake_due', gate)
end
if queue == '' then
  write('DEL', prefix .. 'pool:' .. pool, queues_key)
  zrem(prefix .. 'pools', pool)
else
  write('HDEL', queues_key, queue)
end
emit(queue == '' and 'work-pool.deleted' or 'work-queue.deleted', 'p', pool, 'q', queue)
return {'ok', 0}
