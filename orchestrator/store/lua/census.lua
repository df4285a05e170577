-- Count the runs that have not ended, by state, work pool and queue, and find the oldest of each. Writes nothing.
--
-- FLAGS no-writes
-- USES core
-- ARGV states   packed the states to look at
--      apart    int    so many of each state, the oldest first, are told apart by pool and queue
--      pool_at  int    where in a run's array its pool stands: building whole runs would take three times as long
--      queue_at int    and its queue
-- RETURN {{now in ms}, per state: {how many, pool, queue, how many of these, since when in ms, the next pool, ...}}
--        since when  when the oldest was or is due where it waits to start, else when it entered the state

local answer = {{now}}

-- Pool and queue of a run; '' where it cannot be read, and who meets it at work says so.
local function place_of(id)
  local stored = redis.pcall('HGET', prefix .. 'run:' .. id, 'run')
  local fine, array = pcall(cmsgpack.unpack, stored)
  if not fine or type(array) ~= 'table' then return '', '' end
  local pool, queue = array[pool_at], array[queue_at]
  if type(pool) ~= 'string' or type(queue) ~= 'string' then return '', '' end
  return pool, queue
end

local function look(state)
  local index = prefix .. 'index:state:' .. state
  local places, order = {}, {}
  local oldest = redis.call('ZRANGE', index, 0, apart - 1, 'WITHSCORES')
  for i = 1, #oldest, 2 do
    local pool, queue = place_of(oldest[i])
    local name = pool .. '\n' .. queue
    if not places[name] then
      places[name] = {pool, queue, 0, tonumber(oldest[i + 1])}
      order[#order + 1] = name
    end
    places[name][3] = places[name][3] + 1
  end
  local seen = {redis.call('ZCARD', index)}
  for _, name in ipairs(order) do
    for _, value in ipairs(places[name]) do seen[#seen + 1] = value end
  end
  return seen
end

for i, state in ipairs(states) do answer[i + 1] = look(state) end
return answer
