-- forget: deletes the records of jobs whose outcome is old enough, and says so in the journal.
-- ARGV[1]: [4] keep: how long a record stays after the end (ms). Items: the first elements of the list of ended jobs, as the
--        caller read them: "@<ms>", then ids.
-- KEYS: the records of the ids in the items, then their `data` keys.
-- Result: {0, elements taken, records deleted, jobs put back} or {1, 0, 0, 0}: the list begins otherwise by now
-- Put back at the end: what is not journaled yet, whose requester is not told yet, and what cannot be read. Passed over: what has ended again since (it stands in
-- the list once more), is open again, or is gone.
-- Second call: the list begins otherwise; {1}.

local head = cmsgpack.unpack(ARGV[3])
local code = open_frame(0)
if code ~= 0 then return reply(code) end
local there = redis.call('LRANGE', KEYS[6], 0, #head - 1)
for h = 1, #head do
  if there[h] ~= head[h] then
    result(1, { 1, 0, 0, 0 })
    return reply(0)
  end
end
raise_commit()

local n = (#KEYS - FIRST_JOB) / 2
local raw = n > 0 and redis.call('MGET', unpack(KEYS, FIRST_JOB + 1, FIRST_JOB + n)) or {}
local since, i, taken = 0, 0, 0
local gone, kept = {}, {}
for h = 1, #head do
  local id = head[h]
  if string.sub(id, 1, 1) == '@' then
    since = tonumber(string.sub(id, 2))
    if since + keep > now then break end
  else
    i = i + 1
    local key, data_key = KEYS[FIRST_JOB + i], KEYS[FIRST_JOB + n + i]
    local rec = raw[i] and unpack_record(raw[i], key)
    if raw[i] and not rec then
      kept[#kept + 1] = id
    elseif rec and is_terminal(rec) and rec[ENDED] <= since then
      if not is_told(rec) then
        kept[#kept + 1] = id
      elseif rec[ENTRY] ~= '' and #redis.call('XRANGE', KEYS[3], rec[ENTRY], rec[ENTRY]) > 0 then
        kept[#kept + 1] = id
      else
        emit(rec, id, 'deleted', '')
        gone[#gone + 1], gone[#gone + 2] = key, data_key
      end
    end
  end
  taken = h
end
write_back()
if #gone > 0 then redis.call('DEL', unpack(gone)) end
if taken > 0 then
  redis.call('LTRIM', KEYS[6], taken, -1)
  -- What is left of the last moment keeps its time.
  local first_left = redis.call('LINDEX', KEYS[6], 0)
  if first_left and string.sub(first_left, 1, 1) ~= '@' then redis.call('LPUSH', KEYS[6], '@' .. text_of[since]) end
  if #kept > 0 then redis.call('RPUSH', KEYS[6], '@' .. text_of[now], unpack(kept)) end
end
result(1, { 0, taken, #gone / 2, #kept })
return reply(0)
