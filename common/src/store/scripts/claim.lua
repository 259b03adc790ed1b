-- claim: the right to run one attempt of each job, or the reason why not.
-- ARGV[1] adds: [6] most outbox entries (count).
-- Item, packed: id, queue, type, key (JSON string or ''), trace, carrier, ack subject, adopt (carrier that vanished, or ''),
--        created ms, finish ms, max retries, timeout ms, generation, expires ms (0 = never), ack ms, progress ms, whether the
--        requester gets notices (1; otherwise the claim itself acknowledges), whether the crash-loop guard of its type was
--        asked (1), notify (JSON object or ''), summary
-- Result: {0, epoch, attempt, charged, gen, started ms, rev, start failures, limit ms} granted; the limit is 0 unless the
--         finish deadline comes before the time limit of the attempt
--         {1, ms} live owner: its lease ends in    {2, ms} not due: due in
--         {3, carrier} second carrier: the recorded one
--         {4, status, gen, epoch, code} ended and journaled    {5, status, gen, epoch, code} ended, its entry is in entries
--         {6} carrier of an older generation    {7} expires_at passed before the first start    {8} finish deadline passed
--         {9, ms} its type is watched for so long: the crash-loop guard is to be asked first
-- Second call: a job claimed by this very call id is granted again, with the same epoch.

local ITEM = '<ssssssssI6I6I4I6I4I6I4I4BBss'
local n = #KEYS - FIRST_JOB
local code = open_frame(n)
if code ~= 0 then return reply(code) end
if gate == RESTORED then return reply(5) end
local lease = redis.call('ZSCORE', KEYS[4], session)
if not lease or tonumber(lease) <= now then return reply(3) end
if redis.call('XLEN', KEYS[3]) > frame[6] then return reply(4) end
raise_commit()

-- Until the finish deadline, where it comes before the time limit of the attempt.
local function cut_limit(rec) return rec[DEADLINE] == rec[FINISH_BY] and rec[DEADLINE] - rec[STARTED] or 0 end

local function grant(rec)
  return { 0, rec[EPOCH], rec[ATTEMPT], rec[CHARGED], rec[GEN], rec[STARTED], rec[REV], rec[STARTFAILS], cut_limit(rec) }
end

-- Types whose jobs ask first, each with the time until when.
local ask_first = {}
for type_, until_ in string.gmatch(watched or '', '(%S+) (%d+) %d+ ') do ask_first[type_] = tonumber(until_) - now end

local running, granted = {}, {}
local items, place = ARGV[3], 1
for i = 1, n do
  local id, queue, type_, key, trace, carrier, ack, adopt, created, finish_ms, max_retries, timeout_ms, generation, expires,
    ack_ms, progress_ms, notices, asked, notify, summary, after = struct.unpack(ITEM, items, place)
  place = after
  local rec = record(i)
  if rec and rec[CALL] == call and is_running(rec) and rec[CARRIER] == carrier and not granted[id] then
    granted[id] = true
    fetch_entry(rec[ENTRY])
    result(i, grant(rec))
  else
    if not rec then
      rec = fresh(queue, type_, key, trace, carrier, ack, created, created + finish_ms, max_retries, notify, summary)
      rec[GEN] = generation
    elseif generation > rec[GEN] and is_terminal(rec) then
      -- The carrier of a replay arrived before the replay was recorded. Saved here, because the claim itself may be refused.
      rec[QUEUE], rec[TYPE], rec[KEY], rec[MAXR] = queue, type_, key, max_retries
      regenerate(rec, id, carrier, ack, created, created + finish_ms, '{}')
      save(i, rec, id)
    end
    if rec[CREATED] == 0 and generation == rec[GEN] then
      -- Restored from the journal, which does not know these.
      rec[CREATED], rec[FINISH_BY] = created, created + finish_ms
    end
    if generation < rec[GEN] then
      result(i, { 6 })
    elseif is_terminal(rec) then
      result(i, { fetch_entry(rec[ENTRY]) and 5 or 4, rec[STATUS], rec[GEN], rec[EPOCH], rec[CODE] })
    elseif rec[CARRIER] ~= '' and rec[CARRIER] ~= carrier and rec[CARRIER] ~= adopt then
      result(i, { 3, rec[CARRIER] })
    elseif is_running(rec) then
      local owner = redis.call('ZSCORE', KEYS[4], rec[SESSION])
      result(i, { 1, math.max((owner and tonumber(owner) or now) - now, 0) })
    elseif is_early(rec) then
      result(i, { 2, rec[DUE] - now })
    elseif expires > 0 and expires <= now and rec[EPOCH] == 0 then
      result(i, { 7 })
    elseif rec[FINISH_BY] <= now then
      result(i, { 8 })
    elseif asked == 0 and (ask_first[type_] or 0) > 0 then
      result(i, { 9, ask_first[type_] })
    else
      -- The first epoch is the clock's: a record that was lost with its claim never gets the same one again.
      local above = rec[EPOCH] == 0 and now - 1 or rec[EPOCH]
      rec[STATUS], rec[EPOCH], rec[ATTEMPT] = RUNNING, math.max(above, base) + 1, rec[ATTEMPT] + 1
      rec[SESSION], rec[CARRIER], rec[REPLY], rec[TRACE] = session, carrier, ack, trace
      rec[STARTED], rec[DEADLINE], rec[DUE], rec[MAXR] = now, math.min(now + timeout_ms, rec[FINISH_BY]), 0, max_retries
      rec[NOTIFY], rec[SUMMARY] = notify, summary
      if rec[CONTRACT] == C_CREATED and notices == 1 then
        rec[PROMISE], rec[TOLD] = now + ack_ms, 0
      else
        if rec[CONTRACT] == C_CREATED then rec[CONTRACT] = C_ACKED end
        promise_progress(rec, progress_ms)
      end
      emit(rec, id, 'started', '')
      save(i, rec, id)
      -- The same message may stand twice in one call: the second is a second owner like any other.
      granted[id] = true
      running[#running + 1] = id .. ':' .. text_of[rec[EPOCH]]
      -- All first starts of first generations have one answer, where no finish deadline is near.
      if rec[REV] == 1 and rec[GEN] == 1 and cut_limit(rec) == 0 then same_result(i, 'first', grant, rec) else result(i, grant(rec)) end
    end
  end
end
if #running > 0 then redis.call('SADD', KEYS[5], unpack(running)) end
write_back()
return reply(0)
