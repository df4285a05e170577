-- Remove from streams the consumers of workers that are silent or unknown. A worker that comes back has its consumer again with
-- its next read; one that still holds messages stays until they are redelivered.
--
-- FLAGS allow-oom
-- USES core
-- ARGV streams  packed  stream names below the prefix
--      alive_ms int     silent so long means gone
--      limit    int     at most so many a stream
-- RETURN how many

local drop = {}
for _, stream in ipairs(streams) do
  local key = prefix .. stream
  local found = redis.pcall('XINFO', 'CONSUMERS', key, GROUP)
  local count = 0
  for _, consumer in ipairs(found.err and {} or found) do
    local name, pending = consumer[2], consumer[4]
    local spoke = tonumber(redis.call('ZSCORE', prefix .. 'workers', name) or 0)
    if count < limit and pending == 0 and spoke < now - alive_ms then
      drop[#drop + 1] = {key, name}
      count = count + 1
    end
  end
end
for _, each in ipairs(drop) do write('XGROUP', 'DELCONSUMER', each[1], GROUP, each[2]) end
return #drop
