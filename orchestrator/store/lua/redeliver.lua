-- Give messages that a dead reader was handed to somebody else: a new message each, the old one deleted.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake
-- ARGV streams packed  stream names below the prefix
--      idle_ms int     handed out so long ago
--      worker  str     only what this consumer was handed; '' = anybody's
--      limit   int     at most so many a stream
-- RETURN how many

local moved = 0
for _, stream in ipairs(streams) do
  local key = prefix .. stream
  local call = {'XPENDING', key, GROUP, 'IDLE', idle_ms, '-', '+', limit}
  if worker ~= '' then call[#call + 1] = worker end
  local pending = redis.pcall(unpack(call))
  for _, entry in ipairs(pending.err and {} or pending) do
    local message = entry[1]
    local found = redis.call('XRANGE', key, message, message)
    local run = found[1] and open_message(stream, message, found[1][2])
    if run then
      leave(run)
      to_stream(run, stream)
      moved = moved + 1
    elseif not found[1] then
      xdrop(stream, message)
    end
  end
end
wake_freed()
return moved
