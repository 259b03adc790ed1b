-- Rate limits: GCRA on Redis's clock, judged by what really starts. What does not conform now is promised the moment at which it
-- will, so that it comes back once and exactly then. A promise is no start: who comes for it late is judged again, before those who
-- were promised nothing, and what nobody comes for costs no token.
-- Params: a = emission interval (us), b = tolerance (us): (burst - 1) intervals. State: `tat`, `book`, `late`: theoretical arrival
-- times (us), none before the one that is named first: by all starts; behind all promises, by which newcomers are judged; behind the
-- promises to those who came late. `last`: the token of the call that started something last. `waking`, after a reset: who was
-- promised a moment behind the first and up to the second (us) sleeps for it, and is still to be woken.
-- `wait`: zset member -> the moment that it was promised (us), or minus that at which it started, so that a second asking is not
-- counted twice. Where a job holds something else in the same call (a slot), that says whether it was counted.
-- The end of an attempt ends its promise: the next one is counted again.
-- A promise is never worse than none: who was promised a moment behind that of a newcomer, by a rule that was stricter or before a
-- reset, is judged as one.

local Rate = { fields = { 'tat', 'book', 'late', 'last' } }

do

-- So long after its moment a promise is forgotten (us): the job came and waits for something else, or is over.
local PROMISE_KEPT = 3600000000
-- So long a second asking of what has started is not counted (us).
local START_KEPT = 20000000
-- A reaper looks so long after the last call (ms).
local LOOK_AFTER = 20000
-- Who was promised a moment that came less than that ago may be on its way (us).
local ON_ITS_WAY = 20000000
local COUNTED = 1

-- Forgets what nobody will come for any more.
local function trim(sc)
  local oldest = micros - PROMISE_KEPT
  redis.call('ZREMRANGEBYSCORE', sc.wait, '0', string.format('(%.0f', oldest))
  redis.call('ZREMRANGEBYSCORE', sc.wait, string.format('(%.0f', -oldest), '(0')
end

-- Wakes who sleeps for a moment of before the reset, the earliest first, a part with each call. Its moment is now: so it comes
-- before those who were promised nothing, and is woken once.
local function go_on_waking(sc)
  local waking = redis.call('HGET', sc.state, 'waking')
  if not waking then return end
  local from, upto = string.match(waking, '^(%S+) (%S+)$')
  local room = gate == RESTORED and 0 or MOST_WAKES - #wakes
  local first = {}
  if room > 0 then
    from = string.format('(%.0f', math.max(tonumber(from), micros))
    first = redis.call('ZRANGEBYSCORE', sc.wait, from, upto, 'WITHSCORES', 'LIMIT', 0, room)
  end
  local woken = {}
  for i = 1, #first, 2 do
    local member = first[i]
    wake(sc, member, '')
    woken[i], woken[i + 1] = string.format('%.0f', micros), member
    if sc.slots and sc.slots[member] then sc.slots[member] = micros end
  end
  in_slices('ZADD', sc.wait, woken)
  if #first < 2 * room then
    redis.call('HDEL', sc.state, 'waking')
    return
  end
  if room > 0 then redis.call('HSET', sc.state, 'waking', string.format('%s %s', first[#first], upto)) end
  look_at(sc, now)
end

-- The rule is another one than that by which was counted and promised: nobody waits longer for what is behind than the new one
-- wants for as many.
local function go_by_new_rule(sc)
  sc.tat = math.min(sc.tat, micros + sc.b + sc.a)
  local promised = redis.call('ZCOUNT', sc.wait, string.format('%.0f', micros - ON_ITS_WAY), '+inf')
  local behind = math.max(sc.tat, micros) + promised * (sc.a + sc.gap)
  sc.late = math.max(math.min(sc.late, behind), sc.tat)
  sc.book = math.max(math.min(sc.book, behind), sc.late)
  sc.changed = true
  -- Where they are not ahead they are not written.
  set(sc, 'book', '0')
  set(sc, 'late', '0')
end

function Rate.load(sc, state)
  sc.tat, sc.last = tonumber(state[1] or 0), state[4] or ''
  sc.late = math.max(sc.tat, tonumber(state[3] or 0))
  sc.book = math.max(sc.late, tonumber(state[2] or 0))
  -- Where no burst makes up for it, who starts a moment late delays the next: moments that are promised are a little further apart.
  sc.gap = sc.b < sc.a and math.min(math.floor(sc.a / 20), 20000) or 0
  if sc.is_changed then go_by_new_rule(sc) end
  sc.was_last, sc.is_bare = sc.last == own_token, redis.call('EXISTS', sc.wait) == 0
  -- Each call moves what is due, or a reaper would look at a busy scope with every tick.
  if sc.next and sc.next <= now then
    sc.next = nil
    if not sc.is_bare then
      trim(sc)
      -- A reaper goes on with that, or whoever reset it.
      if redis.call('HGET', sc.state, 'waking') then look_at(sc, now) end
    end
  end
  -- What was promised to those who ask in this call; whose this call changes; who was told that it may start.
  sc.slots, sc.changes, sc.given = {}, {}, {}
  sc.knows_none = true
  if #sc.members > 0 and not sc.is_bare then
    local found = redis.call('ZMSCORE', sc.wait, unpack(sc.members))
    for i = 1, #found do
      if found[i] then sc.slots[sc.members[i]], sc.knows_none = tonumber(found[i]), false end
    end
  end
end

-- What it was promised, unless a newcomer waits less.
local function slot_of(sc, member)
  local slot = sc.slots[member]
  return slot and (slot <= micros or slot <= sc.book - sc.b) and slot or nil
end

local function has_started(slot) return slot < 0 and micros + slot < START_KEPT end

-- Who came for its moment and does not conform goes behind others of those; but a little delay of its own turn is no other turn.
local function moment_after(sc, slot)
  return (sc.tat - sc.b - slot < sc.a and sc.tat or sc.late) - sc.b
end

-- nil: it may start. Else the moment (ms) until which it has to wait.
function Rate.judge(sc, member, item)
  if item.was_counted then return nil end
  local slot = slot_of(sc, member)
  if not slot then
    if sc.book - sc.b <= micros then return nil end
    return BOOK, math.ceil((sc.book - sc.b) / 1000)
  end
  if slot > micros then return WAIT, math.ceil(slot / 1000) end
  if has_started(slot) or sc.tat - sc.b <= micros then return nil end
  return BOOK, math.ceil(moment_after(sc, slot) / 1000)
end

-- Promises the moment that `judge` told.
function Rate.book(sc, member)
  local slot = slot_of(sc, member)
  if slot then
    slot = moment_after(sc, slot)
    sc.late = math.max(sc.late, slot + sc.b + sc.a + sc.gap)
    sc.book = math.max(sc.book, sc.late)
  else
    slot = sc.book - sc.b
    sc.book = sc.book + sc.a + sc.gap
  end
  sc.slots[member], sc.changes[member] = slot, true
  sc.changed, sc.is_idle = true, false
end

local function start(sc, n, is_new)
  if is_new then sc.book = math.max(sc.book, micros) + n * sc.a end
  sc.tat = math.max(sc.tat, micros) + n * sc.a
  sc.late = math.max(sc.late, sc.tat)
  sc.book = math.max(sc.book, sc.late)
  sc.last, sc.changed, sc.is_idle = own_token, true, false
end

function Rate.room(sc)
  local ahead = math.max(sc.book, micros) - sc.b
  if not sc.knows_none or ahead > micros then return 0 end
  return math.floor((micros - ahead) / math.max(sc.a, 1)) + 1
end

function Rate.take_first(sc, _, n) start(sc, n, true) end

function Rate.take(sc, member, item)
  if item.was_counted then return item.is_second and HELD or COUNTED end
  local slot = slot_of(sc, member)
  if slot and has_started(slot) then
    -- This very call, repeated, or another delivery of the job.
    local is_repeated = sc.was_last and not sc.given[member]
    sc.given[member] = true
    return is_repeated and COUNTED or HELD
  end
  start(sc, 1, not slot)
  if not item.keeper then
    sc.slots[member], sc.changes[member], sc.given[member] = -micros, true, true
  elseif not slot and sc.slots[member] then
    -- It runs, and sleeps for no moment any more.
    sc.slots[member], sc.changes[member] = nil, true
  end
  return COUNTED
end

-- What never ran gives its token back as long as nobody took one since, once, and keeps what it was promised: who waits for something
-- else comes again.
function Rate.drop(sc, member, token, outcome)
  local slot = sc.slots[member]
  if outcome ~= UNDONE then
    if slot then sc.slots[member], sc.changes[member] = nil, true end
    return
  end
  if token == sc.last or token == sc.undone then
    local tat = sc.tat
    sc.tat, sc.last, sc.undone, sc.changed = tat - sc.a, '', token, true
    if sc.late == tat then sc.late = sc.tat end
    if sc.book == tat then sc.book = sc.tat end
  end
  if slot and slot < 0 then sc.slots[member], sc.changes[member] = micros, true end
end

-- Most hold a slot as well, and are not known here.
function Rate.drop_all(sc, members, token, outcome)
  if outcome ~= UNDONE and next(sc.slots) == nil then return end
  for k = 1, #members do Rate.drop(sc, members[k], token, outcome) end
end

function Rate.renew() return 1 end

-- It runs: whoever it was that was counted for it gives nothing back.
function Rate.adopt(sc)
  sc.last, sc.changed = '', true
  return COUNTED
end

-- It asked in this call, and was told.
function Rate.has_come(sc, member) return sc.changes[member] end

function Rate.tend(sc)
  sc.next = nil
  trim(sc)
  go_on_waking(sc)
  sc.is_idle = sc.book <= micros and redis.call('EXISTS', sc.wait) == 0
end

-- Who waits for a moment is woken and judged anew, as one whose moment is now. For each of them there is a place before those who
-- were promised nothing.
function Rate.reset(sc)
  local ahead = string.format('(%.0f', micros)
  local promised = redis.call('ZCOUNT', sc.wait, ahead, '+inf')
  sc.tat, sc.late, sc.last, sc.changed = 0, 0, '', true
  sc.book = promised > 0 and micros + promised * (sc.a + sc.gap) or 0
  -- Where nothing is promised they are not written.
  set(sc, 'book', '0')
  set(sc, 'late', '0')
  if promised == 0 then return end
  local last = redis.call('ZRANGE', sc.wait, -1, -1, 'WITHSCORES')
  redis.call('HSET', sc.state, 'waking', string.format('%.0f %.0f', micros, tonumber(last[2])))
  go_on_waking(sc)
end

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
    if sc.book > sc.tat then set(sc, 'book', string.format('%.0f', sc.book)) end
    if sc.late > sc.tat then set(sc, 'late', string.format('%.0f', sc.late)) end
  end
  look_at(sc, math.max(math.ceil(sc.book / 1000), now + LOOK_AFTER))
end

end
