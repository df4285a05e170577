-- Delete dead letters, and what is left of the runs that they are about.
--
-- FLAGS allow-oom
-- USES core gates runs places
-- ARGV ids packed  ids of letters, at most 100
-- RETURN how many were deleted

local dropped = 0
for _, id in ipairs(ids) do
  local found = redis.call('XRANGE', prefix .. 'malformed', id, id)[1]
  if found then
    local letter = {}
    for i = 1, #found[2], 2 do letter[found[2][i]] = found[2][i + 1] end
    local run = letter.r or ''
    if not load_run(run) and unreadable[run] then
      unreadable[run].is_new = false
      for _, kind in ipairs({'run:', 'log:', 'tasks:'}) do write('DEL', prefix .. kind .. run) end
    end
    write('XDEL', prefix .. 'malformed', id)
    dropped = dropped + 1
  end
end
return dropped
