-- Create a work pool, or add a work queue to one, with the streams that its runs will stand in.
--
-- USES core
-- ARGV pool    str     the pool
--      fields  packed  the pool's fields, a flat list; empty = the pool must exist
--      queue   str     the work queue
--      packed_queue str  the queue's fields, msgpack
--      streams packed  stream names below the prefix
-- RETURN created | existing | missing

local key, queues = prefix .. 'pool:' .. pool, prefix .. 'queues:' .. pool
local exists = redis.call('EXISTS', key) == 1
if #fields > 0 and exists then return 'existing' end
if #fields == 0 and not exists then return 'missing' end
if redis.call('HEXISTS', queues, queue) == 1 then return 'existing' end
if #fields > 0 then
  write('HSET', key, 'created', now, unpack(fields))
  zadd(prefix .. 'pools', now, pool)
end
write('HSET', queues, queue, packed_queue)
for _, stream in ipairs(streams) do
  later(function() redis.pcall('XGROUP', 'CREATE', prefix .. stream, GROUP, '0', 'MKSTREAM') end)
end
emit(#fields > 0 and 'work-pool.created' or 'work-queue.created', 'p', pool, 'q', queue)
return 'created'
