-- Loops: what the jobs of one root do within a window. A window begins with the first job that is counted; with its end all is
-- forgotten. A job counts when it is let pass, once in a window however often it asks, and stays counted.
-- Params: a = jobs that ask for the same work, b = window (ms), c = jobs. State: `since`: begin of the window (ms).
-- `wait`: zset member -> when it was counted (ms). `hold`: hash work -> jobs of it. `work` is what the item says (its text).

local Loops = { fields = { 'since' } }
-- A script may have 200 local names at its top: those of a kind stay inside.
do
local REPEATS, FAN_OUT = 1, 2

function Loops.load(sc, state)
  sc.since = tonumber(state[1] or 0)
  sc.is_over = sc.since + sc.b <= now
  sc.counted, sc.works, sc.add, sc.n = {}, {}, {}, 0
  if sc.is_over then return end
  sc.n = redis.call('ZCARD', sc.wait)
  if #sc.members > 0 then
    local found = redis.call('ZMSCORE', sc.wait, unpack(sc.members))
    for i = 1, #found do sc.counted[sc.members[i]] = found[i] and true end
  end
end

-- Workers may not delete keys: emptied, they are gone.
local function empty(sc)
  redis.call('ZREMRANGEBYSCORE', sc.wait, '-inf', '+inf')
  local all, works = redis.call('HGETALL', sc.hold), {}
  for i = 1, #all, 2 do works[#works + 1] = all[i] end
  in_slices('HDEL', sc.hold, works)
end

local function of_work(sc, work)
  local n = sc.works[work]
  if not n then
    n = not sc.is_over and tonumber(redis.call('HGET', sc.hold, work) or 0) or 0
    sc.works[work] = n
  end
  return n
end

function Loops.judge(sc, member, item)
  if sc.counted[member] then return nil end
  local n = of_work(sc, item.text)
  if n >= sc.a then return STOP, n, REPEATS end
  if sc.n >= sc.c then return STOP, sc.n, FAN_OUT end
  return nil
end

function Loops.take(sc, member, item)
  if sc.counted[member] then return HELD end
  sc.counted[member], sc.n = true, sc.n + 1
  sc.works[item.text] = of_work(sc, item.text) + 1
  local n = #sc.add
  sc.add[n + 1], sc.add[n + 2] = now, member
  return 1
end

-- Nothing is held, so nothing is given back, kept or taken over.
function Loops.adopt() return HELD end
function Loops.drop() end
function Loops.renew() return 1 end
function Loops.turn() return true end

local function forget(sc)
  empty(sc)
  sc.is_over, sc.is_idle, sc.n, sc.counted, sc.works = true, true, 0, {}, {}
end

function Loops.tend(sc)
  sc.next = nil
  if sc.is_over then forget(sc) end
end

-- As if the window were over.
Loops.reset = forget

function Loops.write(sc)
  if #sc.add > 0 then
    if sc.is_over then
      empty(sc)
      sc.since = now
      set(sc, 'since', string.format('%.0f', now))
    end
    in_slices('ZADD', sc.wait, sc.add)
    local works = {}
    for work, n in pairs(sc.works) do
      if n > 0 then works[#works + 1], works[#works + 2] = work, n end
    end
    in_slices('HSET', sc.hold, works)
  end
  look_at(sc, math.max(sc.since, now - sc.b) + sc.b)
end
end
