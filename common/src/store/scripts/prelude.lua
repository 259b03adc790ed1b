-- Shared by every script (concatenated in front of it). Record layout, event writer, outbox, call frame.
--
-- Call frame, the same for every script:
--   KEYS[1] store     hash    identity of this data set: inc, jobs, commit
--   KEYS[2] due       zset    one member per open job: its earliest deadline (ms)
--   KEYS[3] outbox    stream  journal entries not yet confirmed by JetStream
--   KEYS[4] sessions  zset    session -> expiry (ms)
--   KEYS[5] run       set     "<id>:<epoch>" of what the session of this call runs
--   KEYS[6..5+n]      string  records of the n jobs, in the order of the items
--   KEYS[6+n..]       string  their `data` keys, where an item names one by position
--   ARGV[1] msgpack array  {incarnation, call id, session, keep ms, ...script's own}
--   ARGV[2] msgpack array  outbox entry ids that JetStream confirmed: trimmed here
--   ARGV[3] msgpack array  the items
-- Reply: array of strings. The first is msgpack {code, now ms, results}; then for each entry: id, subject suffix, ended ids,
--   commit, number of events, the events.
-- Cost: Redis's Lua hashes every byte of every string that comes to be, so a byte costs about a nanosecond each time. That
--   is why entries are never concatenated, and why the reply is an array and not one packed string.
-- Code: 0 done, 1 no store, 2 store of another incarnation, 3 session lost, 4 outbox full.
-- Second call with the same call id: the same results; nothing is written twice.

local V, STATUS, CONTRACT, GEN, REV, EPOCH, ATTEMPT, CHARGED, MAXR, STARTFAILS = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
local DUE, STARTED, DEADLINE, CREATED, FINISH_BY, ENDED = 11, 12, 13, 14, 15, 16
local QUEUE, TYPE, KEY, TRACE, CARRIER, REPLY, SESSION, CODE, CALL, ENTRY = 17, 18, 19, 20, 21, 22, 23, 24, 25, 26

local QUEUED, SCHEDULED, DEFERRED, RUNNING, WAITING, RETRY_WAIT = 1, 2, 3, 4, 5, 6
local DONE, FAILED, CANCELLED, TIMED_OUT = 7, 8, 9, 10
local STATUS_NAMES = { 'queued', 'scheduled', 'deferred', 'running', 'waiting_input', 'retry_wait',
  'done', 'failed', 'cancelled', 'timed_out' }
local C_CREATED, C_ACKED, C_PROGRESSING, C_MISSED, C_PENDING, C_TERMINAL_ACKED = 1, 2, 3, 4, 5, 6
local CONTRACT_NAMES = { 'created', 'acked', 'progressing', 'sla_missed', 'terminal_pending', 'terminal_acked',
  'terminal_failed' }
local ENTRY_CAP = 262144
local FIRST_JOB = 5

local frame = cmsgpack.unpack(ARGV[1])
local incarnation, call, session, keep = frame[1], frame[2], frame[3], frame[4]
local items = cmsgpack.unpack(ARGV[3])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)

-- Numbers as text, made once per call: turning one into text costs as much as a table of events lookups.
local text_of = setmetatable({}, {
  __index = function(known, n)
    local s = string.format('%d', n)
    known[n] = s
    return s
  end,
})

-- Entries for the caller, flat, after the place of the head.
local out = { '' }
local function reply(code, results)
  out[1] = cmsgpack.pack({ code, now, results or {} })
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
local at = iso(now)

local function is_terminal(rec) return rec[STATUS] >= DONE end
local function is_running(rec) return rec[STATUS] == RUNNING or rec[STATUS] == WAITING end
local function owns(rec, epoch) return rec and is_running(rec) and rec[EPOCH] == epoch and rec[SESSION] == session end

local function fresh(queue, type_, key, trace, carrier, reply_, created, finish_by, max_retries)
  return { 1, QUEUED, C_CREATED, 1, 0, 0, 0, 0, max_retries, 0, 0, 0, 0, created, finish_by, 0,
    queue, type_, key, trace, carrier, reply_, '', '', '', '' }
end

-- Journal: events gather in one bucket per subject; a bucket becomes one outbox entry, one journal message.
local commit = 0
local buckets, plain, ending = {}, {}, {}

-- Appends an entry to the reply: `fields` are name and value in turn, from `first` on the events.
local function give(id, suffix, ended, commit_, fields, first)
  local n = #out
  out[n + 1], out[n + 2], out[n + 3], out[n + 4] = id, suffix, ended, commit_
  out[n + 5] = text_of[(#fields - first) / 2 + 1]
  n = n + 5
  for i = first, #fields, 2 do
    n = n + 1
    out[n] = fields[i]
  end
end

-- The fields of an outbox entry: suffix, commit, ended ids, then one `v` for each event.
local EVENTS_AT = 8
local function no_events() return { 's', '', 'c', '', 'e', '' } end

local function flush(bucket)
  local fields = bucket.fields
  if #fields < EVENTS_AT then return end
  local ended, commit_ = table.concat(bucket.ended, ','), text_of[commit]
  fields[2], fields[4], fields[6] = bucket.suffix, commit_, ended
  local id = redis.call('XADD', KEYS[3], '*', unpack(fields))
  for i = 1, #bucket.recs do bucket.recs[i][ENTRY] = id end
  give(id, bucket.suffix, ended, commit_, fields, EVENTS_AT)
  bucket.fields, bucket.recs, bucket.ended, bucket.size = no_events(), {}, {}, 2
end

-- Ordering: an outcome's entry comes last, so that the outbox has a job's events in the order of `rev`, and the entry that
-- a record remembers is the one with its outcome.
local function flush_all()
  for i = 1, #plain do flush(plain[i]) end
  for i = 1, #ending do flush(ending[i]) end
end

-- The one writer of journal events. `data` is a JSON object, or empty. Raises `rev`.
local function emit(rec, id, kind, data)
  rec[REV] = rec[REV] + 1
  local text = '{"v":1,"job":"' .. id .. '","gen":' .. text_of[rec[GEN]] .. ',"rev":' .. text_of[rec[REV]] .. ',"kind":"' .. kind ..
    '","at":"' .. at .. '","queue":"' .. rec[QUEUE] .. '","type":"' .. rec[TYPE] ..
    (rec[KEY] ~= '' and '","key":' .. rec[KEY] .. ',"status":"' or '","status":"') .. STATUS_NAMES[rec[STATUS]] ..
    '","contract":"' .. CONTRACT_NAMES[rec[CONTRACT]] .. '","attempt":' .. text_of[rec[ATTEMPT]] .. ',"epoch":' .. text_of[rec[EPOCH]] ..
    (rec[SESSION] ~= '' and ',"session":"' .. rec[SESSION] .. '"' or '') ..
    (rec[CARRIER] ~= '' and ',"carrier":"' .. rec[CARRIER] .. '"' or '') ..
    (rec[TRACE] ~= '' and ',"trace":"' .. rec[TRACE] .. '"' or '') ..
    (data ~= '' and ',"data":' .. data .. '}' or '}')
  local suffix = rec[QUEUE]
  if kind == 'finished' then suffix = suffix .. '.ended' end
  local bucket = buckets[suffix]
  if not bucket then
    bucket = { suffix = suffix, fields = no_events(), recs = {}, ended = {}, size = 2 }
    buckets[suffix] = bucket
    local list = kind == 'finished' and ending or plain
    list[#list + 1] = bucket
  elseif bucket.size + #text > ENTRY_CAP then
    flush_all()
  end
  local n = #bucket.fields
  bucket.fields[n + 1], bucket.fields[n + 2] = 'v', text
  bucket.recs[#bucket.recs + 1] = rec
  bucket.size = bucket.size + #text + 1
  if kind == 'finished' then bucket.ended[#bucket.ended + 1] = id end
end

-- The last event of a generation: embeds the receipt, whose bytes are fixed here by the store's clock.
local function emit_finished(rec, id, status, code, receipt)
  rec[STATUS], rec[CODE], rec[ENDED], rec[DUE], rec[STARTFAILS] = status, code, now, 0, 0
  -- Nobody to tell, so the notification is settled with the outcome (requesters come with the contract rules).
  if rec[CONTRACT] < C_PENDING then rec[CONTRACT] = C_TERMINAL_ACKED end
  emit(rec, id, 'finished', '{"receipt":' .. receipt .. ',"finished_at":"' .. at .. '"}}')
  rec[SESSION], rec[REPLY], rec[TRACE] = '', '', ''
end

-- Another generation of an ended job, carried by this message: everything that belongs to the one before is reset, but for
-- `rev` and `epoch`, which never go back.
local function regenerate(rec, id, carrier, reply_, created, finish_by, data)
  rec[STATUS], rec[CONTRACT], rec[GEN] = QUEUED, C_CREATED, rec[GEN] + 1
  rec[ATTEMPT], rec[CHARGED], rec[STARTFAILS], rec[CODE], rec[ENDED] = 0, 0, 0, '', 0
  rec[STARTED], rec[DEADLINE] = 0, 0
  rec[CARRIER], rec[REPLY], rec[CREATED], rec[FINISH_BY] = carrier, reply_, created, finish_by
  emit(rec, id, 'replayed', data)
end

-- Records: read all at once, changed in memory, written all at once.
local recs, first, changed, due_add, due_rem = {}, {}, {}, {}, {}

-- Anything but a record stops the script before its first write: what cannot be read is never taken for "not there".
local function unpack_record(raw, key)
  local ok, rec = pcall(cmsgpack.unpack, raw)
  if not ok or type(rec) ~= 'table' or rec[V] ~= 1 or #rec < ENTRY then error('record does not decode: ' .. key) end
  return rec
end

local function trim()
  local confirmed = cmsgpack.unpack(ARGV[2])
  if #confirmed > 0 then redis.call('XDEL', KEYS[3], unpack(confirmed)) end
end

-- Not 0 when the store is not the one that the caller knows; then nothing may be written.
local function open_frame()
  local inc = redis.call('HGET', KEYS[1], 'inc')
  if not inc then return 1 end
  if inc ~= incarnation then return 2 end
  local n = #items
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
  end
  trim()
  return 0
end

local function raise_commit() commit = redis.call('HINCRBY', KEYS[1], 'commit', 1) end

-- Two items of one call may name the same job: the second must see what the first did.
local function record(i) return recs[first[i]] end

local function save(i, rec, id)
  rec[CALL] = call
  recs[first[i]] = rec
  changed[#changed + 1] = first[i]
  if is_terminal(rec) then
    due_rem[#due_rem + 1] = id
  else
    local score = rec[FINISH_BY]
    if is_running(rec) and rec[DEADLINE] < score then score = rec[DEADLINE] end
    due_add[#due_add + 1] = text_of[score]
    due_add[#due_add + 1] = id
  end
end

local function write_back()
  flush_all()
  local sets, keep_until = {}, text_of[now + keep]
  for c = 1, #changed do
    local i = changed[c]
    local packed = cmsgpack.pack(recs[i])
    if is_terminal(recs[i]) then
      redis.call('SET', KEYS[FIRST_JOB + i], packed, 'PXAT', keep_until)
    else
      sets[#sets + 1] = KEYS[FIRST_JOB + i]
      sets[#sets + 1] = packed
    end
  end
  if #sets > 0 then redis.call('MSET', unpack(sets)) end
  if #due_add > 0 then redis.call('ZADD', KEYS[2], unpack(due_add)) end
  if #due_rem > 0 then redis.call('ZREM', KEYS[2], unpack(due_rem)) end
end

-- Entries of an earlier answer to this call, or of an outcome that is not journaled yet.
local fetched = {}
local function fetch_entry(id)
  if id == '' or fetched[id] ~= nil then return fetched[id] or false end
  local found = redis.call('XRANGE', KEYS[3], id, id)
  fetched[id] = #found > 0
  if #found > 0 then
    local f = found[1][2]
    give(id, f[2], f[6], f[4], f, EVENTS_AT)
  end
  return fetched[id]
end
