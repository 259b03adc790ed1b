-- Shared by every script (concatenated in front of it). Record layout, event writer, outbox, call frame.
--
-- Call frame, the same for every script:
--   KEYS[1] store     hash    identity of this data set: inc, jobs, commit; gate, while it is not whole (docs/redis-loss.md);
--                             watched, while types crash (`watch`)
--   KEYS[2] due       zset    one member per open job: its earliest deadline (ms)
--   KEYS[3] outbox    stream  journal entries not yet confirmed by JetStream
--   KEYS[4] sessions  zset    session -> expiry (ms)
--   KEYS[5] run       set     "<id>:<epoch>" of what the session of this call runs; "!<id>:<epoch>" of what somebody wants stopped
--   KEYS[6] ended     list    ended jobs in the order of their ends, for retention: "@<ms>", then the ids of that moment
--   KEYS[7..6+n]      string  records of the n jobs, in the order of the items
--   KEYS[7+n..]       string  their `data` keys, where an item names one by position
--   ARGV[1] msgpack array  {incarnation, call id, session, keep ms, look ms, ...script's own}
--   ARGV[2] msgpack array  outbox entry ids that JetStream confirmed: trimmed here
--   ARGV[3] the items: a msgpack array, or packed one after the other where the script says so
--   ARGV[4] text          highest commit that the caller's process has seen of this partition
--   ARGV[5] text          field of KEYS[1] with the mark of the last commit that the caller's process made ('' = it made none)
--   ARGV[6] text          that mark: "<commit> <call id>"
-- Reply: array of strings: msgpack {code, now ms, commit, gate, mark of the commit that this call made or ''}; the results, one msgpack value after the other; then for each entry: id, text.
-- Cost: Redis's Lua hashes every byte of every string that comes to be, so a byte costs about a nanosecond each time, and a
--   table that grows element by element is moved five times on its way to 20. So records, events and items of the frequent
--   scripts are packed by position (`struct`), numbers in little-endian order, texts ended by a zero byte.
-- Code: 0 done, 1 no store, 2 store of another incarnation, 3 session lost, 4 outbox full, 5 not at this gate, 6 an older copy, or one that has gone on without commits that the caller made.
-- Second call with the same call id: the same results; nothing is written twice.

-- A record in memory: `true` (what `pcall` said when it was read), the fields, then the bytes of a newer release's fields.
local VERSION, RECORD = 3, '<BBBI4I6I6I4I4I4I4I6I6I6I6I6I6I6I4Bssssssssssssss'
local V, STATUS, CONTRACT, GEN, REV, EPOCH, ATTEMPT, CHARGED, MAXR, STARTFAILS = 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
-- DEADLINE: time limit of the attempt that runs; before the first one: `expires_at`, or 0. PROMISE: by when the next thing that
-- is promised has to happen (0: nothing is): created: the start is told; acked, progressing: progress; sla_missed: the nudge;
-- not running: the job is claimed (or somebody looks why not); terminal_pending: the receipt is delivered. TOLD: tries of what
-- is being told. CANCEL: 1 once the attempt that runs was asked to stop.
local DUE, STARTED, DEADLINE, CREATED, FINISH_BY, ENDED, PROMISE, TOLD, CANCEL = 12, 13, 14, 15, 16, 17, 18, 19, 20
local QUEUE, TYPE, KEY, TRACE, CARRIER, REPLY, SESSION, CODE, CALL, ENTRY = 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
-- NOTIFY: who is to be told (JSON object, or '' for nobody). SUMMARY: public, one line. PRINT: fingerprint of the last report.
-- TELL_ERROR: why the last try to tell did not surface. LOST: attempts of this generation that were lost; one byte after the
-- texts, which is there only where it is not 0 or something follows it.
local NOTIFY, SUMMARY, PRINT, TELL_ERROR, LOST = 31, 32, 33, 34, 35
local MORE = 36

local QUEUED, SCHEDULED, DEFERRED, RUNNING, WAITING_INPUT, RETRY_WAIT = 1, 2, 3, 4, 5, 6
local DONE, FAILED, CANCELLED, TIMED_OUT = 7, 8, 9, 10
local C_CREATED, C_ACKED, C_PROGRESSING, C_SLA_MISSED, C_TERMINAL_PENDING, C_TERMINAL_ACKED, C_TERMINAL_FAILED = 1, 2, 3, 4, 5, 6, 7
local ENTRY_CAP = 262144
-- Until its receipt is looked for, where a requester waits (ms).
local RECEIPT_WITHIN = 60000
local FIRST_JOB = 6

local frame = cmsgpack.unpack(ARGV[1])
local incarnation, call, session, keep, look = frame[1], frame[2], frame[3], frame[4], frame[5]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local seen = tonumber(ARGV[4])
-- GATE: 0 open, 1 closed (the data set is being rebuilt), 2 restored (whole again; attempts of the time before may still live).
-- BASE: every epoch of an attempt of an earlier data set is below it.
local CLOSED, RESTORED = 1, 2
local commit, gate, base, watched = 0, 0, 0, nil
-- The last commits of the data set, each with the call that made it: a copy that lost the newest ones and has made others since
-- has the same numbers, but other calls.
local MARKS = 64
local mark = ''

-- Numbers as text, made once per call: turning one into text costs as much as a table of events lookups.
local text_of = setmetatable({}, {
  __index = function(known, n)
    local s = string.format('%d', n)
    known[n] = s
    return s
  end,
})

-- Results in the order of the items, packed; equal ones are packed once where the script says by what they are known.
local results = {}
local packed_before = {}
local function result(i, value) results[i] = cmsgpack.pack(value) end
local function same_result(i, known_by, make, rec)
  local text = packed_before[known_by]
  if not text then
    text = cmsgpack.pack(make(rec))
    packed_before[known_by] = text
  end
  results[i] = text
end

-- Entries for the caller, flat, after the places of head and results.
local out = { '', '' }
local function reply(code)
  out[1], out[2] = cmsgpack.pack({ code, now, commit, gate, mark }), table.concat(results)
  return out
end

-- RFC 3339 with milliseconds (days to civil date after Howard Hinnant's published algorithm).
local function iso(ms)
  local days = math.floor(ms / 86400000)
  local rest = ms - days * 86400000
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local d = doy - math.floor((153 * mp + 2) / 5) + 1
  local m = mp < 10 and mp + 3 or mp - 9
  local y = yoe + era * 400 + (m <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%03dZ', y, m, d, math.floor(rest / 3600000),
    math.floor(rest / 60000) % 60, math.floor(rest / 1000) % 60, rest % 1000)
end
local function is_terminal(rec) return rec[STATUS] >= DONE end
local function is_running(rec) return rec[STATUS] == RUNNING or rec[STATUS] == WAITING_INPUT end
local function is_told(rec) return rec[CONTRACT] >= C_TERMINAL_ACKED end
local function owns(rec, epoch) return rec and is_running(rec) and rec[EPOCH] == epoch and rec[SESSION] == session end

local function fresh(queue, type_, key, trace, carrier, reply_, created, finish_by, max_retries, notify, summary)
  return { true, VERSION, QUEUED, C_CREATED, 1, 0, 0, 0, 0, max_retries, 0, 0, 0, 0, created, finish_by, 0, 0, 0, 0,
    queue, type_, key, trace, carrier, reply_, '', '', '', '', notify, summary, '', '', 0, '' }
end

-- The one place where progress is promised anew: by a start that was told, and by every kind of progress.
local function promise_progress(rec, within) rec[PROMISE], rec[TOLD], rec[TELL_ERROR] = now + within, 0, '' end

-- What waits is to be claimed when it is due; where it is not within `look`, the reaper looks why.
local function wait_until(rec, due)
  rec[DUE], rec[PROMISE], rec[DEADLINE] = due, math.max(due, now) + look, 0
end

-- Whether it waits for a time of its own. A moment that a rate limit promised is none: who comes before it was let through by the
-- limit, or that is gone.
local function is_early(rec)
  return rec[STATUS] ~= QUEUED and rec[DUE] > now and not (rec[STATUS] == DEFERRED and rec[CODE] == 'rate_limited')
end

-- Journal: events gather in one bucket per subject; a bucket becomes one outbox entry, one journal message. An entry is a
-- head and its events, packed; whoever publishes it writes them out as JSON (`store/entry.rs`).
local ENTRY_HEAD, EVENT = '<BI6I6ss', '<BBI4I6I4I6I6sssssssss'
-- What an event may become as JSON, beyond its texts.
local EVENT_JSON = 700
local buckets, plain, ending = {}, {}, {}

-- Appends an entry to the reply.
local function give(id, text)
  local n = #out
  out[n + 1], out[n + 2] = id, text
end

local function flush(bucket)
  local events = bucket.events
  if #events < 2 then return end
  events[1] = struct.pack(ENTRY_HEAD, 2, commit, now, bucket.suffix, session)
  local text = table.concat(events)
  local id = redis.call('XADD', KEYS[3], '*', 'e', text)
  for i = 1, #bucket.recs do bucket.recs[i][ENTRY] = id end
  give(id, text)
  bucket.events, bucket.recs, bucket.size = { '' }, {}, 2
end

-- Ordering: an outcome's entry comes last, so that the outbox has a job's events in the order of `rev`, and the entry that
-- a record remembers is the one with its outcome.
local function flush_all()
  for i = 1, #plain do flush(plain[i]) end
  for i = 1, #ending do flush(ending[i]) end
end

-- The one writer of journal events. `data` is a JSON object, or empty; of `finished` a receipt without its last brace, or
-- empty for one that says only what the event says. Raises `rev`.
local function emit(rec, id, kind, data)
  local rev = rec[REV] + 1
  rec[REV] = rev
  local text = struct.pack(EVENT, rec[STATUS], rec[CONTRACT], rec[GEN], rev, rec[ATTEMPT], rec[EPOCH], rec[STARTED], kind, id,
    rec[TYPE], rec[KEY], rec[SESSION] == session and '=' or rec[SESSION], rec[CARRIER], rec[TRACE], data,
    kind == 'finished' and rec[NOTIFY] or '')
  local suffix = rec[QUEUE]
  if kind == 'finished' then suffix = suffix .. '.ended' end
  local bucket = buckets[suffix]
  if not bucket then
    bucket = { suffix = suffix, events = { '' }, recs = {}, size = 2 }
    buckets[suffix] = bucket
    local list = kind == 'finished' and ending or plain
    list[#list + 1] = bucket
  elseif bucket.size + #text + EVENT_JSON > ENTRY_CAP then
    flush_all()
  end
  local n = #bucket.recs + 1
  bucket.events[n + 1], bucket.recs[n] = text, rec
  bucket.size = bucket.size + #text + EVENT_JSON
end

-- The last event of a generation: its receipt's bytes are fixed here, by what stands in the event and the store's clock.
local function emit_finished(rec, id, status, code, receipt)
  rec[STATUS], rec[CODE], rec[ENDED], rec[DUE], rec[STARTFAILS], rec[CANCEL] = status, code, now, 0, 0, 0
  rec[PROMISE], rec[TOLD], rec[TELL_ERROR] = 0, 0, ''
  if rec[CONTRACT] < C_TERMINAL_PENDING then
    -- Nobody to tell: the notification is settled with the outcome.
    rec[CONTRACT] = rec[NOTIFY] == '' and C_TERMINAL_ACKED or C_TERMINAL_PENDING
  end
  if rec[CONTRACT] == C_TERMINAL_PENDING then rec[PROMISE] = now + RECEIPT_WITHIN end
  emit(rec, id, 'finished', receipt)
  rec[SESSION], rec[REPLY], rec[TRACE], rec[SUMMARY], rec[PRINT] = '', '', '', '', ''
end

-- The attempt that runs is no more: again from `due` on; not where the budget is spent, where `limit` attempts were lost, or
-- somebody wants the job cancelled. `data`: a JSON object without its last brace.
local function lose(rec, id, due, receipt, data, limit)
  rec[CHARGED], rec[LOST] = rec[CHARGED] + 1, math.min(rec[LOST] + 1, 255)
  if rec[CANCEL] == 1 then
    emit_finished(rec, id, CANCELLED, 'cancelled', '')
  elseif rec[CHARGED] > rec[MAXR] then
    emit_finished(rec, id, FAILED, 'attempts_exhausted', receipt)
  elseif rec[LOST] >= limit then
    emit_finished(rec, id, FAILED, 'lost', receipt)
  else
    rec[STATUS], rec[CODE], rec[STARTFAILS] = RETRY_WAIT, 'lost', 0
    wait_until(rec, due)
    emit(rec, id, 'lost', data .. '}')
  end
end

-- Another generation of an ended job, carried by this message: everything that belongs to the one before is reset, but for
-- `rev` and `epoch`, which never go back.
local function regenerate(rec, id, carrier, reply_, created, finish_by, data)
  rec[STATUS], rec[CONTRACT], rec[GEN] = QUEUED, C_CREATED, rec[GEN] + 1
  rec[ATTEMPT], rec[CHARGED], rec[STARTFAILS], rec[LOST], rec[CODE], rec[ENDED] = 0, 0, 0, 0, '', 0
  rec[STARTED], rec[DEADLINE], rec[PROMISE], rec[TOLD], rec[CANCEL], rec[TELL_ERROR] = 0, 0, now + look, 0, 0, ''
  rec[CARRIER], rec[REPLY], rec[CREATED], rec[FINISH_BY] = carrier, reply_, created, finish_by
  emit(rec, id, 'replayed', data)
end

-- Records: read all at once, changed in memory, written all at once.
local recs, first, changed, sets, ended, due_add, due_rem = {}, {}, {}, {}, {}, {}, {}

-- What cannot be read is never taken for "not there": it stops the script before its first write, with the names of all such
-- records, so that the caller goes on without them (`store/unreadable.rs`).
local unreadable = {}
local function unpack_record(raw, key)
  local rec = { pcall(struct.unpack, RECORD, raw) }
  if not rec[1] or rec[V] ~= VERSION or rec[STATUS] < QUEUED or rec[STATUS] > TIMED_OUT or rec[CONTRACT] < C_CREATED
    or rec[CONTRACT] > C_TERMINAL_FAILED or rec[GEN] == 0 or rec[QUEUE] == '' or rec[TYPE] == '' then
    unreadable[#unreadable + 1] = key
    return false
  end
  -- After the fields stands where the reading ended.
  local after = rec[LOST]
  rec[LOST], rec[MORE] = string.byte(raw, after) or 0, after < #raw and string.sub(raw, after + 1) or ''
  return rec
end

local function pack_record(rec)
  local text = struct.pack(RECORD, unpack(rec, V, TELL_ERROR))
  return rec[LOST] == 0 and rec[MORE] == '' and text or text .. string.char(rec[LOST]) .. rec[MORE]
end

local function trim()
  local confirmed = cmsgpack.unpack(ARGV[2])
  if #confirmed > 0 then redis.call('XDEL', KEYS[3], unpack(confirmed)) end
end

-- Whether the last commit of the caller's process is not in this data set: `there` is what stands in its place.
local function is_forked(there)
  return ARGV[5] ~= '' and there and there ~= ARGV[6] and string.match(there, '^%d+') == string.match(ARGV[6], '^%d+')
end

-- Reads the records of n jobs. Not 0 when the store is not the one that the caller knows, or its gate is closed and the
-- caller may not pass then; nothing may be written.
local function open_frame(n, may_pass)
  local store = redis.call('HMGET', KEYS[1], 'inc', 'commit', 'gate', 'base', 'watched', ARGV[5])
  if not store[1] then return 1 end
  commit = tonumber(store[2])
  if commit < seen then return 6 end
  if store[1] ~= incarnation then return 2 end
  if is_forked(store[6]) then return 6 end
  if store[3] then gate = tonumber(store[3]) end
  if store[4] then base = tonumber(store[4]) end
  watched = store[5]
  if gate == CLOSED and not may_pass then return 5 end
  if n > 0 then
    local raw = redis.call('MGET', unpack(KEYS, FIRST_JOB + 1, FIRST_JOB + n))
    local seen = {}
    for i = 1, n do
      local key = KEYS[FIRST_JOB + i]
      first[i] = seen[key] or i
      if first[i] == i then
        seen[key] = i
        recs[i] = raw[i] and unpack_record(raw[i], key)
      end
    end
    if #unreadable > 0 then error('record does not decode: ' .. table.concat(unreadable, ' ') .. ';') end
  end
  trim()
  return 0
end

local function raise_commit()
  commit = redis.call('HINCRBY', KEYS[1], 'commit', 1)
  mark = text_of[commit] .. ' ' .. call
  redis.call('HSET', KEYS[1], 'm' .. commit % MARKS, mark)
end

-- Two items of one call may name the same job: the second must see what the first did.
local function record(i) return recs[first[i]] end

-- The one member of a job in the due index: its earliest deadline.
local function index(id, score)
  local n = #due_add
  due_add[n + 1], due_add[n + 2] = text_of[score], id
end

local function save(i, rec, id)
  rec[CALL] = call
  recs[first[i]] = rec
  changed[#changed + 1] = first[i]
  if is_terminal(rec) then
    if rec[ENDED] == now then ended[#ended + 1] = id end
    if is_told(rec) then due_rem[#due_rem + 1] = id else index(id, rec[PROMISE]) end
  else
    local score = rec[FINISH_BY]
    if rec[DEADLINE] > 0 and rec[DEADLINE] < score then score = rec[DEADLINE] end
    if rec[PROMISE] > 0 and rec[PROMISE] < score then score = rec[PROMISE] end
    index(id, score)
  end
end

local function write_back()
  flush_all()
  for c = 1, #changed do
    local i = changed[c]
    sets[2 * c - 1], sets[2 * c] = KEYS[FIRST_JOB + i], pack_record(recs[i])
  end
  if #changed > 0 then redis.call('MSET', unpack(sets)) end
  if #due_add > 0 then redis.call('ZADD', KEYS[2], unpack(due_add)) end
  if #due_rem > 0 then redis.call('ZREM', KEYS[2], unpack(due_rem)) end
  if #ended > 0 then redis.call('RPUSH', KEYS[6], '@' .. text_of[now], unpack(ended)) end
end

-- Entries of an earlier answer to this call, or of an outcome that is not journaled yet.
local fetched = {}
local function fetch_entry(id)
  if id == '' or fetched[id] ~= nil then return fetched[id] or false end
  local found = redis.call('XRANGE', KEYS[3], id, id)
  fetched[id] = #found > 0
  if #found > 0 then give(id, found[1][2][2]) end
  return fetched[id]
end
