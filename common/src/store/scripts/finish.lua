-- finish: what became of each attempt. Fenced by epoch and session.
-- ARGV[1] adds: [6] number of items.
-- Item, packed: id, epoch, verdict, code, delay ms, receipt (JSON object without its last brace, or ''),
--        data (JSON object without its last brace), detail (JSON for the data key or ''), position of the data key (0 = none)
-- Verdict: 1 done, 2 failed for good (codes timeout, finish_deadline: timed out), 3 retry after delay, 4 released, 5 start
--          failed, again after delay, 6 cancel obeyed. 3 to 5 of a job that was to be cancelled: it is.
-- Result: {0, status, rev} applied    {1, status, epoch} fenced    {2} no record    {3} retry budget spent: nothing written
-- Second call: a verdict that this very call id applied is answered as applied.

local ITEM = '<sI6BsI6sssI4'
local n = frame[6]
local code = open_frame(n)
if code ~= 0 then return reply(code) end
raise_commit()

local function applied(rec) return { 0, rec[STATUS], rec[REV] } end

local gone = {}
local items, place = ARGV[3], 1
for i = 1, n do
  local id, epoch, verdict, error_code, delay_ms, receipt, data, detail, data_key, after = struct.unpack(ITEM, items, place)
  place = after
  local rec = record(i)
  local is_taken = true
  if not rec then
    result(i, { 2 })
  elseif rec[CALL] == call and rec[EPOCH] == epoch and not is_running(rec) then
    fetch_entry(rec[ENTRY])
    result(i, { 0, rec[STATUS], rec[REV] })
  elseif not owns(rec, epoch) then
    result(i, { 1, rec[STATUS], rec[EPOCH] })
  elseif verdict == 3 and rec[CHARGED] >= rec[MAXR] and rec[CANCEL] == 0 then
    -- An attempt whose verdict was not taken still runs, and must be found when its session expires.
    is_taken = false
    result(i, { 3 })
  else
    local was_asked = rec[CANCEL] == 1
    if was_asked then
      if verdict >= 3 then verdict, receipt = 6, verdict == 6 and receipt or '' end
      gone[#gone + 1] = '!' .. id .. ':' .. text_of[epoch]
    end
    if verdict ~= 5 then rec[STARTFAILS] = 0 end
    if verdict == 1 then
      emit_finished(rec, id, DONE, '', receipt)
    elseif verdict == 2 then
      rec[CHARGED] = rec[CHARGED] + 1
      local is_late = error_code == 'timeout' or error_code == 'finish_deadline'
      emit_finished(rec, id, is_late and TIMED_OUT or FAILED, error_code, receipt)
    elseif verdict == 3 then
      rec[CHARGED], rec[STATUS], rec[CODE] = rec[CHARGED] + 1, RETRY_WAIT, error_code
      wait_until(rec, now + delay_ms)
      emit(rec, id, 'attempt_failed', data .. ',"retry_at":"' .. iso(rec[DUE]) .. '"}')
    elseif verdict == 4 then
      rec[STATUS] = QUEUED
      wait_until(rec, 0)
      emit(rec, id, 'released', data .. '}')
    elseif verdict == 5 then
      rec[STATUS], rec[CODE] = DEFERRED, error_code
      wait_until(rec, now + delay_ms)
      rec[STARTFAILS], rec[ATTEMPT] = rec[STARTFAILS] + 1, rec[ATTEMPT] - 1
      emit(rec, id, 'deferred', data .. ',"until":"' .. iso(rec[DUE]) .. '"}')
    else
      emit_finished(rec, id, CANCELLED, 'cancelled', receipt)
    end
    rec[SESSION] = ''
    if detail ~= '' then redis.call('SET', KEYS[data_key], detail, 'PX', keep) end
    save(i, rec, id)
    if rec[REV] == 2 then same_result(i, rec[STATUS], applied, rec) else result(i, applied(rec)) end
  end
  if is_taken then gone[#gone + 1] = id .. ':' .. text_of[epoch] end
end
-- After the records: a call that breaks off leaves every attempt where the expiry of its session finds it.
write_back()
if #gone > 0 then redis.call('SREM', KEYS[5], unpack(gone)) end
return reply(0)
