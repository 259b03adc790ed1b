-- Rate limits: GCRA on Redis's clock. One number per scope, the theoretical arrival time (TAT, microseconds); what does not
-- conform now books the moment at which it will, so that it comes back once and exactly then.
-- Params: a = emission interval (us), b = tolerance (us): (burst - 1) intervals. State: `tat`.
-- `wait`: zset member -> slot (us) of what was admitted or booked, so that a second asking is not counted twice.
-- Where a job holds something else in the same call (a slot), that says whether it was counted, and no slot is noted here.
-- `last`: the token of the call that counted last, where it booked nothing and noted nothing.
-- An attempt that may start always has a number to give back, a booked one BOOKED: its end takes the slot away, so that the
-- next attempt is counted again.

local Rate = { fields = { 'tat', 'last' } }

-- A booked slot that nobody used for this long is forgotten (us); it was counted, and its time has passed.
local SLOT_KEPT = 20000000
-- Below every TAT, so that it gives no token back.
local BOOKED = 1

function Rate.load(sc, state)
  sc.tat, sc.last = tonumber(state[1] or 0), state[2] or ''
  -- Each call moves what is due, or a reaper would look at a busy scope with every tick.
  if sc.next and sc.next <= now then sc.next = nil end
  -- Slots of what asks in this call.
  sc.slots = {}
  sc.is_bare = redis.call('EXISTS', sc.wait) == 0
  if #sc.members > 0 and not sc.is_bare then
    local found = redis.call('ZMSCORE', sc.wait, unpack(sc.members))
    for i = 1, #found do sc.slots[sc.members[i]] = found[i] and tonumber(found[i]) end
  end
  -- Members whose slots this call changes.
  sc.changes = {}
end

-- nil: it may start. Else the slot (ms) until which it has to wait.
function Rate.judge(sc, member, item)
  if item.was_counted then return nil end
  local slot = sc.slots[member]
  if slot and slot + SLOT_KEPT < micros then slot = nil end
  if slot then
    if slot <= micros then return nil end
    return WAIT, math.ceil(slot / 1000)
  end
  if math.max(sc.tat, micros) - sc.b <= micros then return nil end
  return BOOK, math.ceil((sc.tat - sc.b) / 1000)
end

function Rate.room(sc)
  local ahead = math.max(sc.tat, micros) - sc.b
  if not sc.is_bare or ahead > micros then return 0 end
  return math.floor((micros - ahead) / math.max(sc.a, 1)) + 1
end

function Rate.take_first(sc, _, n)
  sc.last, sc.tat = own_token, math.max(sc.tat, micros) + n * sc.a
  sc.changed, sc.is_idle = true, false
end

local function count(sc, member, slot)
  sc.tat = math.max(sc.tat, micros) + sc.a
  sc.slots[member], sc.changes[member], sc.last = slot, true, ''
  sc.changed, sc.is_idle = true, false
end

function Rate.take(sc, member, item)
  if item.was_counted then return item.is_second and HELD or BOOKED end
  local slot = sc.slots[member]
  if slot and slot + SLOT_KEPT >= micros then return BOOKED end
  if not item.keeper then
    count(sc, member, micros)
    return sc.tat
  end
  sc.last, sc.tat = own_token, math.max(sc.tat, micros) + sc.a
  sc.changed, sc.is_idle = true, false
  return BOOKED
end

-- Books the first moment that conforms. Nothing is booked twice: `judge` finds the slot from now on.
function Rate.book(sc, member) count(sc, member, sc.tat - sc.b) end

-- The end of an attempt forgets its slot: the next one is counted again. A claim that was refused gives the token back, as long as
-- nobody took one since (`mark`: the TAT that it made; or its call was the last one, and it had booked nothing before); later it
-- would put two starts into one interval, so the job keeps its slot and may come again with it.
function Rate.drop(sc, member, token, outcome, mark)
  if outcome == UNDONE then
    local slot = sc.slots[member]
    local is_last = slot and mark == sc.tat or not slot and (token == sc.last or token == sc.undone)
    if not is_last then return end
    -- Once: a repeated call finds neither the slot nor the token.
    if not slot then sc.last, sc.undone = '', token end
    sc.tat, sc.changed = sc.tat - sc.a, true
  end
  if not sc.is_bare then sc.slots[member], sc.changes[member] = nil, true end
end

function Rate.renew() return 1 end
function Rate.adopt() return BOOKED end

function Rate.tend(sc)
  redis.call('ZREMRANGEBYSCORE', sc.wait, '-inf', string.format('(%.0f', micros - SLOT_KEPT))
  sc.is_idle = sc.tat <= micros and redis.call('EXISTS', sc.wait) == 0
end

-- Slots that are booked stay: their jobs come back for them.
function Rate.reset(sc) sc.tat, sc.last, sc.changed = 0, '', true end

function Rate.write(sc)
  local add, rem = {}, {}
  for member in pairs(sc.changes) do
    local slot = sc.slots[member]
    if slot then
      local n = #add
      add[n + 1], add[n + 2] = string.format('%.0f', slot), member
    else
      rem[#rem + 1] = member
    end
  end
  in_slices('ZREM', sc.wait, rem)
  in_slices('ZADD', sc.wait, add)
  if sc.changed then
    set(sc, 'tat', string.format('%.0f', sc.tat))
    set(sc, 'last', sc.last)
  end
  look_at(sc, math.max(math.ceil(sc.tat / 1000), now + SLOT_KEPT / 1000))
end
