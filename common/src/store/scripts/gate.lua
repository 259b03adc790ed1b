-- gate: closes the gate of a data set that has lost something, says who makes it whole, opens it again (docs/redis-loss.md).
-- ARGV[1] adds: [6] act: 1 look, and close if the data set is not whole; 2 make it whole for so long; 3 it is restored; 4 open
--   [7] acts 1: incarnation of the data set, if it is closed now; 2 to 4: who does it (text)
--   [8] act 1: creation time of JOBS (text; '' = not known)    [9] act 1: 1 = JOBS is known to be a younger stream
--   [10] act 2: for how long (ms); 3, 4: how long after the closing, or the restoring, at the earliest (ms)
--   [11] act 3: highest commit in the journal
-- Results: {incarnation, gate, why, former incarnation, who makes it whole ('' = nobody now), ms since the closing, ms since the
--   restoring, creation time of JOBS, ms of the store's clock when it was closed}
-- Reply code 5: acts 2 to 4: somebody else does it, it is not time, or the gate is not there.
-- Why: empty (the data set was gone), older (a copy from before), jobs (it belongs to another JOBS).
-- Second call: the same; what is closed is closed once.

local FIELDS = { 'inc', 'commit', 'gate', 'why', 'prev', 'by', 'until', 'closed', 'restored', 'jobs' }
local store = {}
local function read()
  local values = redis.call('HMGET', KEYS[1], unpack(FIELDS))
  for i = 1, #FIELDS do store[FIELDS[i]] = values[i] end
  commit, gate = tonumber(store.commit or 0), tonumber(store.gate or 0)
end
read()

local act = frame[6]
if act == 1 then
  local why = not store.inc and 'empty' or (commit < seen or is_forked(redis.call('HGET', KEYS[1], ARGV[5]))) and 'older' or frame[9] == 1 and store.jobs ~= frame[8] and 'jobs'
  if why == 'jobs' then
    redis.call('HSET', KEYS[1], 'jobs', frame[8], 'gate', CLOSED, 'closed', now, 'why', why)
    redis.call('HDEL', KEYS[1], 'by', 'until', 'restored')
  elseif why then
    -- A second loss before the first was repaired leaves the data of the one before it.
    local prev = gate == CLOSED and store.prev or store.inc or ''
    local jobs = frame[8] ~= '' and frame[8] or store.jobs or ''
    -- Far above everything that may have been committed and was not seen.
    redis.call('HSET', KEYS[1], 'inc', frame[7], 'jobs', jobs, 'commit', math.max(commit, seen) + 1000000, 'gate', CLOSED,
      'closed', now, 'base', now, 'why', why, 'prev', prev)
    redis.call('HDEL', KEYS[1], 'by', 'until', 'restored')
    for i = 0, MARKS - 1 do redis.call('HDEL', KEYS[1], 'm' .. i) end
  end
else
  if store.inc ~= incarnation then return reply(store.inc and 2 or 1) end
  local is_ours = not store.by or store.by == frame[7] or tonumber(store['until']) <= now
  if gate == 0 or not is_ours then return reply(5) end
  if act == 2 then
    redis.call('HSET', KEYS[1], 'by', frame[7], 'until', now + frame[10])
  elseif act == 3 then
    if gate ~= CLOSED or tonumber(store.closed) + frame[10] > now then return reply(5) end
    local above = math.max(commit, frame[11] + 1000000)
    redis.call('HSET', KEYS[1], 'gate', RESTORED, 'restored', now, 'commit', above)
  else
    if gate ~= RESTORED or tonumber(store.restored) + frame[10] > now then return reply(5) end
    redis.call('HDEL', KEYS[1], 'gate', 'why', 'prev', 'by', 'until', 'closed', 'restored')
  end
end
read()
local by = store.by and tonumber(store['until']) > now and store.by or ''
result(1, { store.inc, gate, store.why or '', store.prev or '', by, now - tonumber(store.closed or now),
  now - tonumber(store.restored or now), store.jobs, tonumber(store.closed or 0) })
return reply(0)
