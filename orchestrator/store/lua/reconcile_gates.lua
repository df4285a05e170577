-- Mend what gates are set to. Of a setting that cannot be read nobody knows what it was: its gate goes on letting nobody through, as one
-- with a limit of 0, and a dead letter keeps what stood there.
--
-- FLAGS allow-oom
-- USES core gates runs
-- ARGV fields packed  a list of {limits, rates or global_limits; a field of that hash}
-- RETURN a list of {what was mended, a gate or, of global_limits, a name}

local mended = {}

local function mend(what, subject)
  mended[#mended + 1] = {what, subject}
end

-- What a global limit is called where its setting does not say so.
local function name_of(id)
  local names = redis.call('HGETALL', prefix .. 'global_limits')
  for i = 1, #names, 2 do
    if names[i + 1] == id then return names[i] end
  end
  return id
end

local function mend_setting(field)
  local text = redis.call('HGET', prefix .. 'limits', field)
  if not text then return end
  local gate = find_gate(field)
  local id = string.match(field, '^global:(.*)$')
  if gate.defect then
    gate.called = id and name_of(id)
    dead_letter('limits', field, '', gate.defect, text)
    write('HSET', prefix .. 'limits', field, cjson.encode({limit = 0, held = gate.used, name = gate.called}))
    mend('what it was set to could not be read (' .. gate.defect .. '): it lets nobody through until it is set anew', field)
  end
  if id and redis.call('HEXISTS', prefix .. 'global_limits', gate.called) == 0 then
    write('HSET', prefix .. 'global_limits', gate.called, id)
    if not gate.defect then mend('its name was not known', field) end
  end
end

local function mend_rate(field)
  local gate = find_gate(field)
  if not gate.decay then
    write('HDEL', prefix .. 'rates', field)
    mend('the rate of no rate limit', field)
  elseif gate.forgot_rate then
    mend('its rate could not be read: all of its slots count as taken just now', field)
  end
end

local function mend_name(called)
  local id = redis.call('HGET', prefix .. 'global_limits', called)
  local gate = global_gate(called)
  if not gate then
    write('HDEL', prefix .. 'global_limits', called)
    mend('the name of no global limit', called)
  elseif gate.name ~= 'global:' .. id then
    mend('the name of a global limit led elsewhere', called)
  end
end

local MENDS = {limits = mend_setting, rates = mend_rate, global_limits = mend_name}
for _, item in ipairs(fields) do MENDS[item[1]](item[2]) end
return mended
