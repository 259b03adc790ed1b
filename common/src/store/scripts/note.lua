-- note: counts that a record could not be read, and lets the due index leave its job alone for a while. Reader and counter are
-- apart: what was put right or set aside between the two is not touched.
-- ARGV[1] adds: [6] id    [7] for how long the due index leaves it alone (ms)    [8] 1 = count it    ARGV[3]: the bytes that could
--        not be read
-- KEYS[7] adds: record. KEYS[8] hash: how often each record could not be read.
-- Result: {how often; 0: it is not counted, or other bytes stand there by now and nothing was written}
-- Second call: counts once more.

local code = open_frame(0)
if code ~= 0 then return reply(code) end
local times = 0
if redis.call('GET', KEYS[7]) == ARGV[3] then
  redis.call('ZADD', KEYS[2], 'XX', now + frame[7], frame[6])
  if frame[8] == 1 then times = redis.call('HINCRBY', KEYS[8], frame[6], 1) end
end
result(1, { times })
return reply(0)
