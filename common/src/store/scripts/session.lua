-- session: opens or closes a session; makes the store's identity at its first use.
-- KEYS as in the frame; KEYS[7] sessinfo hash. ARGV[1] adds: [6] 1 open, 2 close, 3 expire now, 4 open again in the data set of
-- a closed gate (else reply code 3), 5 other info of a live one, 0 identity only; [7] session TTL (ms); [8] info (JSON); [9] creation time of JOBS (text); [10] 1 = may create the store.
-- Results: {incarnation, creation time of JOBS, live sessions, leftover attempts of the session}
-- Second call: the same.

local store = redis.call('HMGET', KEYS[1], 'inc', 'commit', 'gate')
local inc = store[1]
if not inc then
  if frame[10] ~= 1 then return reply(1) end
  redis.call('HSET', KEYS[1], 'inc', incarnation, 'jobs', frame[9], 'commit', 0)
  inc = incarnation
else
  commit, gate = tonumber(store[2]), tonumber(store[3] or 0)
end
if commit < seen then return reply(6) end
if frame[6] ~= 0 and inc ~= incarnation then return reply(2) end
if frame[6] == 4 and gate ~= CLOSED then return reply(3) end
trim()
if frame[6] == 1 or frame[6] == 4 then
  redis.call('ZADD', KEYS[4], now + frame[7], session)
  redis.call('HSET', KEYS[7], session, frame[8])
elseif frame[6] == 2 and redis.call('SCARD', KEYS[5]) == 0 then
  redis.call('ZREM', KEYS[4], session)
  redis.call('HDEL', KEYS[7], session)
elseif frame[6] == 5 then
  local lease = redis.call('ZSCORE', KEYS[4], session)
  if lease and tonumber(lease) > now then redis.call('HSET', KEYS[7], session, frame[8]) end
elseif frame[6] == 3 and redis.call('ZSCORE', KEYS[4], session) then
  redis.call('ZADD', KEYS[4], 0, session)
end
result(1, { inc, redis.call('HGET', KEYS[1], 'jobs'), redis.call('ZCARD', KEYS[4]), redis.call('SCARD', KEYS[5]) })
return reply(0)
