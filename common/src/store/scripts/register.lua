-- register: jobs that wait at the broker and that no worker has seen become known, so that their deadlines are watched.
-- Item: {id, queue, type, key (JSON string or ''), trace, carrier, created ms, finish ms, max retries, generation,
--        expires ms (0 = never), notify (JSON object or ''), summary}
-- Result: {0, gen} registered, or its next generation is    {1, carrier} it was known: who carries it
--         {2, status, gen, epoch, code} ended and journaled    {3, status, gen, epoch, code} ended, its entry is in entries
--         {4} message of an older generation
-- A record that is there keeps what it says; one that was made anew without the message (its time of creation is 0) is given
-- what only the message knows.
-- Second call: {1}.

local items = cmsgpack.unpack(ARGV[3])
local code = open_frame(#items)
if code ~= 0 then return reply(code) end
raise_commit()

for i = 1, #items do
  local id, queue, type_, key, trace, carrier, created, finish_ms, max_retries, generation, expires, notify, summary =
    unpack(items[i])
  local rec = record(i)
  if not rec then
    rec = fresh(queue, type_, key, trace, carrier, '', created, created + finish_ms, max_retries, notify, summary)
    rec[GEN] = generation
    wait_until(rec, 0)
    rec[DEADLINE] = expires
    save(i, rec, id)
    result(i, { 0, rec[GEN] })
  elseif generation < rec[GEN] then
    result(i, { 4 })
  elseif is_terminal(rec) and generation > rec[GEN] then
    -- The carrier of a replay that was published and not recorded.
    rec[QUEUE], rec[TYPE], rec[KEY], rec[MAXR], rec[NOTIFY], rec[SUMMARY] = queue, type_, key, max_retries, notify, summary
    regenerate(rec, id, carrier, '', created, created + finish_ms, '{}')
    save(i, rec, id)
    result(i, { 0, rec[GEN] })
  elseif is_terminal(rec) then
    result(i, { fetch_entry(rec[ENTRY]) and 3 or 2, rec[STATUS], rec[GEN], rec[EPOCH], rec[CODE] })
  else
    if rec[CREATED] == 0 and (rec[CARRIER] == '' or rec[CARRIER] == carrier) then
      rec[CARRIER], rec[CREATED], rec[MAXR] = carrier, created, max_retries
      if rec[FINISH_BY] == 0 then rec[FINISH_BY] = created + finish_ms end
      if rec[EPOCH] == 0 and rec[DEADLINE] == 0 then rec[DEADLINE] = expires end
      if rec[NOTIFY] == '' then rec[NOTIFY] = notify end
      if rec[SUMMARY] == '' then rec[SUMMARY] = summary end
      save(i, rec, id)
    end
    result(i, { 1, rec[CARRIER] })
  end
end
write_back()
return reply(0)
