-- due: what follows from deadlines that passed. The caller read them from the index and judged; each is judged again here, so
-- that of several reapers one acts.
-- ARGV[1] adds: [6] overstay: how long an attempt may go on past its time limit before it is taken from its worker (ms); [7] so
-- many attempts of a job may be lost.
-- Item: {id, rev, promise, act, after (ms), receipt (JSON object without its last brace), data (the same), position of the run
--        key of its session (0 = none)}
-- Act: 1 look again after so long    2 `expires_at` passed before the first start    3 the finish deadline of what does not run
--      4 overstayed: lost, again after so long    5 no progress in time; the nudge is the caller's to tell for so long
--      6 what is to be told is the caller's to tell for so long    7 not in the index any more    8 nothing is promised any more
-- Result: {0, status, ack subject, carrier, gen, rev, epoch} applied    {1} not applied: it is otherwise by now
-- Second call: {1}; the work was done by the first.

local items = cmsgpack.unpack(ARGV[3])
local overstay = frame[6]
local code = open_frame(#items)
if code ~= 0 then return reply(code) end
raise_commit()

local acts = {
  [1] = function(rec, id, it)
    -- What runs has its deadline in the record: only the index moves.
    if is_running(rec) then
      index(id, now + it[5])
    else
      rec[PROMISE] = now + it[5]
      save(it.at, rec, id)
    end
    return true
  end,
  [2] = function(rec, id, it)
    if is_running(rec) or rec[EPOCH] > 0 or rec[DEADLINE] == 0 or rec[DEADLINE] > now then return false end
    rec[STATUS], rec[CODE] = FAILED, 'expired'
    emit(rec, id, 'buried', it[7] .. '}')
    emit_finished(rec, id, FAILED, 'expired', it[6])
    save(it.at, rec, id)
    return true
  end,
  [3] = function(rec, id, it)
    if is_running(rec) or rec[FINISH_BY] > now then return false end
    emit_finished(rec, id, TIMED_OUT, 'finish_deadline', it[6])
    save(it.at, rec, id)
    return true
  end,
  [4] = function(rec, id, it)
    if not is_running(rec) or rec[DEADLINE] + overstay > now then return false end
    local member = id .. ':' .. text_of[rec[EPOCH]]
    redis.call('SREM', KEYS[it[8]], member, '!' .. member)
    lose(rec, id, now + it[5], it[6], it[7], frame[7])
    rec[SESSION] = ''
    save(it.at, rec, id)
    return true
  end,
  [5] = function(rec, id, it)
    if not is_running(rec) or rec[PROMISE] > now then return false end
    if rec[CONTRACT] ~= C_ACKED and rec[CONTRACT] ~= C_PROGRESSING then return false end
    rec[CONTRACT], rec[PROMISE], rec[TOLD] = C_SLA_MISSED, now + it[5], 1
    emit(rec, id, 'sla_missed', it[7] .. '}')
    save(it.at, rec, id)
    return true
  end,
  [6] = function(rec, id, it)
    if rec[PROMISE] == 0 or rec[PROMISE] > now then return false end
    local is_told_now = rec[CONTRACT] == C_TERMINAL_PENDING
      or is_running(rec) and (rec[CONTRACT] == C_CREATED or rec[CONTRACT] == C_SLA_MISSED)
    if not is_told_now then return false end
    rec[PROMISE] = now + it[5]
    -- A receipt's tries are those of its dispatchers, who tell; whoever looks for it tells nobody.
    if rec[CONTRACT] ~= C_TERMINAL_PENDING then rec[TOLD] = rec[TOLD] + 1 end
    save(it.at, rec, id)
    return true
  end,
  [8] = function(rec, id, it)
    if not is_running(rec) or rec[CONTRACT] ~= C_CREATED or rec[PROMISE] == 0 or rec[PROMISE] > now then return false end
    rec[PROMISE] = 0
    save(it.at, rec, id)
    return true
  end,
}

for i = 1, #items do
  local it = items[i]
  local id, act = it[1], it[4]
  local rec = record(i)
  local ack = rec and rec[REPLY]
  it.at = i
  if act == 7 and (not rec or is_terminal(rec) and is_told(rec)) then
    due_rem[#due_rem + 1] = id
    result(i, { 0, rec and rec[STATUS] or FAILED, '', '', 1, 0, 0 })
  elseif rec and acts[act] and rec[REV] == it[2] and rec[PROMISE] == it[3] and (act > 3 or not is_terminal(rec))
    and acts[act](rec, id, it) then
    result(i, { 0, rec[STATUS], ack, rec[CARRIER], rec[GEN], rec[REV], rec[EPOCH] })
  else
    result(i, { 1 })
  end
end
write_back()
return reply(0)
