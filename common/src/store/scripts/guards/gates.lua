-- Gates: crash loop and breaker. An open gate lets nobody start, a half-open one a few probes, a closed one everybody. Who is
-- refused waits in line and sleeps; a gate that closes wakes all of them, in batches, and a half-open one its probes.
-- Params: a = window (ms), b = first time that it is open (ms), c = longest (ms), d = sample, share of failures (per mille),
-- probes, whether it is `shared`, how long an offer stands (s): 17, 10, 7, 1 and 11 bits. `shared`: the scope is asked only while
-- it is watched; a change of that is told by {10, scope, until (ms), 0 = not any more}. Who opens or closes it hears {11, scope,
-- level, until (ms)}.
-- State: `until` and `level` (how often in a row it was opened: each time for twice as long), `round` (how often ever), `probing`
-- (probes under way), `ends` (what ended in the window: ten slots), `seen` (reports that were counted, a line each), `told` (until
-- when it was said to be watched), `since` (when it was first said so, this time), `from` (the session whose ends were bad,
-- or SEVERAL), `died` (when the last death was counted). A gate that nobody closes is half-open after `until`: no lost message
-- keeps it open.
-- `hold`: hash member -> until (six bytes, ms) .. round (four bytes, of a probe; else 0) .. since (six bytes, ms) .. token, "?" for
-- a probe that is wanted. What is not renewed in time has crashed; what one session held counts as one crash, and so do sessions
-- that die within the time of a hold: that is one event (a Redis that was away). `wait`, `asleep`: as slots have them.
-- `domain/guard/gate.rs` decides the same.

local Gates = { fields = { 'until', 'level', 'round', 'probing', 'ends', 'seen', 'told', 'since', 'from', 'died' } }

do
  local OPEN, HALF_OPEN, CLOSED = 1, 2, 3
  local OFFER, HOLD, END_SLOTS, MOST_SEEN, SAY_AGAIN, SEVERAL = '?', '<I6I4I6', 10, 16, 2000, '*'
  -- Within this time everybody who was told that a type is watched has started one, if it can. The word is there at once; but what a
  -- worker began before it did not ask, and has to end first, and on a loaded machine that takes more than a second.
  local MOMENT = 3000

  local function phase_of(sc)
    if now < sc.until_ then return OPEN end
    return sc.level > 0 and HALF_OPEN or CLOSED
  end

  local function token_of(value) return string.sub(value, 17) end

  -- Whether it is a probe of the opening that stands now.
  local function is_probe(sc, value)
    if not value or sc.level == 0 then return false end
    local _, round = struct.unpack(HOLD, value)
    return round == sc.round
  end

  -- `since`: when it began, where that was not now.
  local function put(sc, member, until_, round, token, since)
    if is_probe(sc, sc.held[member]) then sc.probing = sc.probing - 1 end
    local value = struct.pack(HOLD, until_, round, since or now) .. token
    if is_probe(sc, value) then sc.probing = sc.probing + 1 end
    sc.held[member], sc.puts[member], sc.dels[member] = value, value, nil
    look_at(sc, until_)
  end

  local function free(sc, member)
    if is_probe(sc, sc.held[member]) then sc.probing = sc.probing - 1 end
    sc.held[member], sc.puts[member], sc.dels[member] = false, nil, true
  end

  local function leave(sc, member)
    if sc.waiting > 0 and redis.call('ZREM', sc.wait, member) == 1 then
      sc.waiting = sc.waiting - 1
      redis.call('HDEL', sc.asleep, member)
    end
  end

  -- Wakes whom the gate lets through now, who has waited longest first; many in several steps.
  local function let_go(sc)
    local phase = phase_of(sc)
    if sc.waiting == 0 or phase == OPEN then return end
    local room = MOST_WAKES - #wakes
    local n = math.min(room, sc.waiting, phase == CLOSED and room or sc.probes - sc.probing)
    if n <= 0 then
      if room <= 0 then look_at(sc, now) end
      return
    end
    local popped, members = redis.call('ZPOPMIN', sc.wait, n), {}
    for i = 1, #popped, 2 do members[#members + 1] = popped[i] end
    sc.waiting = #members < n and 0 or sc.waiting - n
    if #members == 0 then return end
    local acks = redis.call('HMGET', sc.asleep, unpack(members))
    redis.call('HDEL', sc.asleep, unpack(members))
    for i = 1, #members do
      if phase == HALF_OPEN then put(sc, members[i], now + sc.offer, sc.round, OFFER) end
      wake(sc, members[i], acks[i] or '')
    end
    if phase == CLOSED and sc.waiting > 0 then look_at(sc, now) end
  end

  -- The window: how many ended well and badly in each of its ten slots, the newest last.
  local function slot_ms(sc) return math.max(math.floor(sc.a / END_SLOTS), 1) end
  local function slot_now(sc) return math.floor(now / slot_ms(sc)) end

  local function counts(sc)
    if sc.counts then return sc.counts end
    local out, newest = {}, slot_now(sc)
    for i = 1, 2 * END_SLOTS do out[i] = 0 end
    -- The newest slot, then what each holds.
    local read = {}
    for n in string.gmatch(sc.ends, '%d+') do read[#read + 1] = tonumber(n) end
    local gone = newest - (read[1] or 0)
    if #read == 2 * END_SLOTS + 1 and gone >= 0 then
      for i = 2 * gone + 1, 2 * END_SLOTS do out[i - 2 * gone] = read[i + 1] end
    end
    sc.counts = out
    return out
  end

  local function sums(sc)
    local well, badly, all = 0, 0, counts(sc)
    for i = 1, 2 * END_SLOTS, 2 do well, badly = well + all[i], badly + all[i + 1] end
    return well, badly
  end

  local function no_ends(sc)
    sc.ends, sc.from, sc.counts, sc.changed = '', '', nil, true
  end

  -- One death, whatever it took along: '@' and the session, of a token or of the name of a report.
  local function death_of(token)
    return string.sub(token, 1, 1) == '@' and token or '@' .. (string.match(token, ' (.*)$') or '')
  end

  -- Everything that is held. What this call changed already stands in `held`.
  local function read_held(sc)
    local all = redis.call('HGETALL', sc.hold)
    for i = 1, #all, 2 do
      if sc.held[all[i]] == nil then sc.held[all[i]] = all[i + 1] end
    end
  end

  -- Whether there is no live session but the one that crashes are of: nobody could do better.
  local function is_alone(sc)
    local alive = redis.call('ZRANGEBYSCORE', sc.sessions, string.format('(%.0f', now), '+inf', 'LIMIT', 0, 2)
    for i = 1, #alive do
      if '@' .. alive[i] ~= sc.from then return false end
    end
    return true
  end

  -- Whether crashes of only one session suppress a type by themselves: where it is alone, or after everybody was told that it is
  -- watched, and had a moment to start one, and nobody else runs any.
  local function says_enough(sc)
    if sc.from == SEVERAL or is_alone(sc) then return true end
    if sc.since == 0 or now < sc.since + math.min(MOMENT, slot_ms(sc)) then return false end
    read_held(sc)
    for _, value in pairs(sc.held) do
      if value and token_of(value) ~= OFFER and death_of(token_of(value)) ~= sc.from then return false end
    end
    return true
  end

  local function trips(sc)
    local well, badly = sums(sc)
    if sc.kind == CRASH_LOOP then return badly >= sc.sample and (not sc.is_shared or says_enough(sc)) end
    return well + badly >= sc.sample and badly * 1000 >= sc.failures * (well + badly)
  end

  -- Half of what opens it: from then on it is to be known what ends well.
  local function is_watched(sc)
    if sc.level > 0 then return true end
    local _, badly = sums(sc)
    return badly > 0 and badly >= math.ceil(sc.sample / 2)
  end

  local function open(sc)
    local times = 2 ^ math.min(sc.level, 40)
    sc.level, sc.round, sc.probing = sc.level + 1, sc.round + 1, 0
    sc.until_ = now + math.min(sc.b * times, math.max(sc.b, sc.c))
    sc.turned = sc.level
    no_ends(sc)
  end

  local function close(sc)
    if sc.level > 0 then sc.turned = 0 end
    sc.until_, sc.level, sc.probing = 0, 0, 0
    no_ends(sc)
  end

  -- Something has ended. `mark`: it is counted once under this name. `of`: whose it was, as `death_of` says.
  local function count(sc, outcome, was_probe, mark, of)
    if outcome == UNDONE or outcome == NEUTRAL then return end
    local is_bad = outcome == CRASHED or outcome == TAKEN or (outcome == WENT_WRONG and sc.kind == BREAKER)
    local phase = phase_of(sc)
    if phase == HALF_OPEN and was_probe then
      if is_bad then open(sc) else close(sc) end
    elseif phase == CLOSED then
      if sc.kind == CRASH_LOOP and not is_bad then
        if sc.ends ~= '' then no_ends(sc) end
        return
      end
      if mark then
        if string.find('\n' .. sc.seen, '\n' .. mark .. '\n', 1, true) then return end
        sc.seen = sc.seen .. mark .. '\n'
        local _, lines = string.gsub(sc.seen, '\n', '')
        if lines > MOST_SEEN then sc.seen = string.match(sc.seen, '\n(.*)') end
      end
      if mark and mark == of then
        sc.changed = true
        if sc.died > 0 and now < sc.died + hold_ms then return end
        sc.died = now
      end
      if is_bad then
        local _, badly = sums(sc)
        sc.from = badly == 0 and of or sc.from == of and of or SEVERAL
      end
      local all = counts(sc)
      local i = is_bad and 2 * END_SLOTS or 2 * END_SLOTS - 1
      all[i] = all[i] + 1
      sc.ends, sc.changed = string.format('%.0f ', slot_now(sc)) .. table.concat(all, ' '), true
      if trips(sc) then open(sc) end
    end
  end

  -- Takes away what nobody holds any more: not renewed in time, or of the session that is named. As with slots, not yet where
  -- the data set was just made whole.
  local function reclaim(sc, of_session)
    read_held(sc)
    sc.next = nil
    for member, value in pairs(sc.held) do
      if value then
        local until_, token = struct.unpack(HOLD, value), token_of(value)
        local death = death_of(token)
        if gate ~= RESTORED and (until_ <= now or (of_session and death == '@' .. of_session)) then
          local was_probe = is_probe(sc, value)
          free(sc, member)
          if token ~= OFFER then count(sc, TAKEN, was_probe, death, death) end
        else
          look_at(sc, until_)
        end
      end
    end
  end

  function Gates.load(sc, state)
    sc.until_, sc.level, sc.round = tonumber(state[1] or 0), tonumber(state[2] or 0), tonumber(state[3] or 0)
    sc.probing, sc.ends, sc.seen, sc.told = tonumber(state[4] or 0), state[5] or '', state[6] or '', tonumber(state[7] or 0)
    sc.since, sc.from, sc.died = tonumber(state[8] or 0), state[9] or '', tonumber(state[10] or 0)
    local d = sc.d
    local function bits(n)
      local low = d % n
      d = (d - low) / n
      return low
    end
    sc.offer, sc.is_shared, sc.probes, sc.failures, sc.sample = 1000 * bits(2048), bits(2) == 1, bits(128), bits(1024), d
    sc.was_watched, sc.probing_before = sc.is_shared and is_watched(sc), sc.probing
    if not sc.was_watched then sc.since = 0 end
    sc.held, sc.puts, sc.dels, sc.waiting = {}, {}, {}, redis.call('ZCARD', sc.wait)
    if #sc.members > 0 then
      local found = redis.call('HMGET', sc.hold, unpack(sc.members))
      for i = 1, #found do sc.held[sc.members[i]] = found[i] end
    end
    if sc.next and sc.next <= now then reclaim(sc) end
    let_go(sc)
  end

  -- Whether what it holds lets it start.
  local function is_let(sc, value)
    if not value then return false end
    return token_of(value) ~= OFFER or (phase_of(sc) == HALF_OPEN and is_probe(sc, value))
  end

  function Gates.judge(sc, member)
    local phase = phase_of(sc)
    if phase == CLOSED or is_let(sc, sc.held[member]) then return nil end
    if phase == HALF_OPEN and sc.waiting == 0 and sc.probing < sc.probes then return nil end
    return QUEUE, sc.waiting
  end

  function Gates.take(sc, member)
    local value = sc.held[member]
    if value then
      if token_of(value) ~= OFFER and (struct.unpack(HOLD, value)) > now then return HELD end
    end
    leave(sc, member)
    put(sc, member, now + hold_ms, phase_of(sc) == HALF_OPEN and sc.round or 0, own_token)
    return 1
  end

  -- A probe stays one, whoever runs it.
  function Gates.adopt(sc, member)
    leave(sc, member)
    put(sc, member, now + hold_ms, is_probe(sc, sc.held[member]) and sc.round or 0, own_token)
    return 1
  end

  function Gates.queue(sc, member, arrival, ack)
    -- A probe that was wanted when the gate stood otherwise.
    if sc.held[member] then free(sc, member) end
    if redis.call('ZADD', sc.wait, arrival, member) == 1 then sc.waiting = sc.waiting + 1 end
    redis.call('HSET', sc.asleep, member, ack)
  end

  function Gates.turn(sc, member) return is_let(sc, sc.held[member]) or not redis.call('ZSCORE', sc.wait, member) end

  -- Another guard said no: the probe is wanted from the next.
  function Gates.decline(sc, member)
    local value = sc.held[member]
    if value and token_of(value) == OFFER then
      free(sc, member)
      let_go(sc)
    end
  end

  function Gates.drop(sc, member, token, outcome)
    local value = sc.held[member]
    if value and token_of(value) == token then
      local was_probe = is_probe(sc, value)
      free(sc, member)
      count(sc, outcome, was_probe, outcome == TAKEN and death_of(token) or nil, death_of(token))
      let_go(sc)
    elseif token == OFFER then
      leave(sc, member)
    end
  end

  -- It came in this very call: it need not be woken.
  function Gates.has_come(sc, member)
    local value = sc.puts[member]
    return value and token_of(value) == own_token
  end

  -- How something ended that did not ask, or whose holder cannot say so itself.
  function Gates.report(sc, member, mark, outcome)
    local value = sc.held[member]
    local was_probe = is_probe(sc, value)
    if value then free(sc, member) end
    count(sc, outcome, was_probe, mark, death_of(mark))
    let_go(sc)
  end

  function Gates.renew(sc, member, item)
    local token = item.text
    local value = sc.held[member]
    if not value then
      -- Its end is known already, unless the store has forgotten it.
      if item.flag ~= 1 then return 0 end
      put(sc, member, now + hold_ms, 0, token)
      return 2
    end
    if token_of(value) ~= token then return 0 end
    local _, round, since = struct.unpack(HOLD, value)
    put(sc, member, now + hold_ms, round, token, since)
    -- A probe that runs for longer than crashes are counted has not crashed; nobody waits for its end.
    if sc.kind == CRASH_LOOP and now >= since + sc.a and is_probe(sc, value) then
      count(sc, WENT_WELL, true)
      let_go(sc)
    end
    return 1
  end

  function Gates.tend(sc, of_session)
    reclaim(sc, of_session)
    let_go(sc)
    sc.is_tended = true
    if sc.waiting > 0 then return end
    for _, value in pairs(sc.held) do
      if value then return end
    end
    local phase, well, badly = phase_of(sc), sums(sc)
    sc.is_idle = well + badly == 0 and (phase == CLOSED or (phase == HALF_OPEN and now >= sc.until_ + sc.a))
  end

  -- Closed, and nothing was ever counted.
  function Gates.reset(sc)
    close(sc)
    sc.seen, sc.died = '', 0
    let_go(sc)
  end

  -- When there is something to be done by time.
  local function plan(sc)
    local phase = phase_of(sc)
    if phase == OPEN then look_at(sc, sc.until_) end
    if phase == CLOSED and sc.waiting > 0 then return look_at(sc, now) end
    -- A partition that was away when it was told, or has forgotten it, is told again.
    if sc.is_shared and is_watched(sc) then look_at(sc, now + math.max(math.floor(sc.a / 4), 1)) end
    local over = phase == HALF_OPEN and sc.until_ + sc.a or now + sc.a + slot_ms(sc)
    if phase ~= OPEN then look_at(sc, over > now and over or now + hold_ms) end
  end

  function Gates.write(sc)
    if sc.turned then wakes[#wakes + 1] = { 11, sc.place, sc.turned, sc.until_ } end
    local hset, hdel = {}, {}
    for member, value in pairs(sc.puts) do
      hset[#hset + 1], hset[#hset + 2] = member, value
    end
    for member in pairs(sc.dels) do hdel[#hdel + 1] = member end
    in_slices('HDEL', sc.hold, hdel)
    in_slices('HSET', sc.hold, hset)
    if sc.changed or sc.probing_before ~= sc.probing then
      set(sc, 'level', sc.level)
      set(sc, 'probing', sc.probing)
      set(sc, 'ends', sc.ends)
      set(sc, 'seen', sc.seen)
      set(sc, 'from', sc.from)
      set(sc, 'died', string.format('%.0f', sc.died))
    end
    if sc.changed then
      set(sc, 'until', string.format('%.0f', sc.until_))
      set(sc, 'round', string.format('%.0f', sc.round))
    end
    if sc.is_shared then
      local is_now = is_watched(sc)
      if is_now and (sc.changed or sc.is_tended or 2 * (sc.told - now) < sc.a) then
        sc.told = math.max(now, sc.until_) + sc.a
        set(sc, 'told', string.format('%.0f', sc.told))
        wakes[#wakes + 1] = { 10, sc.place, sc.told }
        -- Whoever is told may die of it: a reaper says it once more.
        if sc.changed then look_at(sc, now + SAY_AGAIN) end
      elseif sc.was_watched and not is_now then
        wakes[#wakes + 1] = { 10, sc.place, 0 }
      end
      local since = not is_now and 0 or sc.since > 0 and sc.since or now
      if is_now or sc.was_watched then set(sc, 'since', string.format('%.0f', since)) end
    end
    plan(sc)
  end
end
