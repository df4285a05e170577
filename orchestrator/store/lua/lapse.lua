-- Runs whose process is gone: charge a crash, and start them again while their budget lasts. The first time that is at once;
-- then they wait in `due`, 1 s, 2 s, 4 s and at most 60 s: what has just killed two processes may well kill a third.
-- Those that are lost a second time start 2 s apart, all of them: one may be what kills its workers, and it should not take
-- others along until their budgets are gone too. The key `apart` says when the last of these starts.
--
-- With a run, that one, whose child has died, under the fence. With `run` '', those whose lease is over, but none while leases
-- may have run out through no fault of their workers, who get a lease's time to renew them:
--   * the server itself has been up for less than `grace_ms`, or a fail-over has put another in its place that nobody has noticed
--     yet: nobody could renew while it was away;
--   * the key `brake` stands: Redis's clock has jumped. A caller sees that, who knows from an earlier answer and from a clock
--     that never jumps what it should show. Leases that a step back has made too long are cut to a lease from now.
--
-- FLAGS allow-oom
-- USES core gates runs places calls wake
-- ARGV run         str  a run's id, or ''
--      attempt     int  its attempt
--      worker      str  who executed it, or ''
--      reason      str  what happened, for the state's message
--      limit       int  at most so many
--      grace_ms    int  how long after the server's start no lease counts as over; 0 = it always does
--      lease_ms    int  length of a lease
--      expected_ms str  what this clock should show according to the caller, or '' where it does not know
-- RETURN {requeued, crashed, cancelled, looked at, braked, by how much the clock jumped in ms, now in ms}
--        requeued  started again, now or in a moment
--        braked    1 = no lease counts as over for now

local LONGEST_LEASE_MS = 3600000
local LONGEST_WAIT_MS = 60000
local SMALLEST_JUMP_MS = 1000  -- a call may be on its way for so long without anybody's clock being wrong
local APART_MS = 2000
local requeued, crashed, cancelled = 0, 0, 0
local apart

local function wait_ms(crashes)
  return crashes < 2 and 0 or math.min(LONGEST_WAIT_MS, 1000 * 2 ^ (crashes - 2))
end

local function lost_starts(found)
  return found.crashes .. ' of ' .. found.budget .. ' starts'
end

local function start_again(found)
  local wait = wait_ms(found.crashes)
  local lost = lost_starts(found) .. ' lost: ' .. reason .. '.'
  if wait == 0 then return requeue(found, 'Started again, ' .. lost) end
  apart = apart or tonumber(redis.call('GET', prefix .. 'apart') or 0)
  wait = math.min(LONGEST_WAIT_MS, math.max(wait, apart + APART_MS - now))
  apart = now + wait
  write('SET', prefix .. 'apart', as_text(apart), 'PX', as_text(LONGEST_WAIT_MS + APART_MS))
  set(found, 'ready', now + wait)
  enter(found, 'Scheduled', 'Starts again in ' .. wait / 1000 .. ' s, ' .. lost)
  to_due(found, ready_of(found))
end

local function lapse(found)
  set(found, 'crashes', found.crashes + 1)
  leave_and_free(found)
  if found.state == 'Cancelling' then
    record_outcome(found, 'Cancelled')
    enter(found, 'Cancelled', 'Its process ended while it was being cancelled: ' .. reason .. '.')
    to_ended(found)
    cancelled = cancelled + 1
  elseif found.crashes < found.budget and present(found.pool) then
    record_outcome(found, 'Scheduled')
    start_again(found)
    requeued = requeued + 1
  else
    record_outcome(found, 'Crashed')
    enter(found, 'Crashed', 'Its process was lost (' .. lost_starts(found) .. '): ' .. reason .. '.')
    to_ended(found)
    crashed = crashed + 1
  end
end

-- Or another than the namespace was last seen on: nobody has noticed the fail-over yet, which then sets the brake.
local function server_is_young()
  if grace_ms == 0 then return false end
  local info = redis.call('INFO', 'server')
  local known, server = redis.call('HGET', prefix .. 'epoch', 'server'), string.match(info, 'run_id:(%w+)')
  if present(known) and server and known ~= server then return true end
  local uptime = string.match(info, 'uptime_in_seconds:(%d+)')
  return uptime ~= nil and tonumber(uptime) * 1000 < grace_ms
end

-- By how much the clock has left the caller's; 0 = it is where it should be.
local function jump()
  local off = now - (tonumber(expected_ms) or now)
  return math.abs(off) > math.max(lease_ms / 3, SMALLEST_JUMP_MS) and off or 0
end

-- A brake that ends later than one set now comes from before another jump.
local function brake_stands()
  local over = tonumber(redis.call('GET', prefix .. 'brake') or 0)
  return over > now and over <= now + lease_ms
end

local function sweep()
  local jumped = jump()
  local stood = brake_stands()
  local longest = (stood or jumped ~= 0) and lease_ms or LONGEST_LEASE_MS
  local too_long = redis.call('ZRANGE', prefix .. 'leases', '(' .. now + longest, '+inf', 'BYSCORE', 'LIMIT', 0, limit)
  local over = {}
  if not stood and jumped == 0 then
    over = redis.call('ZRANGE', prefix .. 'leases', '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
  end
  for _, id in ipairs(over) do
    local found = load_run(id)
    if found and found.place == 'leased' then
      lapse(found)
    else
      zrem(prefix .. 'leases', id)
    end
  end
  for _, id in ipairs(too_long) do write('ZADD', prefix .. 'leases', 'XX', now + lease_ms, id) end
  if jumped ~= 0 then
    write('SET', prefix .. 'brake', now + lease_ms, 'PX', lease_ms)
    if not stood then emit('rescue.braked', 'jump_ms', jumped) end
  end
  wake_freed()
  return {requeued, crashed, cancelled, #over + #too_long, (stood or jumped ~= 0) and 1 or 0, jumped, now}
end

if run == '' then
  return server_is_young() and {0, 0, 0, 0, 1, 0, now} or sweep()
end
local found = load_run(run)
if found and is_leased(found, attempt, worker) then lapse(found) end
wake_freed()
return {requeued, crashed, cancelled, 1, 0, 0, now}
