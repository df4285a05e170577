-- A worker or a scheduler says that it lives.
--
-- USES core
-- ARGV kind     str     workers or schedulers
--      name     str     who
--      fields   packed  what it says of itself, a flat list; stored for workers
--      alive_ms int     silent so long means gone
-- RETURN {living schedulers, living workers, now in ms}

if kind == 'workers' then
  local key = prefix .. 'worker:' .. name
  write('HSET', key, 'heartbeat', now, unpack(fields))
  write('PEXPIRE', key, 3600000)
  write('PEXPIRE', prefix .. 'control:' .. name, 3600000)
end
write('ZADD', prefix .. kind, now, name)
local schedulers = redis.call('ZCOUNT', prefix .. 'schedulers', now - alive_ms, '+inf')
local workers = redis.call('ZCOUNT', prefix .. 'workers', now - alive_ms, '+inf')
return {schedulers, workers, now}
