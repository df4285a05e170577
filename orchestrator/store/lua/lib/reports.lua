-- Reports of what a lost write did to runs: an event each, and the run's id in the hash `epoch`, REPORTED of each kind at most.
--
-- Kinds: lost (no record is left of it), twice (started by two workers), restored (its end, its claim or itself was recorded anew).

local REPORTED = 1000
local reported = {}

-- Report a run once a kind and epoch, however many tell of it, as long as its id is among those kept; `...` are further fields of
-- the event.
local function report(kind, id, ...)
  local known = reported[kind]
  if not known then
    local stored = redis.call('HMGET', prefix .. 'epoch', kind, kind .. '_count')
    known = {text = stored[1] or '', count = tonumber(stored[2] or 0)}
    known.listed = known.text == '' and 0 or (#known.text + 1) / (#id + 1)
    reported[kind] = known
    later(function()
      redis.call('HSET', prefix .. 'epoch', kind, known.text, kind .. '_count', known.count)
    end)
  end
  if string.find(known.text, id, 1, true) then return end
  known.count = known.count + 1
  if known.listed < REPORTED then
    known.listed = known.listed + 1
    known.text = known.text == '' and id or known.text .. '\n' .. id
  end
  emit('run.' .. kind, 'r', id, ...)
end
