-- carrier: what follows from a look at the message that carries a job which waits. The caller read the record and looked; each
-- is judged again here, so that of several reapers one acts.
-- Item: {id, rev, promise, carrier, act, after (ms), looks, next carrier, status, code, other rev, other epoch,
--        receipt (JSON object without its last brace), data (JSON object)}
-- Act: 1 it is there, or is to come: look again after so long; so many looks in a row found it delivered and nothing came of it
--      2 the next carrier carries it from now on; look again after so long    3 it is gone, and so is the job: failed
--      4 the journal has the outcome of this generation, with the other rev and epoch: the record gets it, and no event
-- Result: {0, status, ack subject, carrier, gen, rev, epoch} applied    {1} not applied: it is otherwise by now
-- Second call: {1}; the work was done by the first.

local items = cmsgpack.unpack(ARGV[3])
local code = open_frame(#items)
if code ~= 0 then return reply(code) end
raise_commit()

local acts = {
  function(rec, it) rec[PROMISE], rec[TOLD] = now + it[6], it[7] end,
  function(rec, it) rec[PROMISE], rec[TOLD], rec[CARRIER], rec[REPLY] = now + it[6], 0, it[8], '' end,
  function(rec, it)
    rec[STATUS], rec[CODE] = FAILED, it[10]
    emit(rec, it[1], 'buried', it[14])
    emit_finished(rec, it[1], FAILED, it[10], it[13])
  end,
  function(rec, it)
    rec[STATUS], rec[CODE], rec[ENDED], rec[ENTRY] = it[9], it[10], now, ''
    rec[REV], rec[EPOCH] = math.max(rec[REV], it[11]), math.max(rec[EPOCH], it[12])
    rec[DUE], rec[PROMISE], rec[TOLD], rec[STARTFAILS], rec[CANCEL] = 0, 0, 0, 0, 0
    rec[CONTRACT] = rec[NOTIFY] == '' and C_TERMINAL_ACKED or C_TERMINAL_PENDING
    if rec[CONTRACT] == C_TERMINAL_PENDING then rec[PROMISE] = now + RECEIPT_WITHIN end
    rec[SESSION], rec[REPLY], rec[TRACE], rec[SUMMARY], rec[PRINT] = '', '', '', '', ''
  end,
}

for i = 1, #items do
  local it = items[i]
  local rec = record(i)
  if rec and not is_terminal(rec) and not is_running(rec) and rec[REV] == it[2] and rec[PROMISE] == it[3]
    and rec[CARRIER] == it[4] and acts[it[5]] then
    local ack = rec[REPLY]
    acts[it[5]](rec, it)
    save(i, rec, it[1])
    result(i, { 0, rec[STATUS], ack, rec[CARRIER], rec[GEN], rec[REV], rec[EPOCH] })
  else
    result(i, { 1 })
  end
end
write_back()
return reply(0)
