-- session: opens or closes a session; makes the store's identity at its first use.
-- KEYS as in the frame; KEYS[7] sessinfo hash. ARGV[1] adds: [6] 1 open, 2 close, 3 expire now, 0 identity only; [7] session TTL
-- (ms); [8] info (JSON); [9] creation time of JOBS (text); [10] 1 = may create the store.
-- Results: {incarnation, creation time of JOBS, live sessions, leftover attempts of the session}
-- Second call: the same.

local inc = redis.call('HGET', KEYS[1], 'inc')
if not inc then
  if frame[10] ~= 1 then return reply(1) end
  redis.call('HSET', KEYS[1], 'inc', incarnation, 'jobs', frame[9], 'commit', 0)
  inc = incarnation
end
if frame[6] ~= 0 and inc ~= incarnation then return reply(2) end
trim()
if frame[6] == 1 then
  redis.call('ZADD', KEYS[4], now + frame[7], session)
  redis.call('HSET', KEYS[7], session, frame[8])
elseif frame[6] == 2 and redis.call('SCARD', KEYS[5]) == 0 then
  redis.call('ZREM', KEYS[4], session)
  redis.call('HDEL', KEYS[7], session)
elseif frame[6] == 3 and redis.call('ZSCORE', KEYS[4], session) then
  redis.call('ZADD', KEYS[4], 0, session)
end
result(1, { inc, redis.call('HGET', KEYS[1], 'jobs'), redis.call('ZCARD', KEYS[4]), redis.call('SCARD', KEYS[5]) })
return reply(0)
