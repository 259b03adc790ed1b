-- Slots: at most `a` attempts of a scope at once; a lock is a scope with one slot and a counter that only grows.
-- Params: a = slots, b = how long an offer stands (ms). State: `fence` (locks).
-- `hold`: hash member -> until (six bytes, ms) .. token; the token is that of the call which created it, or "?" for an offer: a slot
-- that came free and is kept for a waiter whose carrier was woken. `wait`: zset member -> arrival. `asleep`: hash member -> ack subject.
-- Rule: while somebody waits, no slot is free; so nobody overtakes.

local Slots = { fields = { 'fence' } }
local OFFER = '?'

local function held_until(value) return (struct.unpack('<I6', value)) end
local function token_of(value) return string.sub(value, 7) end

local function put(sc, member, until_, token)
  local value = struct.pack('<I6', until_) .. token
  if not sc.held[member] then sc.n = sc.n + 1 end
  sc.held[member] = value
  sc.puts[member], sc.dels[member] = value, nil
  look_at(sc, until_)
end

local function free(sc, member)
  if sc.held[member] then sc.n = sc.n - 1 end
  sc.held[member] = false
  sc.puts[member], sc.dels[member] = nil, true
end

local function leave_queue(sc, member)
  if sc.waiting == 0 then return end
  if redis.call('ZREM', sc.wait, member) == 1 then
    sc.waiting = sc.waiting - 1
    redis.call('HDEL', sc.asleep, member)
  end
end

-- Gives what is free to who has waited longest; many at once in several steps.
local function promote(sc)
  while sc.n < sc.a and sc.waiting > 0 do
    if #wakes >= MOST_WAKES then
      look_at(sc, now)
      return
    end
    local first = redis.call('ZPOPMIN', sc.wait)
    if #first == 0 then
      sc.waiting = 0
      return
    end
    local member = first[1]
    sc.waiting = sc.waiting - 1
    local ack = redis.call('HGET', sc.asleep, member)
    redis.call('HDEL', sc.asleep, member)
    put(sc, member, now + sc.b, OFFER)
    wake(sc, member, ack or '')
  end
end

-- Takes away what nobody holds any more: not renewed in time, or of the session that is named.
local function reclaim(sc, of_session)
  local all = redis.call('HGETALL', sc.hold)
  -- What this call changed already stands in `held`.
  for i = 1, #all, 2 do
    if sc.held[all[i]] == nil then sc.held[all[i]] = all[i + 1] end
  end
  sc.next = nil
  for member, value in pairs(sc.held) do
    if value then
      local until_ = held_until(value)
      local is_theirs = of_session and string.sub(value, -#of_session) == of_session
      if until_ <= now or is_theirs then free(sc, member) else look_at(sc, until_) end
    end
  end
end

function Slots.load(sc, state)
  sc.fence = tonumber(state[1] or 0)
  sc.held, sc.puts, sc.dels = {}, {}, {}
  sc.n, sc.waiting = redis.call('HLEN', sc.hold), redis.call('ZCARD', sc.wait)
  if #sc.members > 0 then
    local found = redis.call('HMGET', sc.hold, unpack(sc.members))
    for i = 1, #found do sc.held[sc.members[i]] = found[i] end
  end
  if sc.next and sc.next <= now then reclaim(sc) end
  promote(sc)
end

function Slots.judge(sc, member)
  local value = sc.held[member]
  if value or (sc.n < sc.a and sc.waiting == 0) then return nil end
  return QUEUE, sc.waiting
end

function Slots.take(sc, member)
  local value = sc.held[member]
  if value and token_of(value) ~= OFFER and held_until(value) > now then return HELD end
  return Slots.adopt(sc, member)
end

-- Whoever was granted the attempt has the slot, whoever created it.
function Slots.adopt(sc, member)
  leave_queue(sc, member)
  put(sc, member, now + hold_ms, own_token)
  if sc.kind ~= LOCK then return 1 end
  -- Above every counter of before, also where those are forgotten: an idle lock leaves nothing behind.
  sc.fence = math.max(sc.fence + 1, now)
  sc.changed = true
  return sc.fence
end

function Slots.queue(sc, member, arrival, ack)
  if redis.call('ZADD', sc.wait, arrival, member) == 1 then sc.waiting = sc.waiting + 1 end
  redis.call('HSET', sc.asleep, member, ack)
end

-- An offer was made, or its place in line is gone.
function Slots.turn(sc, member) return sc.held[member] or not redis.call('ZSCORE', sc.wait, member) end

-- Another guard said no: a slot that was offered goes to the next.
function Slots.decline(sc, member)
  local value = sc.held[member]
  if value and token_of(value) == OFFER then
    free(sc, member)
    promote(sc)
  end
end

function Slots.drop(sc, member, token)
  local value = sc.held[member]
  if value and token_of(value) == token then
    free(sc, member)
    promote(sc)
  elseif token == OFFER then
    leave_queue(sc, member)
  end
end

-- 1 renewed, 0 it is gone, 2 it was gone and is held again (after a loss of data, where nobody else took it).
function Slots.renew(sc, member, token, may_restore)
  local value = sc.held[member]
  if value and token_of(value) == token then
    put(sc, member, now + hold_ms, token)
    return 1
  end
  if not value and (may_restore or sc.kind ~= LOCK) then
    put(sc, member, now + hold_ms, token)
    return 2
  end
  return 0
end

function Slots.tend(sc, of_session)
  reclaim(sc, of_session)
  promote(sc)
  sc.is_idle = sc.n == 0 and sc.waiting == 0
end

function Slots.write(sc)
  local hset, hdel = {}, {}
  for member, value in pairs(sc.puts) do
    hset[#hset + 1], hset[#hset + 2] = member, value
  end
  for member in pairs(sc.dels) do hdel[#hdel + 1] = member end
  in_slices('HDEL', sc.hold, hdel)
  in_slices('HSET', sc.hold, hset)
  if sc.changed then set(sc, 'fence', string.format('%.0f', sc.fence)) end
end
