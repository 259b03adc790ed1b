-- Shared by the kinds of guards: what they say, what they hear, how a scope is written.
--
-- A kind is a table of functions over a scope `sc`; `member` is "<job id>/<generation>":
--   fields                    what it keeps in the scope's state hash
--   load(sc, state)           reads what the members of this call need; `state`: the values of `fields`
--   has(sc, member)           whether it holds something here already, and whether by another asking (where it holds)
--   judge(sc, member, item)   nil: it may start. Else how it has to wait, and a number (WAIT, BOOK: until, ms; QUEUE,
--                             STOP: a count, and which limit it is over). Writes nothing.
--   take(sc, member, item)    it starts: HELD, or a number above 0 when this very call made its hold
--   room(sc), take_first(sc, members, n)   how many may start that are not known here; so many of the first do, each with the
--                             number 1 (a kind that has them). The keeper stops before the first that is known, and says how many.
--   may_adopt(sc, member)     whether `adopt` may be done (where it may not always)
--   adopt(sc, member)         the attempt that was granted has it now, whoever made it: the same
--   report(sc, member, mark, outcome)   how something ended that did not ask (where a kind has it)
--   queue(sc, member, arrival, ack)      joins the line; how many are before it
--   turn, book, decline       what follows from QUEUE and BOOK; another guard of the job said no (where a kind has them)
--   reserve(sc, member, token, until_)   what it has by this token, or (nil) was offered or could have, is kept for it while it
--                             waits for something else (until then); whether it is
--   drop(sc, member, token, outcome)   what the token made is given back
--   drop_all(sc, members, token, outcome)   the same of many at once (where that is less work)
--   renew(sc, member, item)   1 renewed, 0 gone, 2 held again; item: text = token, flag = 1 where it may be, number: a fencing token
--   has_come(sc, member)      in this very call, so that it need not be woken
--   tend(sc, of_session)      what is due by time; what that session held is free. Sets `is_idle` when nothing is left
--   open(sc)                  lets those in line go (pauses)
--   reset(sc)                 nothing was ever counted (where it counts anything); who waits asks again
--   write(sc)                 at the end of the call

local RATE, CONCURRENCY, LOCK, PAUSE, CRASH_LOOP, BREAKER, LOOP = 1, 2, 3, 4, 5, 6, 7
-- How a start is refused. WAIT: a moment was promised. BOOK: one can be. QUEUE: in line. STOP: for ever.
local WAIT, BOOK, QUEUE, STOP = 1, 2, 3, 4
local HELD = 0
-- How what is dropped has ended. UNDONE: it never ran. TAKEN: lost, with its session. KEPT: it never ran either, and what can be
-- kept for it is.
local UNDONE, WENT_WELL, WENT_WRONG, CRASHED, NEUTRAL, TAKEN, KEPT = 0, 1, 2, 3, 4, 5, 6
-- Sleepers that one call wakes at most; a reaper goes on at once.
local MOST_WAKES = 200

local micros = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local hold_ms = frame[6]
-- Ends with the session, by which a reaper finds what a dead one held.
local own_token = call .. ' ' .. session

-- Carriers that sleep at the broker and may come now: {scope, member, ack subject}.
local wakes = {}
local function wake(sc, member, ack) wakes[#wakes + 1] = { 9, sc.place, member, ack } end

-- A reaper looks at the scope at `ms`, or before.
local function look_at(sc, ms)
  if not sc.next or ms < sc.next then sc.next, sc.is_moved = ms, true end
end

local function set(sc, field, value)
  local n = #sc.sets
  sc.sets[n + 1], sc.sets[n + 2] = field, value
end

-- What the member whose turn it is has for itself: read only where it is wanted.
local function number_of(item)
  return item.numbers_at and (struct.unpack('<I6', item.source, item.numbers_at + 6 * (item.k - 1))) or 0
end

local function more_of(item)
  if item.mores_length == 0 then return '' end
  if not item.mores then
    item.mores = { struct.unpack(string.rep('s', #item.members), item.source, item.mores_at) }
  end
  return item.mores[item.k]
end

-- `unpack` has a limit.
local function in_slices(command, key, args)
  for from = 1, #args, 2000 do redis.call(command, key, unpack(args, from, math.min(from + 1999, #args))) end
end
