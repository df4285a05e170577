-- Tell a worker to take no new runs, let those that it has end, and stop.
--
-- FLAGS allow-oom
-- USES core
-- ARGV worker   str  who
--      alive_ms int  silent so long means gone
-- RETURN {'ok', pool} | {'gone', moment of its last heartbeat in ms} | {'missing', ''}

local found = redis.call('HMGET', prefix .. 'worker:' .. worker, 'heartbeat', 'started', 'pool')
if not found[1] then return {'missing', ''} end
if tonumber(found[1]) < now - alive_ms then return {'gone', found[1]} end
-- Its start says which process is meant: the next one of that name reads this stream from the beginning.
write('XADD', prefix .. 'control:' .. worker, 'MAXLEN', '~', 1000, '*', 'c', 'drain', 'r', '', 's', found[2])
write('PEXPIRE', prefix .. 'control:' .. worker, 3600000)
return {'ok', found[3]}
