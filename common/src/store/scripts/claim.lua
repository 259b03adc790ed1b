-- claim: the right to run one attempt of each job, or the reason why not.
-- ARGV[1] adds: [5] most outbox entries (count), [6] data of the started event (JSON object, or '').
-- Item: {id, queue, type, key (JSON string or ''), trace, carrier, ack subject, created ms, finish ms, max retries,
--        timeout ms, generation, adopt (carrier that vanished, or ''), expires ms (0 = never)}
-- Result: {0, epoch, attempt, charged, gen, started ms, rev, start failures} granted
--         {1, ms} live owner: its lease ends in    {2, ms} not due: due in
--         {3, carrier} second carrier: the recorded one
--         {4, status, gen, epoch, code} ended and journaled    {5, status, gen, epoch, code} ended, its entry is in entries
--         {6} carrier of an older generation    {7} expires_at passed before the first start
-- Second call: a job claimed by this very call id is granted again, with the same epoch.

local code = open_frame()
if code ~= 0 then return reply(code) end
local lease = redis.call('ZSCORE', KEYS[4], session)
if not lease or tonumber(lease) <= now then return reply(3) end
if redis.call('XLEN', KEYS[3]) > frame[5] then return reply(4) end
raise_commit()

local results, running, granted = {}, {}, {}
for i = 1, #items do
  local it = items[i]
  local id, generation = it[1], it[12]
  local rec = record(i)
  local result
  if rec and rec[CALL] == call and is_running(rec) and rec[CARRIER] == it[6] and not granted[id] then
    granted[id] = true
    fetch_entry(rec[ENTRY])
    result = { 0, rec[EPOCH], rec[ATTEMPT], rec[CHARGED], rec[GEN], rec[STARTED], rec[REV], rec[STARTFAILS] }
  else
    if not rec then
      rec = fresh(it[2], it[3], it[4], it[5], it[6], it[7], it[8], it[8] + it[9], it[10])
      rec[GEN] = generation
    elseif generation > rec[GEN] and is_terminal(rec) then
      -- The carrier of a replay arrived before the replay was recorded. Saved here, because the claim itself may be refused.
      rec[QUEUE], rec[TYPE], rec[KEY], rec[MAXR] = it[2], it[3], it[4], it[10]
      regenerate(rec, id, it[6], it[7], it[8], it[8] + it[9], '{}')
      save(i, rec, id)
    end
    if generation < rec[GEN] then
      result = { 6 }
    elseif is_terminal(rec) then
      result = { fetch_entry(rec[ENTRY]) and 5 or 4, rec[STATUS], rec[GEN], rec[EPOCH], rec[CODE] }
    elseif rec[CARRIER] ~= '' and rec[CARRIER] ~= it[6] and rec[CARRIER] ~= it[13] then
      result = { 3, rec[CARRIER] }
    elseif is_running(rec) then
      local owner = redis.call('ZSCORE', KEYS[4], rec[SESSION])
      result = { 1, math.max((owner and tonumber(owner) or now) - now, 0) }
    elseif rec[STATUS] ~= QUEUED and rec[DUE] > now then
      result = { 2, rec[DUE] - now }
    elseif it[14] > 0 and it[14] <= now and rec[EPOCH] == 0 then
      result = { 7 }
    else
      rec[STATUS], rec[EPOCH], rec[ATTEMPT] = RUNNING, rec[EPOCH] + 1, rec[ATTEMPT] + 1
      if rec[CONTRACT] == C_CREATED then rec[CONTRACT] = C_ACKED end
      rec[SESSION], rec[CARRIER], rec[REPLY], rec[TRACE] = session, it[6], it[7], it[5]
      rec[STARTED], rec[DEADLINE], rec[DUE], rec[MAXR] = now, now + it[11], 0, it[10]
      emit(rec, id, 'started', frame[6])
      save(i, rec, id)
      -- The same message may stand twice in one call: the second is a second owner like any other.
      granted[id] = true
      running[#running + 1] = id .. ':' .. rec[EPOCH]
      result = { 0, rec[EPOCH], rec[ATTEMPT], rec[CHARGED], rec[GEN], now, rec[REV], rec[STARTFAILS] }
    end
  end
  results[i] = result
end
if #running > 0 then redis.call('SADD', KEYS[5], unpack(running)) end
write_back()
return reply(0, results)
