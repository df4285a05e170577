-- Create a run that its caller is already executing: a flow called in a plain Python process, or a subflow.
--
-- FLAGS allow-oom
-- USES core gates runs places reports
-- ARGV id       str     the run
--      fields   packed  its first fields, as layout.py lists them
--      params   str     its parameters, msgpack, or ''
--      tags     packed  a list
--      worker   str     the process that holds the lease
--      lease_ms int     length of the lease
--      again    int     1 = it was created before: if it is not there, a fail-over has lost it, and it is reported as restored
-- RETURN {'created', attempt} | {'existing', attempt}

local existing = load_run(id)
if existing then return {'existing', existing.attempt} end
local run = new_run(id, fields, tags, now, params)
to_leased(run, worker, lease_ms)
enter(run, 'Running', again == 1 and 'Recorded anew: a fail-over had lost it.' or '')
if again == 1 then report('restored', run.id, 'by', worker) end
set(run, 'started', now)
set(run, 'starts', 1)
zadd(prefix .. 'flows', now, run.flow)
return {'created', run.attempt}
