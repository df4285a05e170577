-- A worker takes its name and says that it lives; unless another that lives has the name.
--
-- USES core
-- ARGV name     str     who
--      own      packed  {host, pid, started}, what it is known by, as text
--      gone     packed  the same of one that has the name and is known to be dead, or {}
--      fields   packed  what it says of itself, a flat list
--      alive_ms int     silent so long means gone
-- RETURN {'ok', ''} | {'taken', host, pid, started}

local key = prefix .. 'worker:' .. name
local known = redis.call('HMGET', key, 'host', 'pid', 'started')
local spoke = tonumber(redis.call('ZSCORE', prefix .. 'workers', name) or 0)

local function is_known_as(who)
  return known[1] == who[1] and known[2] == who[2] and known[3] == who[3]
end

if known[1] and spoke >= now - alive_ms and not is_known_as(own) and not is_known_as(gone) then
  return {'taken', known[1], known[2], known[3]}
end
write('HSET', key, 'heartbeat', now, unpack(fields))
write('PEXPIRE', key, 3600000)
zadd(prefix .. 'workers', now, name)
return {'ok', ''}
