-- Note that the namespace has been mended in its present epoch; for the first time: tell the feed of the fail-over.
--
-- FLAGS allow-oom
-- USES core
-- ARGV number int  the epoch
--      count  int  how much was mended
-- RETURN first | again | stale (the epoch has moved on)

local key = prefix .. 'epoch'
local stored = redis.call('HMGET', key, 'number', 'mended_in', 'before', 'server', 'how')
if tonumber(stored[1]) ~= number then return 'stale' end
write('HSET', key, 'mended_in', number, 'mended_at', now)
write('HDEL', key, 'mend_until')
write('HINCRBY', key, 'mended', count)
if tonumber(stored[2]) == number then return 'again' end
emit('namespace.failover', 'epoch', number, 'before', stored[3], 'server', stored[4], 'how', stored[5], 'mended', count)
return 'first'
