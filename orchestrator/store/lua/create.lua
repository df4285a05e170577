-- Create runs, each if it does not exist yet by id or by idempotency key.
--
-- USES core gates runs places calls collide
-- ARGV items packed  a list of {id, due_ms or nil, idempotency ('' or scope:digest), expires_ms or nil, tags, fields, params};
--                    fields as layout.py lists them
-- RETURN a list of {answer, id, name}: created | existing | conflict (the key stands for other work)

local answers, keyed, flows = {}, {}, {}

local function same_work(run, fields, wanted)
  local params = run.new and (run.params or '') or redis.call('HGET', run.key, 'params') or ''
  local asked = run_of('', fields)
  return run.flow == asked.flow and run.dep == asked.dep and params == wanted
end

local function full_gate(run)
  for _, gate in ipairs(gates_of(run)) do
    if gate.strategy == 'CANCEL_NEW' and gate.limit and gate.used >= gate.limit then return gate end
  end
end

for _, item in ipairs(items) do
  local id, due, idem, expires, tags, fields, params = unpack(item, 1, 7)
  local holder = idem ~= '' and (keyed[idem] or redis.call('GET', prefix .. 'idempotency:' .. idem))
  local existing = holder and load_run(holder) or load_run(id)
  if existing then
    local same = existing.id == id or same_work(existing, fields, params)
    answers[#answers + 1] = {same and 'existing' or 'conflict', existing.id, existing.name}
  elseif unreadable[id] then
    answers[#answers + 1] = {'conflict', id, ''}
  else
    local run = new_run(id, fields, tags, due or now, params)
    if idem ~= '' then
      keyed[idem] = id
      set(run, 'idem', idem)
      write('SET', prefix .. 'idempotency:' .. idem, id)
    end
    if expires then
      set(run, 'expires', expires)
      zadd(prefix .. 'expires', expires, id)
    end
    flows[run.flow] = true
    local gate = run.due <= now and full_gate(run)
    enter(run, 'Scheduled', '')
    if gate then
      enter(run, 'Cancelled', 'No free slot of ' .. title(gate) .. ', whose strategy is CANCEL_NEW.')
      to_ended(run)
    elseif run.due <= now then
      make_way(run)
      to_queue(run)
    else
      to_due(run, run.due)
    end
    answers[#answers + 1] = {'created', id, run.name}
  end
end
for flow in pairs(flows) do zadd(prefix .. 'flows', now, flow) end
return answers
