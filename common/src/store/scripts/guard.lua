-- guard: whether jobs may start, by every guard and lock of a partition that applies to them: all or none.
-- KEYS[7] guards  zset  scope -> when a reaper looks at it (ms); then for each scope: state (hash), hold (hash), wait (zset), asleep (hash)
-- ARGV[1] adds: [6] for how long a hold lasts unless renewed (ms), [7] number of scopes.
-- ARGV[3] packed: the scopes (kind, a, b, c, d, hash, label), then the items.
-- Item: op, text, flag, scopes (two bytes each, base 255, from 1), number of members, members; then two blocks, each with its
--   length: what each has as `more`, and as `number`; an empty one where none has any.
--   1 ask     text: what it asks for (loops); more: ack subject; number: arrival (ms); flag: 1 = it was woken in vain
--             too often, and keeps what it gets
--   2 release text: token; flag: how it ended; number: of what is kept, until when its job waits (ms), 0 = nobody knows
--   3 renew   text: token; flag: 1 = may hold again what is gone; number: what was given with it
--   4 adopt   the attempt was granted: what others made for it is its own
--   5 tend    text: a session that is dead, or ''
--   6 check   whether its turn came since it joined the line
--   7 reset   as if nothing had ever been counted, where the kind counts anything; who waits for slots or a moment asks again
--   8 open    who waits in a line of a pause may come, the first ones
--   9 report  something ended that did not ask; text: it is counted once under this name; flag: how it ended
-- Whoever asks or reports brings the rules that it has: they are stored, and are in force from this call on. Everybody else was
-- given something under rules that may have changed since, and goes by those that are stored, where any are.
-- Results, none for a release and a report: {0, HELD or a number for each scope} passes    {1, scope, ms} waits until
--   {2, scope, before it} waits in line    {3, scope, count, limit} stopped    {4} not yet: the store was just rebuilt, or what is to be
--   adopted is somebody else's by now
--   {5, 1 renewed / 0 gone / 2 held again ...}    {6, number ...} adopted    {7} tended    {8, 1 its turn has come / 0}
--   and at the end, of whom to wake: {9, scope, member, ack subject}, and where a scope begins or ends to be watched:
--   {10, scope, until (ms) / 0}; where this call opened or closed a gate: {11, scope, openings in a row / 0, open until (ms) / 0}
-- Second call: a member that has what it asks for is told HELD, and nothing is counted twice; by the same call id it is told the
-- same, except for the number of a rate limit.

local KINDS = { Rate, Slots, Slots, Pauses, Gates, Gates, [LOOP] = Loops }
local SCOPE, ITEM = '<BI6I6I6I6ss', '<BsBsH'

local code = open_frame(0)
if code ~= 0 then return reply(code) end

local n_scopes, text, place = frame[7], ARGV[3], 1
local scopes, hashes = {}, {}
for s = 1, n_scopes do
  local kind, a, b, c, d, hash, label, after = struct.unpack(SCOPE, text, place)
  place = after
  local k = FIRST_JOB + 1 + 4 * (s - 1)
  hashes[s] = hash
  scopes[s] = { place = s, kind = kind, a = a, b = b, c = c, d = d, hash = hash, label = label, state = KEYS[k + 1],
    hold = KEYS[k + 2], wait = KEYS[k + 3], asleep = KEYS[k + 4], store = KEYS[1], sessions = KEYS[4],
    members = {}, sets = {}, of = KINDS[kind] }
end

-- An item is for all members to whom the same is done; `member` is the one whose turn it is, the `k`th.
local items = {}
while place <= #text do
  local op, first_text, flag, which, n, after = struct.unpack(ITEM, text, place)
  local members = { struct.unpack(string.rep('s', n), text, after) }
  after, members[n + 1] = members[n + 1], nil
  local mores_length, mores = struct.unpack('<I', text, after)
  local numbers_length, numbers = struct.unpack('<I', text, mores + mores_length)
  place = numbers + numbers_length
  local item = { op = op, text = first_text, flag = flag, members = members, source = text, mores_at = mores,
    mores_length = mores_length, numbers_at = numbers_length > 0 and numbers }
  local bytes = { string.byte(which, 1, -1) }
  for j = 1, #bytes, 2 do
    local sc = scopes[bytes[j] + (bytes[j + 1] - 1) * 255]
    item[#item + 1] = sc
    if op == 1 or op == 9 then sc.brings_rules = true end
    if sc.of.has then item.keeper = sc end
    if members[1] ~= '' then
      -- Most scopes have one item: its list is theirs.
      local all = #sc.members == 0 and members or { unpack(sc.members) }
      for i = 1, all == members and 0 or n do all[#all + 1] = members[i] end
      sc.members = all
    end
  end
  items[#items + 1] = item
end

-- What is stored instead of what the caller has; whether that can be read.
local function go_by(sc, params)
  local a, b, c, d = string.match(params, '^%S+ (%S+) (%S+) (%S+) (%S+)$')
  a, b, c, d = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
  if not (a and b and c and d) then return false end
  sc.a, sc.b, sc.c, sc.d = a, b, c, d
  return true
end

if n_scopes > 0 then
  local looks
  for s = 1, n_scopes do
    local sc, at = scopes[s], (s - 1) % 2000
    -- `unpack` has a limit, and each of some hundred jobs may have sixteen locks of its own.
    if at == 0 then looks = redis.call('ZMSCORE', KEYS[FIRST_JOB + 1], unpack(hashes, s, math.min(s + 1999, n_scopes))) end
    sc.next = looks[at + 1] and tonumber(looks[at + 1])
    local params = sc.kind .. ' ' .. sc.a .. ' ' .. sc.b .. ' ' .. sc.c .. ' ' .. sc.d
    local state = redis.call('HMGET', sc.state, 'params', unpack(sc.of.fields))
    if state[1] ~= params and (sc.brings_rules or not state[1] or not go_by(sc, state[1])) then
      set(sc, 'params', params)
      sc.is_changed = state[1]
      set(sc, 'label', sc.label)
    end
    table.remove(state, 1)
    sc.of.load(sc, state)
  end
end

-- What most are told is the same: packed once.
local told = {}
local answers = 0
local function passes(a, b)
  answers = answers + 1
  if a > 1 or (b and b > 1) then return result(answers, { 0, a, b }) end
  local known_by = b and 2 + 2 * a + b or a
  local packed = told[known_by]
  if not packed then
    packed = cmsgpack.pack({ 0, a, b })
    told[known_by] = packed
  end
  results[answers] = packed
end

-- Most calls find room for all of them, and nobody known yet: so many of the first are let pass, as `ask` would do one by one.
local function ask_first(item)
  local keeper, n = item.keeper, #item.members
  if gate == RESTORED or not (keeper and keeper.of.take_first) then return 0 end
  for j = 1, #item do
    local of = item[j].of
    -- One that keeps what it gives may know somebody: of those there is one.
    n = of.room and (item[j] == keeper or not of.has) and math.min(n, of.room(item[j])) or 0
  end
  n = keeper.of.take_first(keeper, item.members, n)
  if n == 0 then return 0 end
  local answer = { 0 }
  for j = 1, #item do
    if item[j] ~= keeper then item[j].of.take_first(item[j], item.members, n) end
    answer[j + 1] = 1
  end
  local packed = cmsgpack.pack(answer)
  for k = 1, n do results[answers + k] = packed end
  answers = answers + n
  return n
end

-- It has to come back: every limit to which it does not conform promises it a moment, so that at the latest it has all of them.
local function promise_all(item, member, by, number)
  for j = 1, #item do
    local sc = item[j]
    if sc.of == Rate then
      local how, ms = Rate.judge(sc, member, item)
      if how == BOOK then Rate.book(sc, member) end
      if how and ms > number then by, number = sc, ms end
    end
  end
  return by, number
end

local function ask(item)
  local member, refused, by, number, at, limit, queues = item.member, nil, nil, nil, 0, nil, false
  local keeper = item.keeper
  if keeper then item.was_counted, item.is_second = keeper.of.has(keeper, member) end
  for j = 1, #item do
    local how, ms, which = item[j].of.judge(item[j], member, item)
    -- What stops comes first; a moment that was promised before a line; a line before one that could be, the latest of those.
    if how then
      local rank = how == STOP and 4 or how == WAIT and 3 or how == QUEUE and 2 or 1
      queues = queues or how == QUEUE
      if rank > (refused or 0) or (rank == refused and rank ~= 2 and ms > number) then
        refused, by, number, at, limit = rank, item[j], ms, j, which
      end
    end
  end
  if not refused then
    if #item < 3 then
      local a = item[1].of.take(item[1], member, item)
      return passes(a, item[2] and item[2].of.take(item[2], member, item))
    end
    local answer = { 0 }
    for j = 1, #item do answer[j + 1] = item[j].of.take(item[j], member, item) end
    return answer
  end
  local waits_until = by.of == Rate
  if waits_until and not queues then by, number = promise_all(item, member, by, number) end
  -- What comes before a line in the order that everybody keeps, and all that is there when it comes back at a moment, it may keep;
  -- and does, where that moment is near: else all in line would be woken for one slot, each for a moment later than the last.
  local keeps = item.flag == 1 and (by.of == Slots and at or waits_until and #item + 1) or 0
  for j = 1, #item do
    local sc = item[j]
    local may = sc.of.reserve and (j < keeps or (waits_until and number <= now + sc.b))
    if not (may and sc.of.reserve(sc, member, nil, waits_until and number)) and sc.of.decline and not (refused == 2 and sc == by) then
      sc.of.decline(sc, member)
    end
  end
  if refused == 4 then return { 3, by.place, number, limit } end
  if refused == 2 then
    return { 2, by.place, by.of.queue(by, member, number_of(item), more_of(item)) or number }
  end
  return { 1, by.place, number }
end

-- What one call gave to all of them, and is not kept.
local function release_all(item)
  for j = 1, #item do
    local sc, of, members = item[j], item[j].of, item.members
    if of.drop_all then
      of.drop_all(sc, members, item.text, item.flag)
    else
      for k = 1, #members do of.drop(sc, members[k], item.text, item.flag) end
    end
  end
end

local function done(item, member)
  local op, answer = item.op, nil
  if op == 1 then
    answer = gate == RESTORED and { 4 } or ask(item)
  elseif op == 2 then
    local until_ = number_of(item)
    for j = 1, #item do
      local sc, of = item[j], item[j].of
      if not of.reserve then
        of.drop(sc, member, item.text, UNDONE)
      elseif not of.reserve(sc, member, item.text, until_ > 0 and until_) then
        -- Where it is only in line it waits elsewhere now.
        of.drop(sc, member, item.text, NEUTRAL)
      end
    end
  elseif op == 3 then
    answer = { 5 }
    for j = 1, #item do answer[j + 1] = item[j].of.renew(item[j], member, item) end
  elseif op == 4 then
    local may = true
    for j = 1, #item do may = may and (not item[j].of.may_adopt or item[j].of.may_adopt(item[j], member)) end
    answer = { may and 6 or 4 }
    for j = 1, may and #item or 0 do answer[j + 1] = item[j].of.adopt(item[j], member) end
  elseif op == 5 then
    for j = 1, #item do item[j].of.tend(item[j], item.text ~= '' and item.text) end
    answer = { 7 }
  elseif op == 8 then
    if item[1].of.open then item[1].of.open(item[1]) end
    answer = { 7 }
  elseif op == 9 then
    for j = 1, #item do item[j].of.report(item[j], member, item.text, item.flag) end
  elseif op == 6 then
    answer = { 8, item[1].of.turn(item[1], member) and 1 or 0 }
  elseif op == 7 then
    if item[1].of.reset then item[1].of.reset(item[1]) end
    answer = { 7 }
  end
  if answer then
    answers = answers + 1
    result(answers, answer)
  end
end

-- Who is given something, or a place in line, must not lose it unnoticed when a replica takes over that lacks this call.
for i = 1, #items do
  if items[i].op == 1 or items[i].op == 4 then
    raise_commit()
    break
  end
end

for i = 1, #items do
  local item = items[i]
  local members = item.members
  local first = 1
  if item.op == 1 then
    first = 1 + ask_first(item)
  elseif item.op == 2 and item.flag ~= KEPT then
    release_all(item)
    first = #members + 1
  end
  for k = first, #members do
    item.member, item.k = members[k], k
    done(item, members[k])
  end
end

local looks, idle = {}, {}
for s = 1, n_scopes do
  local sc = scopes[s]
  sc.of.write(sc)
  if sc.is_idle then
    -- Holds, line and sleepers are gone with their last member.
    redis.call('HDEL', sc.state, 'params', 'label', unpack(sc.of.fields))
    idle[#idle + 1] = sc.hash
  else
    -- Where nobody will look, nothing is: what the scope is called would stay for ever.
    if sc.next and #sc.sets > 0 then redis.call('HSET', sc.state, unpack(sc.sets)) end
    if sc.is_moved then
      local n = #looks
      looks[n + 1], looks[n + 2] = string.format('%.0f', sc.next), sc.hash
    end
  end
end
in_slices('ZADD', KEYS[FIRST_JOB + 1], looks)
in_slices('ZREM', KEYS[FIRST_JOB + 1], idle)
for i = 1, #wakes do
  local sc, member = scopes[wakes[i][2]], wakes[i][3]
  if not (sc.of.has_come and sc.of.has_come(sc, member)) then
    answers = answers + 1
    result(answers, wakes[i])
  end
end
return reply(0)
