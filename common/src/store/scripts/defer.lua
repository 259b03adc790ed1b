-- defer: a guard said "not now" before the claim of each job.
-- Item: {id, queue, type, key (JSON string or ''), trace, carrier, ack subject, adopt (carrier that vanished, or ''), created ms,
--        finish ms, max retries, generation, expires ms (0 = never), notify (JSON object or ''), summary, due ms (claimable from
--        then on), back ms (when its carrier comes back by itself), reason, data (JSON object)}
-- Result: {0, rev} deferred    {1, ms} an attempt runs: its lease ends in    {8, ms} it waits for something of its own: due in
--         {2, carrier} second carrier
--         {3, status, gen, epoch, code} ended and journaled    {4, status, gen, epoch, code} ended, its entry is in entries
--         {5} carrier of an older generation    {6} expires_at passed before the first start    {7} finish deadline passed
-- One that is deferred for the same reason again makes no event.
-- Second call: the same; an event is written once.

local items = cmsgpack.unpack(ARGV[3])
local code = open_frame(#items)
if code ~= 0 then return reply(code) end
raise_commit()

for i = 1, #items do
  local id, queue, type_, key, trace, carrier, ack, adopt, created, finish_ms, max_retries, generation, expires, notify, summary,
    due, back, reason, data = unpack(items[i])
  local rec = record(i)
  if not rec then
    rec = fresh(queue, type_, key, trace, carrier, ack, created, created + finish_ms, max_retries, notify, summary)
    rec[GEN] = generation
  elseif generation > rec[GEN] and is_terminal(rec) then
    rec[QUEUE], rec[TYPE], rec[KEY], rec[MAXR], rec[NOTIFY], rec[SUMMARY] = queue, type_, key, max_retries, notify, summary
    regenerate(rec, id, carrier, ack, created, created + finish_ms, '{}')
    save(i, rec, id)
  end
  if rec[CREATED] == 0 and generation == rec[GEN] then
    rec[CREATED], rec[FINISH_BY] = created, created + finish_ms
  end
  if generation < rec[GEN] then
    result(i, { 5 })
  elseif is_terminal(rec) then
    result(i, { fetch_entry(rec[ENTRY]) and 4 or 3, rec[STATUS], rec[GEN], rec[EPOCH], rec[CODE] })
  elseif rec[CARRIER] ~= '' and rec[CARRIER] ~= carrier and rec[CARRIER] ~= adopt then
    result(i, { 2, rec[CARRIER] })
  elseif is_running(rec) then
    local owner = redis.call('ZSCORE', KEYS[4], rec[SESSION])
    result(i, { 1, math.max((owner and tonumber(owner) or now) - now, 0) })
  elseif is_early(rec) and rec[CALL] ~= call then
    result(i, { 8, rec[DUE] - now })
  elseif expires > 0 and expires <= now and rec[EPOCH] == 0 then
    result(i, { 6 })
  elseif rec[FINISH_BY] <= now then
    result(i, { 7 })
  else
    local is_again = rec[STATUS] == DEFERRED and rec[CODE] == reason
    rec[STATUS], rec[CODE], rec[CARRIER], rec[REPLY], rec[TRACE] = DEFERRED, reason, carrier, ack, trace
    rec[NOTIFY], rec[SUMMARY] = notify, summary
    wait_until(rec, back)
    rec[DUE] = due
    if rec[EPOCH] == 0 then rec[DEADLINE] = expires end
    if not is_again then emit(rec, id, 'deferred', data) end
    save(i, rec, id)
    result(i, { 0, rec[REV] })
  end
end
write_back()
return reply(0)
