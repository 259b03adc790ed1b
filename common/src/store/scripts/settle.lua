-- settle: gives a job that nobody runs its outcome: cancel of an operator, burial of a poison message.
-- Item: {id, verdict, code, receipt (JSON object without its last brace), reason (JSON object),
--        queue, type, key, trace, carrier, ack subject, created ms, generation, notify}; the last nine for a job not seen before
-- Verdict: 1 cancel, 2 bury, 3 its finish deadline passed
-- Result: {0, status, ack subject, carrier, gen, rev, epoch} applied
--         {1, status} not applied: it is running, or another message carries it, or (cancel) it was replayed since
--         {2, status, gen, epoch, code} it has its outcome; its entry is in entries while not journaled
-- Second call: a verdict that this very call id applied is answered as applied.

local items = cmsgpack.unpack(ARGV[3])
local code = open_frame(#items)
if code ~= 0 then return reply(code) end
raise_commit()

for i = 1, #items do
  local it = items[i]
  local id, verdict = it[1], it[2]
  local rec = record(i) or fresh(it[6], it[7], it[8], it[9], it[10], it[11], it[12], it[12], 0, it[14], '')
  if it[13] > rec[GEN] and rec[REV] == 0 then rec[GEN] = it[13] end
  if it[13] > rec[GEN] and is_terminal(rec) then
    -- The carrier of a replay that is not recorded yet: the new generation gets the outcome, not nobody.
    regenerate(rec, id, it[10], it[11], it[12], it[12], '{}')
  end
  local carrier = rec[CARRIER]
  local ack = it[11] ~= '' and it[11] or rec[REPLY]
  if rec[CALL] == call and is_terminal(rec) then
    fetch_entry(rec[ENTRY])
    result(i, { 0, rec[STATUS], ack, carrier, rec[GEN], rec[REV], rec[EPOCH] })
  elseif is_terminal(rec) then
    fetch_entry(rec[ENTRY])
    result(i, { 2, rec[STATUS], rec[GEN], rec[EPOCH], rec[CODE] })
  elseif is_running(rec) or (verdict == 1 and it[13] < rec[GEN])
    or (verdict ~= 1 and carrier ~= '' and it[10] ~= '' and it[10] ~= carrier) then
    -- A broken message that names a good job does not take that job with it, and a verdict on a generation says nothing of
    -- the one that was asked for since.
    result(i, { 1, rec[STATUS] })
  else
    if verdict == 2 then
      rec[STATUS], rec[CODE] = FAILED, it[3]
      emit(rec, id, 'buried', it[5])
    end
    local status = verdict == 1 and CANCELLED or verdict == 2 and FAILED or TIMED_OUT
    emit_finished(rec, id, status, it[3], it[4])
    -- Kept for a repeated call: the caller still has to settle the carrier.
    rec[REPLY] = ack
    save(i, rec, id)
    result(i, { 0, rec[STATUS], ack, carrier, rec[GEN], rec[REV], rec[EPOCH] })
  end
end
write_back()
return reply(0)
