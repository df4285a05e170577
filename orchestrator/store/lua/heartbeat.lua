-- A worker or a scheduler says that it lives.
--
-- FLAGS allow-oom
-- USES core
-- ARGV kind     str     workers or schedulers
--      name     str     who
--      fields   packed  what it says of itself, a flat list
--      alive_ms int     silent so long means gone
-- RETURN {living schedulers, living workers, now in ms, the namespace's epoch or 0}

local key = prefix .. (kind == 'workers' and 'worker:' or 'scheduler:') .. name
write('HSET', key, 'heartbeat', now, unpack(fields))
write('PEXPIRE', key, 3600000)
if kind == 'workers' then write('PEXPIRE', prefix .. 'control:' .. name, 3600000) end
zadd(prefix .. kind, now, name)

-- Whoever speaks lives, also with its first words.
local function living(of)
  local spoke = tonumber(redis.call('ZSCORE', prefix .. of, name) or 0)
  local is_new = of == kind and spoke < now - alive_ms
  return redis.call('ZCOUNT', prefix .. of, now - alive_ms, '+inf') + (is_new and 1 or 0)
end

return {living('schedulers'), living('workers'), now, tonumber(redis.call('HGET', prefix .. 'epoch', 'number') or 0)}
