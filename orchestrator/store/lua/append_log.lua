-- Append lines to the logs of runs that exist. A log lives as long as its run.
--
-- USES core gates runs places
-- ARGV items packed  a list of {run id, {line, ...}}, each line msgpack
--      kept  int     lines kept a run, about
-- RETURN how many lines were written

local written = 0
for _, item in ipairs(items) do
  local id, lines = item[1], item[2]
  local key = prefix .. 'log:' .. id
  local run = load_run(id)  -- one that cannot be read must not keep the others' lines back
  if run then
    has_beside(run, 'log')
    for _, line in ipairs(lines) do write('XADD', key, 'MAXLEN', '~', kept, '*', 'l', line) end
    if run.place == 'ended' then expire(key, net_ttl()) end
    written = written + #lines
  end
end
return written
