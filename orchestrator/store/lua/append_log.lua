-- Append lines to the logs of runs that exist. A log lives as long as its run.
--
-- USES core gates runs places
-- ARGV items packed  a list of {run id, {line, ...}}, each line msgpack
--      kept  int     lines kept a run, about
-- RETURN how many lines were written

-- A run that cannot be read must not keep the others' lines back.
local function place_of(id)
  local run = load_run(id)
  if not run then return end
  has_beside(run, 'log')
  return run.place
end

local written = 0
for _, item in ipairs(items) do
  local id, lines = item[1], item[2]
  local key = prefix .. 'log:' .. id
  local place = place_of(id)
  if place then
    for _, line in ipairs(lines) do write('XADD', key, 'MAXLEN', '~', kept, '*', 'l', line) end
    if place == 'ended' then expire(key, net_ttl()) end
    written = written + #lines
  end
end
return written
