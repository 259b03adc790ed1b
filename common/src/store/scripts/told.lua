-- told: whether what a requester was to be told surfaced.
-- Item: {id, gen, what, after (ms), note (one line: why it did not surface), data (JSON object of the event)}
-- What: 1 the start surfaced; progress is promised within `after`    2 the nudge was told
--       3 the receipt was delivered    4 the receipt did not surface: tried again after so long    5 its delivery is given up
--       6 the start did not surface
-- Result: {0, contract, rev, tries} applied    {1, contract} not applied: late, repeated, or of another generation    {2} no record
-- Second call: one that this very call id applied is answered as applied.

local items = cmsgpack.unpack(ARGV[3])
local code = open_frame(#items)
if code ~= 0 then return reply(code) end
raise_commit()

local function is_open(rec) return rec[CONTRACT] < C_TERMINAL_PENDING end
local function is_pending(rec) return rec[CONTRACT] == C_TERMINAL_PENDING end

local apply = {
  function(rec, id, it)
    if rec[CONTRACT] ~= C_CREATED or is_terminal(rec) then return false end
    rec[CONTRACT], rec[TOLD], rec[TELL_ERROR] = C_ACKED, 0, ''
    if is_running(rec) then promise_progress(rec, it[4]) end
    emit(rec, id, 'acked', it[6])
    return true
  end,
  function(rec, id, it)
    if rec[CONTRACT] ~= C_SLA_MISSED or not is_running(rec) or rec[PROMISE] == 0 then return false end
    rec[PROMISE], rec[TOLD] = 0, 0
    emit(rec, id, 'nudged', it[6])
    return true
  end,
  function(rec, id, it)
    if not is_pending(rec) then return false end
    rec[CONTRACT], rec[PROMISE], rec[TELL_ERROR] = C_TERMINAL_ACKED, 0, ''
    emit(rec, id, 'receipt_delivered', it[6])
    return true
  end,
  function(rec, id, it)
    if not is_pending(rec) then return false end
    rec[TOLD], rec[TELL_ERROR], rec[PROMISE] = rec[TOLD] + 1, it[5], now + it[4] + RECEIPT_WITHIN
    return true
  end,
  function(rec, id, it)
    if not is_pending(rec) then return false end
    rec[CONTRACT], rec[PROMISE], rec[TOLD], rec[TELL_ERROR] = C_TERMINAL_FAILED, 0, rec[TOLD] + 1, it[5]
    emit(rec, id, 'receipt_failed', it[6])
    return true
  end,
  function(rec, id, it)
    if rec[CONTRACT] ~= C_CREATED or is_terminal(rec) then return false end
    rec[TELL_ERROR] = it[5]
    return true
  end,
}

local touched = {}
for i = 1, #items do
  local it = items[i]
  local rec = record(i)
  if not rec then
    result(i, { 2 })
  elseif rec[CALL] == call and not touched[it[1]] then
    fetch_entry(rec[ENTRY])
    result(i, { 0, rec[CONTRACT], rec[REV], rec[TOLD] })
  elseif rec[GEN] == it[2] and apply[it[3]](rec, it[1], it) then
    touched[it[1]] = true
    save(i, rec, it[1])
    result(i, { 0, rec[CONTRACT], rec[REV], rec[TOLD] })
  else
    result(i, { 1, rec[CONTRACT] })
  end
end
write_back()
return reply(0)
