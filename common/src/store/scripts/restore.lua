-- restore: writes what the journal knows of jobs into a data set that is being made whole.
-- ARGV[1] adds: [6] who makes it whole; [7] how long the sessions of attempts that run are waited for (ms).
-- Item: {id, what, status, contract, gen, rev, epoch, attempt, charged, max retries, start failures, due, started, deadline,
--   created (0 = not known: the next claim knows), finish by, ended, promise, cancel, queue, type, key, trace, carrier, session,
--   code, notify, summary, position of the run key of its session (0 = none), session that an older copy has of it,
--   position of that one's run key (0 = none), lost attempts}; times in ms
-- What: 1 a record    2 its record was deleted    3 the message that carries it is gone, if it is the carrier of the item
-- Result: {0} written    {1} nothing to write: the data set knows as much, or more
-- Reply code 5: the gate is not closed, or somebody else makes the data set whole.
-- Second call: {1}.

local items = cmsgpack.unpack(ARGV[3])
local code = open_frame(#items, true)
if code ~= 0 then return reply(code) end
if gate ~= CLOSED or redis.call('HGET', KEYS[1], 'by') ~= frame[6] then return reply(5) end

local gone = {}
for i = 1, #items do
  local it = items[i]
  local id, rev = it[1], it[6]
  local before = record(i)
  if it[2] == 3 then
    local is_carried = before and not is_terminal(before) and before[CARRIER] ~= '' and before[CARRIER] == it[24]
    if is_carried then
      before[CARRIER], before[REPLY] = '', ''
      if not is_running(before) then before[PROMISE] = now end
      save(i, before, id)
    end
    result(i, { is_carried and 0 or 1 })
  elseif before and before[REV] >= rev then
    result(i, { 1 })
  else
    if before and is_running(before) and it[31] > 0 and before[SESSION] == it[30] then
      local member = id .. ':' .. text_of[before[EPOCH]]
      redis.call('SREM', KEYS[it[31]], member, '!' .. member)
    end
    if it[2] == 2 then
      due_rem[#due_rem + 1] = id
      gone[#gone + 1] = KEYS[FIRST_JOB + i]
    else
      local rec = fresh(it[20], it[21], it[22], it[23], it[24], '', it[15], it[16], it[10], it[27], it[28])
      rec[STATUS], rec[CONTRACT], rec[GEN], rec[REV], rec[EPOCH] = it[3], it[4], it[5], rev, it[7]
      rec[ATTEMPT], rec[CHARGED], rec[STARTFAILS], rec[DUE], rec[STARTED] = it[8], it[9], it[11], it[12], it[13]
      rec[DEADLINE], rec[ENDED], rec[PROMISE], rec[CANCEL] = it[14], it[17], it[18], it[19]
      rec[SESSION], rec[CODE], rec[LOST] = it[25], it[26], math.min(it[32], 255)
      if is_running(rec) and it[29] > 0 then
        local member = id .. ':' .. text_of[rec[EPOCH]]
        redis.call('SADD', KEYS[it[29]], member)
        if rec[CANCEL] == 1 then redis.call('SADD', KEYS[it[29]], '!' .. member) end
        redis.call('ZADD', KEYS[4], 'GT', now + frame[7], rec[SESSION])
      end
      save(i, rec, id)
      if is_terminal(rec) then redis.call('RPUSH', KEYS[6], '@' .. text_of[rec[ENDED]], id) end
    end
    result(i, { 0 })
  end
end
write_back()
if #gone > 0 then redis.call('DEL', unpack(gone)) end
return reply(0)
