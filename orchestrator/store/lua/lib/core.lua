-- The frame of every script: read first, decide, write last.
--
-- A script never writes while it still reads: `write` and `later` only collect, and the loader calls `commit` after the
-- body has returned. A slot that migrates half-way, or an error in the middle, so leaves nothing half done. The one
-- exception is XREADGROUP in claim.lua, whose loss `redeliver` mends.

local writes = {}
local set  -- set(run, field, value): runs.lua
local free_calls  -- free_calls(run): calls.lua

local function write(...)
  writes[#writes + 1] = {...}
end

local function later(act)
  writes[#writes + 1] = act
end

local function commit()
  for _, entry in ipairs(writes) do
    if type(entry) == 'function' then entry() else redis.call(unpack(entry)) end
  end
end

-- Redis hands out false for what is not there.
local function present(value)
  return value and value ~= ''
end

local function split(text)
  local parts = {}
  if present(text) then
    for part in string.gmatch(text, '[^\n]+') do parts[#parts + 1] = part end
  end
  return parts
end

-- An event in the namespace's feed. Watchers follow it; it is trimmed, and nobody's correctness depends on it.
local function emit(name, ...)
  write('XADD', prefix .. 'events', 'MAXLEN', '~', EVENTS_KEPT, '*', 'e', name, ...)
end

-- Wake the schedulers that sleep until the next due run: an earlier one has come.
local function signal()
  write('XADD', prefix .. 'signals', 'MAXLEN', '~', 16, '*', 's', 'due')
end
