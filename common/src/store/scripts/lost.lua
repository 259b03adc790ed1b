-- lost: attempts of a session that expired. The session of the frame is the expired one.
-- ARGV[1] adds: [6] so many attempts of a job may be lost.
-- Item: {id, epoch, receipt (JSON object without its last brace) in case the budget is spent or that limit is reached, data (the same)}. A job that was
--       to be cancelled is, with a receipt that says only so.
-- Result: {0, status, ack subject, carrier, gen, rev} applied    {1} not running under this session and epoch any more
-- KEYS[7+n] adds: sessinfo, hash: forgets the session when it owns nothing any more.
-- Reply code 3: the session is alive: nothing was written.
-- Second call: answers {1}; the work was done by the first.

local items = cmsgpack.unpack(ARGV[3])
local code = open_frame(#items)
if code ~= 0 then return reply(code) end
local lease = redis.call('ZSCORE', KEYS[4], session)
if lease and tonumber(lease) > now then return reply(3) end
raise_commit()

local gone = {}
for i = 1, #items do
  local it = items[i]
  local id, epoch = it[1], it[2]
  local rec = record(i)
  if owns(rec, epoch) then
    local ack = rec[REPLY]
    if rec[CANCEL] == 1 then gone[#gone + 1] = '!' .. id .. ':' .. text_of[epoch] end
    lose(rec, id, now, it[3], it[4], frame[6])
    rec[SESSION] = ''
    save(i, rec, id)
    result(i, { 0, rec[STATUS], ack, rec[CARRIER], rec[GEN], rec[REV] })
  else
    result(i, { 1 })
  end
  gone[#gone + 1] = id .. ':' .. text_of[epoch]
end
-- After the records: a call that breaks off leaves every attempt where the next pass finds it.
write_back()
if #gone > 0 then redis.call('SREM', KEYS[5], unpack(gone)) end
if redis.call('SCARD', KEYS[5]) == 0 then
  redis.call('ZREM', KEYS[4], session)
  redis.call('HDEL', KEYS[FIRST_JOB + #items + 1], session)
end
return reply(0)
