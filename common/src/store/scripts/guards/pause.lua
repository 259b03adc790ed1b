-- Pauses: a line without slots. Whoever asks here is held by a pause that its worker knows of (the pauses themselves are kept by
-- NATS): it waits, until somebody who knows that the pause is over opens the line.
-- Params: none. State: none. `wait`: zset member -> arrival; `asleep`: hash member -> ack subject.

local Pauses = { fields = {} }
-- So long after the last look a reaper looks whether the pause is still there (ms).
local PAUSE_LOOK = 2000

function Pauses.load(sc)
  sc.waiting = redis.call('ZCARD', sc.wait)
  if not sc.next then look_at(sc, now + PAUSE_LOOK) end
end

function Pauses.judge(sc) return QUEUE, sc.waiting end

function Pauses.queue(sc, member, arrival, ack)
  if redis.call('ZADD', sc.wait, arrival, member) == 1 then sc.waiting = sc.waiting + 1 end
  redis.call('HSET', sc.asleep, member, ack)
end

-- Its place in line is gone: the line was opened before it slept.
function Pauses.turn(sc, member) return not redis.call('ZSCORE', sc.wait, member) end

-- Lets go who has waited longest; many at once in several steps.
function Pauses.open(sc)
  local room = MOST_WAKES - #wakes
  local first = room > 0 and redis.call('ZPOPMIN', sc.wait, room) or {}
  for i = 1, #first, 2 do
    local ack = redis.call('HGET', sc.asleep, first[i])
    redis.call('HDEL', sc.asleep, first[i])
    wake(sc, first[i], ack or '')
  end
  sc.waiting = sc.waiting - #first / 2
  Pauses.tend(sc)
  if sc.waiting > 0 then look_at(sc, now) end
end

function Pauses.tend(sc)
  sc.next = nil
  look_at(sc, now + PAUSE_LOOK)
  sc.is_idle = sc.waiting == 0
end

-- Nobody ever has anything of it.
function Pauses.take() return HELD end
function Pauses.adopt() return HELD end
function Pauses.renew() return 1 end
function Pauses.drop() end
function Pauses.write() end
