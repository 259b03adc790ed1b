-- renew: keeps a session alive and compares what it runs.
-- ARGV[1] adds: [6] session TTL (ms). Items: the "<id>:<epoch>" that the worker runs. No job keys.
-- Results: {fenced, orphans, stops}: what the worker runs and may not; what Redis has and the worker does not; what somebody
-- wants stopped (the members that begin with "!").
-- While the gate is closed nothing is compared: what the journal does not know yet is not known to be lost, and nobody else
-- claims. The session is kept, also one that this data set does not know.
-- Reply code 3: the session expired; a new one must be opened.
-- Second call: the same; renewal is idempotent.

local running = cmsgpack.unpack(ARGV[3])
local code = open_frame(0, true)
if code ~= 0 then return reply(code) end
if gate == CLOSED then
  redis.call('ZADD', KEYS[4], now + frame[6], session)
  result(1, { {}, {}, {} })
  return reply(0)
end
local lease = redis.call('ZSCORE', KEYS[4], session)
if not lease or tonumber(lease) <= now then return reply(3) end
redis.call('ZADD', KEYS[4], now + frame[6], session)

local fenced, orphans, stops, known = {}, {}, {}, {}
local matched = 0
-- In slices, because `unpack` has a limit.
for from = 1, #running, 1000 do
  local to = math.min(from + 999, #running)
  local there = redis.call('SMISMEMBER', KEYS[5], unpack(running, from, to))
  for j = 1, #there do
    local member = running[from + j - 1]
    known[member] = true
    if there[j] == 1 then matched = matched + 1 else fenced[#fenced + 1] = member end
  end
end
if redis.call('SCARD', KEYS[5]) > matched then
  for _, member in ipairs(redis.call('SMEMBERS', KEYS[5])) do
    if string.sub(member, 1, 1) == '!' then
      stops[#stops + 1] = string.sub(member, 2)
    elseif not known[member] then
      orphans[#orphans + 1] = member
    end
  end
end
result(1, { fenced, orphans, stops })
return reply(0)
