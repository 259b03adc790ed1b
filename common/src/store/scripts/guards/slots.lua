-- Slots: at most `a` attempts of a scope at once; a lock is a scope with one slot and a counter that only grows.
-- Params: a = slots, b = how long an offer stands (ms). State (locks): `fence`, the last fencing token; `since`, when that was.
-- `hold`: hash member -> until (six bytes, ms) .. token; the token is that of the call which created it, or of an offer: "?", how
-- often it was made (a digit), ack subject; where that is no times, until when it may be kept (ms). `wait`: zset member -> arrival.
-- `asleep`: hash member -> ack subject.
-- An offer is a slot that came free and is kept for a waiter whose carrier was woken. A wake may be lost (whoever sent it died, the
-- nak met the sleeper's own): so it is repeated while the offer stands, and when it ends: the waiter then comes by itself.
-- Made no times: what is kept for a job that waits for something else; nobody is woken for it.
-- Rule: while somebody waits, no slot is free; so nobody overtakes. Where the limit was lowered, who runs goes on; an offer lets its
-- waiter start only as far as the limit of now goes, else that one is in its place in line again.

local Slots = { fields = { 'fence', 'since' } }

-- A script has room for 200 locals: what only this kind needs ends with it.
do

local OFFER, OFFER_BYTE = '?', 63
-- Wakes of one offer.
local OFFER_TRIES = 5
-- What a job keeps while it waits for something else ends after this long (ms), and is looked at before: the job may be over.
local KEPT_FOR, LOOKED_AT = 3600000, 30000
-- In the place of an ack subject: whether it is over is looked at, and nobody is woken (`wake.rs`).
local ONLY_LOOK = '-'

local function held_until(value) return (struct.unpack('<I6', value)) end
local function token_of(value) return string.sub(value, 7) end
local function is_offer(value) return string.byte(value, 7) == OFFER_BYTE end
local function is_reserved(value) return is_offer(value) and string.byte(value, 8) == 48 end

-- What this call gives, the same to everybody.
local own_until = now + hold_ms
local own_value = struct.pack('<I6', own_until) .. own_token

local function keep(sc, member, until_, value)
  if not sc.held[member] then sc.n = sc.n + 1 end
  sc.held[member] = value
  local n = #sc.puts
  sc.puts[n + 1], sc.puts[n + 2] = member, value
  sc.is_idle = false
  if not sc.next or until_ < sc.next then look_at(sc, until_) end
end

local function put(sc, member, until_, token) keep(sc, member, until_, struct.pack('<I6', until_) .. token) end

local function free(sc, member)
  if sc.held[member] then sc.n = sc.n - 1 end
  sc.held[member] = false
  sc.frees[#sc.frees + 1] = member
  -- What was put may be what is freed now.
  sc.is_mixed = #sc.puts > 0
end

local function leave_queue(sc, member)
  if sc.waiting == 0 then return end
  if redis.call('ZREM', sc.wait, member) == 1 then
    sc.waiting = sc.waiting - 1
    redis.call('HDEL', sc.asleep, member)
  end
end

local function offer(sc, member, tries, ack)
  put(sc, member, now + math.ceil(sc.b / OFFER_TRIES), OFFER .. tries .. ack)
  wake(sc, member, ack)
end

-- Gives what is free to who has waited longest; many at once in several steps.
local function promote(sc)
  while sc.n < sc.a and sc.waiting > 0 do
    if #wakes >= MOST_WAKES or gate == RESTORED then
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
    offer(sc, member, 1, ack or '')
  end
end

-- The waiter did not come yet: it is woken again; in the end the slot is free.
local function offer_again(sc, member, value)
  local tries, ack = string.byte(value, 8) - 48, string.sub(value, 9)
  if #wakes >= MOST_WAKES then
    look_at(sc, now)
  elseif tries < OFFER_TRIES then
    offer(sc, member, tries + 1, ack)
  else
    free(sc, member)
    wake(sc, member, ack)
  end
end

-- Not woken: it waits for something else. But who has its outcome already leaves its place.
local function look_again(sc, member, until_)
  if until_ <= now then return free(sc, member) end
  -- What ends before the next look is not worth one.
  local is_for_long = until_ > now + LOOKED_AT
  if is_for_long and #wakes < MOST_WAKES and not sc.has_looked then wake(sc, member, ONLY_LOOK) end
  look_at(sc, math.min(until_, now + LOOKED_AT))
end

-- Takes away what nobody holds any more: not renewed in time, or of the session that is named. In a data set that was just made
-- whole nobody had the time yet to renew what an older copy has.
local function reclaim(sc, of_session)
  local all = redis.call('HGETALL', sc.hold)
  -- What this call changed already stands in `held`.
  for i = 1, #all, 2 do
    if sc.held[all[i]] == nil then sc.held[all[i]] = all[i + 1] end
  end
  sc.next = nil
  local theirs = of_session and ' ' .. of_session
  for member, value in pairs(sc.held) do
    if value then
      local until_ = held_until(value)
      if gate == RESTORED then
        look_at(sc, until_)
      elseif is_offer(value) then
        if is_reserved(value) then
          look_again(sc, member, until_)
        elseif until_ <= now then
          offer_again(sc, member, value)
        else
          look_at(sc, until_)
        end
      elseif until_ <= now or (theirs and string.sub(value, -#theirs) == theirs) then
        free(sc, member)
      else
        look_at(sc, until_)
      end
    end
  end
  sc.has_looked = true
end

function Slots.load(sc, state)
  sc.fence = tonumber(state[1] or 0)
  -- What this call puts (member, value, and so on) and frees.
  sc.held, sc.puts, sc.frees, sc.given = {}, {}, {}, {}
  sc.n, sc.waiting = redis.call('HLEN', sc.hold), redis.call('ZCARD', sc.wait)
  if #sc.members > 0 then
    local found = redis.call('HMGET', sc.hold, unpack(sc.members))
    for i = 1, #found do sc.held[sc.members[i]] = found[i] end
  end
  if sc.next and sc.next <= now then reclaim(sc) end
  promote(sc)
end

-- Whether it has a slot already, and whether that was made by another asking and not by this very one, repeated. Another
-- delivery of the job in the same call is another asking.
function Slots.has(sc, member)
  local value = sc.held[member]
  if not value or is_offer(value) or held_until(value) <= now then return false end
  return true, sc.given[member] or token_of(value) ~= own_token
end

-- A lock is asked one by one: each has a number of its own.
function Slots.room(sc)
  return sc.kind == CONCURRENCY and sc.waiting == 0 and math.max(sc.a - sc.n, 0) or 0
end

function Slots.take_first(sc, members, n)
  local held, puts, given, at = sc.held, sc.puts, sc.given, #sc.puts
  for k = 1, n do
    local member = members[k]
    if held[member] then
      n = k - 1
      break
    end
    held[member], given[member], puts[at + 1], puts[at + 2] = own_value, true, member, own_value
    at = at + 2
  end
  if n > 0 then
    sc.n, sc.is_idle = sc.n + n, false
    look_at(sc, own_until)
  end
  return n
end

function Slots.judge(sc, member)
  local value = sc.held[member]
  if value and (sc.n <= sc.a or not is_offer(value)) then return nil end
  if not value and sc.n < sc.a and sc.waiting == 0 then return nil end
  return QUEUE, sc.waiting
end

function Slots.take(sc, member)
  local _, is_second = Slots.has(sc, member)
  return is_second and HELD or Slots.adopt(sc, member)
end

-- What another delivery held may be gone since, and somebody else have the slot.
function Slots.may_adopt(sc, member) return not Slots.judge(sc, member) end

-- Above every token that this lock ever gave, wherever that may have gone: an idle lock leaves nothing behind but the highest of
-- all that are forgotten (`fence` of the store); a data set that was lost, a base in time. Not by the clock alone: it may be set back.
local function next_fence(sc)
  local above = math.max(sc.fence, base)
  if sc.fence == 0 then above = math.max(above, tonumber(redis.call('HGET', sc.store, 'fence') or 0)) end
  return math.max(above + 1, now)
end

local function remember_fence(sc)
  if sc.fence > tonumber(redis.call('HGET', sc.store, 'fence') or 0) then
    redis.call('HSET', sc.store, 'fence', string.format('%.0f', sc.fence))
  end
end

-- Whoever was granted the attempt has the slot, whoever created it.
function Slots.adopt(sc, member)
  local value = sc.held[member]
  local is_repeated = value and token_of(value) == own_token and not sc.given[member]
  if not value or is_offer(value) then leave_queue(sc, member) end
  keep(sc, member, own_until, own_value)
  sc.given[member] = true
  if sc.kind ~= LOCK then return 1 end
  if is_repeated then return sc.fence end
  sc.fence, sc.changed = next_fence(sc), true
  set(sc, 'since', now)
  return sc.fence
end

-- Who stands in line keeps its place, also when a second carrier of it comes.
function Slots.queue(sc, member, arrival, ack)
  -- It was offered a slot under a higher limit.
  if sc.held[member] then free(sc, member) end
  if redis.call('ZADD', sc.wait, 'NX', arrival, member) == 1 then sc.waiting = sc.waiting + 1 end
  redis.call('HSET', sc.asleep, member, ack)
  sc.is_idle = false
  return redis.call('ZRANK', sc.wait, member)
end

function Slots.has_come(sc, member)
  local value = sc.held[member]
  return value and not is_offer(value)
end

-- An offer was made, or its place in line is gone.
function Slots.turn(sc, member) return sc.held[member] or not redis.call('ZSCORE', sc.wait, member) end

-- Another guard said no: a slot that was offered goes to the next, and it waits there, not here.
function Slots.decline(sc, member)
  local value = sc.held[member]
  if value and is_offer(value) then
    free(sc, member)
    promote(sc)
  elseif not value then
    leave_queue(sc, member)
  end
end

-- A line that moves only where several locks are free at once would be passed by for ever by who needs one of them: so they are
-- kept. Everybody keeps only what comes before what it waits for, in one order: nobody waits in a circle.
function Slots.reserve(sc, member, token, slot)
  local value = sc.held[member]
  local is_by_offer = not token or token == OFFER
  local is_its = value and (is_by_offer and is_offer(value) or not is_by_offer and token_of(value) == token)
  if not is_its and (value or sc.n >= sc.a or sc.waiting > 0) then return false end
  leave_queue(sc, member)
  -- From the first time on: asking again makes it no longer.
  local latest = value and is_reserved(value) and tonumber(string.sub(value, 9)) or now + KEPT_FOR
  put(sc, member, slot and math.min(slot + sc.b, latest) or latest, OFFER .. '0' .. string.format('%.0f', latest))
  look_at(sc, now + LOOKED_AT)
  return true
end

local function is_by(value, token) return #value == 6 + #token and string.find(value, token, 7, true) == 7 end

function Slots.drop(sc, member, token)
  local value = sc.held[member]
  if value and (token == OFFER and is_offer(value) or is_by(value, token)) then
    free(sc, member)
    promote(sc)
  elseif token == OFFER then
    leave_queue(sc, member)
  end
end

-- What one call gave to many is the same text: it is compared once.
function Slots.drop_all(sc, members, token)
  if token == OFFER then
    for k = 1, #members do Slots.drop(sc, members[k], token) end
    return
  end
  local known
  for k = 1, #members do
    local value = sc.held[members[k]]
    if value and (value == known or is_by(value, token)) then
      known = value
      free(sc, members[k])
    end
  end
  promote(sc)
end

-- 1 renewed, 0 it is gone, 2 it was gone and is held again. An attempt that runs does have a slot, whatever the limit says; a
-- lock is held again only after a loss of data, and where nobody else has it. Who stands in line runs no more.
function Slots.renew(sc, member, item)
  local value, token = sc.held[member], item.text
  if value and token_of(value) == token then
    put(sc, member, now + hold_ms, token)
    return 1
  end
  local is_lost = sc.kind == LOCK and (item.flag ~= 1 or sc.n >= sc.a)
  if value or is_lost or redis.call('ZSCORE', sc.wait, member) then return 0 end
  put(sc, member, now + hold_ms, token)
  if sc.kind == LOCK then sc.fence, sc.changed = math.max(sc.fence, number_of(item)), true end
  return 2
end

function Slots.tend(sc, of_session)
  reclaim(sc, of_session)
  promote(sc)
  sc.is_idle = sc.n == 0 and sc.waiting == 0
  if sc.is_idle then remember_fence(sc) end
end

-- Who waits may ask again, the first ones: their rule may be in force no more, which is not known here. What is held stays held.
function Slots.reset(sc)
  local first = sc.kind ~= LOCK and sc.waiting > 0 and redis.call('ZPOPMIN', sc.wait, math.max(MOST_WAKES - #wakes, 0)) or {}
  for i = 1, #first, 2 do
    local ack = redis.call('HGET', sc.asleep, first[i])
    redis.call('HDEL', sc.asleep, first[i])
    wake(sc, first[i], ack or '')
  end
  sc.waiting = sc.waiting - #first / 2
end

-- What is put and what is freed; of what was both, the last stands in `held`.
function Slots.write(sc)
  in_slices('HDEL', sc.hold, sc.frees)
  local puts = sc.puts
  if sc.is_mixed then
    puts = {}
    for i = 1, #sc.puts, 2 do
      local n, member = #puts, sc.puts[i]
      if sc.held[member] then puts[n + 1], puts[n + 2] = member, sc.held[member] end
    end
  end
  in_slices('HSET', sc.hold, puts)
  if sc.changed then set(sc, 'fence', string.format('%.0f', sc.fence)) end
end

end
