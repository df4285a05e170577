-- Create or update a deployment by its slug (flow/name). Its id stays, its revision grows.
--
-- USES core
-- ARGV slug   str     flow/name
--      new_id str     the id if it does not exist yet
--      fields packed  a flat list of its fields
-- RETURN {id, revision}

local id = redis.call('HGET', prefix .. 'deployments', slug) or new_id
local key = prefix .. 'deployment:' .. id
local revision = tonumber(redis.call('HGET', key, 'revision') or 0) + 1
write('HSET', prefix .. 'deployments', slug, id)
write('HSET', key, 'id', id, 'revision', revision, 'updated', now, unpack(fields))
write('HSETNX', key, 'created', now)
emit(revision == 1 and 'deployment.created' or 'deployment.updated', 'd', slug)
return {id, revision}
