-- finish: what became of each attempt. Fenced by epoch and session.
-- Item: {id, epoch, verdict, code, delay ms, receipt (JSON object without its last brace),
--        data (JSON object without its last brace), detail (JSON for the data key or ''), position of the data key (0 = none)}
-- Verdict: 1 done, 2 failed for good (code timeout: timed out), 3 retry after delay, 4 released, 5 start failed, again
--          after delay, 6 cancel obeyed
-- Result: {0, status, rev} applied    {1, status, epoch} fenced    {2} no record    {3} retry budget spent: nothing written
-- Second call: a verdict that this very call id applied is answered as applied.

local code = open_frame()
if code ~= 0 then return reply(code) end
raise_commit()

local results, gone = {}, {}
for i = 1, #items do
  local it = items[i]
  local id, epoch, verdict = it[1], it[2], it[3]
  local rec = record(i)
  local result
  if not rec then
    result = { 2 }
  elseif rec[CALL] == call and rec[EPOCH] == epoch and not is_running(rec) then
    fetch_entry(rec[ENTRY])
    result = { 0, rec[STATUS], rec[REV] }
  elseif not owns(rec, epoch) then
    result = { 1, rec[STATUS], rec[EPOCH] }
  elseif verdict == 3 and rec[CHARGED] >= rec[MAXR] then
    result = { 3 }
  else
    if verdict ~= 5 then rec[STARTFAILS] = 0 end
    if verdict == 1 then
      emit_finished(rec, id, DONE, '', it[6])
    elseif verdict == 2 then
      rec[CHARGED] = rec[CHARGED] + 1
      emit_finished(rec, id, it[4] == 'timeout' and TIMED_OUT or FAILED, it[4], it[6])
    elseif verdict == 3 then
      rec[CHARGED], rec[STATUS], rec[DUE], rec[CODE] = rec[CHARGED] + 1, RETRY_WAIT, now + it[5], it[4]
      emit(rec, id, 'attempt_failed', it[7] .. ',"retry_at":"' .. iso(rec[DUE]) .. '"}')
    elseif verdict == 4 then
      rec[STATUS], rec[DUE] = QUEUED, 0
      emit(rec, id, 'released', it[7] .. '}')
    elseif verdict == 5 then
      rec[STATUS], rec[DUE], rec[CODE] = DEFERRED, now + it[5], it[4]
      rec[STARTFAILS], rec[ATTEMPT] = rec[STARTFAILS] + 1, rec[ATTEMPT] - 1
      emit(rec, id, 'deferred', it[7] .. ',"until":"' .. iso(rec[DUE]) .. '"}')
    else
      emit_finished(rec, id, CANCELLED, 'cancelled', it[6])
    end
    rec[SESSION] = ''
    if it[8] ~= '' then redis.call('SET', KEYS[it[9]], it[8], 'PX', keep) end
    save(i, rec, id)
    result = { 0, rec[STATUS], rec[REV] }
  end
  -- An attempt whose verdict was not taken still runs, and must be found when its session expires.
  if result[1] ~= 3 then gone[#gone + 1] = id .. ':' .. epoch end
  results[i] = result
end
-- After the records: a call that breaks off leaves every attempt where the expiry of its session finds it.
write_back()
if #gone > 0 then redis.call('SREM', KEYS[5], unpack(gone)) end
return reply(0, results)
