-- Which history of the server the namespace is on: its epoch. Looks, and moves it when the server is another than before.
--
-- hash epoch  born      what tells this namespace from one that was begun anew under its name; never changes
--             number    how many histories there were; only grows
--             server    run_id of the server process, '' where INFO hides it
--             history   its master_replid
--             since, before, how   when the epoch began (ms); the server before; started, promoted (a replica of it) or replaced
--             mended_in, mended_at, mend_until   the epoch and the moment (ms) of the last mending; how long who mends may take
--             mended, lost, twice, restored and their counts   what is known of the epoch's damage: lib/reports.lua
--
-- A new epoch sets the brake that holds `lapse` back for one lease: nobody could renew while there was no server.
--
-- FLAGS allow-oom
-- USES core
-- ARGV born     str  as the caller has seen it before, '' if it has not
--      number   int  the epoch that the caller has seen, 0 if none
--      begin    int  1 = a namespace without an epoch gets its first one; 0 = only look at such a one
--      mend     int  1 = the caller would mend the namespace, if it is time
--      chance   str  makes a new birth unique
--      schema   int  written with the first epoch
--      lease_ms int  length of a lease
--      every_ms int  how long after it was mended a namespace is mended again
-- RETURN {'ok', number, born, server, history, since, before, how, moved, mend}, all texts:
--          moved 1 = this call has moved it; mend: 'failover' or 'hourly' = the caller is to mend it now, and `mended` to follow; else ''
--        {'none'}  no epoch yet, and none was begun
--        {'gone'}  the namespace that the caller has seen is not there any more

local MEND_MS = 120000
local FIELDS = {'number', 'born', 'server', 'history', 'since', 'before', 'how', 'mended_in', 'mended_at', 'mend_until'}
local key = prefix .. 'epoch'
local stored = redis.call('HMGET', key, unpack(FIELDS))
local epoch = {}
for i, field in ipairs(FIELDS) do epoch[field] = stored[i] or '' end
local info = redis.call('INFO', 'server') .. redis.call('INFO', 'replication')
local server = string.match(info, 'run_id:(%w+)') or ''
local history = string.match(info, 'master_replid:(%w+)') or ''
local former = string.match(info, 'master_replid2:(%w+)') or ''
local moved = false

local function put(field, value)
  epoch[field] = tostring(value)
  write('HSET', key, field, value)
end

local function enter_epoch(number, how)
  put('before', epoch.server)
  put('number', number)
  put('server', server)
  put('history', history)
  put('since', now)
  put('how', how)
  moved = true
end

-- The same process that keeps its data: attaching its first replica gives it a new history without a former one.
local function is_same_history()
  if server == '' then return true end
  return server == epoch.server and (history == epoch.history or string.match(former, '^0*$') ~= nil)
end

if born ~= '' and epoch.born ~= born then return {'gone'} end
if epoch.born == '' then
  if begin == 0 then return {'none'} end
  put('born', now .. '-' .. chance)
  enter_epoch(1, 'started')
  put('mended_in', 1)
  put('mended_at', now)
  write('HSETNX', prefix .. 'settings', 'schema', schema)
elseif not is_same_history() then
  enter_epoch(math.max(tonumber(epoch.number), number) + 1, former == epoch.history and 'promoted' or 'replaced')
  write('HDEL', key, 'mend_until', 'mended', 'lost', 'lost_count', 'twice', 'twice_count', 'restored', 'restored_count')
  epoch.mend_until = ''
  write('SET', prefix .. 'brake', now + lease_ms, 'PX', lease_ms)
elseif history ~= epoch.history then
  put('history', history)
end

local mends = ''
if mend == 1 and now >= (tonumber(epoch.mend_until) or 0) then
  if epoch.mended_in ~= epoch.number then
    mends = 'failover'
  elseif now - tonumber(epoch.mended_at) >= every_ms then
    mends = 'hourly'
  end
end
if mends ~= '' then put('mend_until', now + MEND_MS) end
return {
  'ok', epoch.number, epoch.born, epoch.server, epoch.history, epoch.since, epoch.before, epoch.how, moved and '1' or '0', mends,
}
