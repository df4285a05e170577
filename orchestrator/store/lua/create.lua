-- Create runs, each if it does not exist yet by id or by idempotency key.
--
-- USES core gates runs places calls collide
-- ARGV items packed  a list of {id, due_ms or nil, idempotency ('' or scope:digest), expires_ms or nil, tags, fields}; fields is a flat list
-- RETURN a list of {answer, id, name}: created | existing | conflict (the key stands for other work)

local answers, keyed, flows = {}, {}, {}

local function same_work(run, fields)
  local wanted = {}
  for i = 1, #fields, 2 do wanted[fields[i]] = fields[i + 1] end
  local params = run.new and run.params or redis.call('HGET', run.key, 'params') or ''
  return run.flow == wanted.flow and run.dep == (wanted.dep or '') and params == (wanted.params or '')
end

local function full_gate(run)
  for _, gate in ipairs(gates_of(run)) do
    if gate.strategy == 'CANCEL_NEW' and gate.limit and gate.used >= gate.limit then return gate end
  end
end

for _, item in ipairs(items) do
  local id, due, idem, expires, tags, fields = item[1], item[2], item[3], item[4], item[5], item[6]
  local holder = idem ~= '' and (keyed[idem] or redis.call('GET', prefix .. 'idempotency:' .. idem))
  local existing = holder and load_run(holder) or load_run(id)
  if existing then
    local same = existing.id == id or same_work(existing, fields)
    answers[#answers + 1] = {same and 'existing' or 'conflict', existing.id, existing.name}
  elseif unreadable[id] then
    answers[#answers + 1] = {'conflict', id, ''}
  else
    local run = new_run(id, fields, tags, due or now)
    if idem ~= '' then
      keyed[idem] = id
      set(run, 'idem', idem)
      write('SET', prefix .. 'idempotency:' .. idem, id)
    end
    if expires then
      set(run, 'expires', expires)
      write('ZADD', prefix .. 'expires', expires, id)
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
for flow in pairs(flows) do write('ZADD', prefix .. 'flows', now, flow) end
return answers
