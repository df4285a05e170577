-- Which of these runs are not there; each is reported as lost.
--
-- FLAGS allow-oom
-- USES core reports
-- ARGV runs   packed  run ids
--      worker str     who was given or held them, for the event
-- RETURN the ids of those that are missing

local lost = {}
for _, id in ipairs(runs) do
  if redis.call('EXISTS', prefix .. 'run:' .. id) == 0 then
    lost[#lost + 1] = id
    report('lost', id, 'by', worker)
  end
end
return lost
