-- A worker or a scheduler is gone, for good. A consumer that still holds messages stays until they are redelivered.
--
-- FLAGS allow-oom
-- USES core
-- ARGV kind    str     workers or schedulers
--      name    str     who
--      streams packed  the streams it read, below the prefix
--      own     packed  {host, pid, started} of the worker that leaves; {} = whoever has the name. Another's registration stays
-- RETURN how many consumers were removed

if #own > 0 then
  local known = redis.call('HMGET', prefix .. 'worker:' .. name, 'host', 'pid', 'started')
  if known[1] and (known[1] ~= own[1] or known[2] ~= own[2] or known[3] ~= own[3]) then return 0 end
end

local removed = 0
for _, stream in ipairs(streams) do
  local key = prefix .. stream
  local pending = redis.pcall('XPENDING', key, GROUP, '-', '+', 1, name)
  if not pending.err and #pending == 0 then
    write('XGROUP', 'DELCONSUMER', key, GROUP, name)
    removed = removed + 1
  end
end
zrem(prefix .. kind, name)
if kind == 'workers' then
  write('DEL', prefix .. 'worker:' .. name, prefix .. 'control:' .. name)
else
  write('DEL', prefix .. 'scheduler:' .. name)
end
return removed
