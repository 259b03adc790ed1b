-- quarantine: takes what stands under the key of a record and is none out of the way, and puts what the journal knows of the
-- job in its place. The session of the frame is the one that runs it, if one does.
-- ARGV[1] adds: [6] id. ARGV[3]: number of bytes that could not be read (4 bytes), these bytes, the record in their place (or
--        nothing: the journal knows of no such job)
-- KEYS[7] adds: record. KEYS[8] string: where the bytes are kept. KEYS[9] hash: how often each record could not be read.
-- Result: {0} done    {1} other bytes stand there by now: nothing was moved
-- Second call: {1}.

local code = open_frame(0)
if code ~= 0 then return reply(code) end
local id = frame[6]
local length, at = struct.unpack('<I4', ARGV[3])
local bad, instead = string.sub(ARGV[3], at, at + length - 1), string.sub(ARGV[3], at + length)
redis.call('HDEL', KEYS[9], id)
if redis.call('GET', KEYS[7]) ~= bad then
  result(1, { 1 })
  return reply(0)
end
local rec = instead ~= '' and unpack_record(instead, KEYS[7])
if instead ~= '' and not rec then error('record does not decode: ' .. KEYS[7] .. ';') end
raise_commit()
redis.call('SET', KEYS[8], bad)
if rec then
  first[1] = 1
  save(1, rec, id)
  write_back()
  if is_running(rec) then
    -- Where the index of sessions lost it too, it counts as expired.
    if not redis.call('ZSCORE', KEYS[4], session) then redis.call('ZADD', KEYS[4], 0, session) end
    redis.call('SADD', KEYS[5], id .. ':' .. text_of[rec[EPOCH]])
  end
else
  redis.call('DEL', KEYS[7])
  redis.call('ZREM', KEYS[2], id)
end
result(1, { 0 })
return reply(0)
