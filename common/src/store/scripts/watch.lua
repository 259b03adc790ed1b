-- watch: types whose jobs ask the crash-loop guard before they are claimed. Kept in the `watched` field of KEYS[1], which `claim`
-- reads: "type until at ", one after the other.
-- Items: {type, until (ms; 0: not any more), when it was said (ms, by the clock of the scope that said it)}. An older word than the
-- one that stands counts for nothing; what is over is left out.
-- Result: {0}.
-- Second call: the same.

local MOST, WORD_KEPT = 500, 60000
local items = cmsgpack.unpack(ARGV[3])
local code = open_frame(0)
if code ~= 0 then return reply(code) end

local known, n = {}, 0
for type_, until_, at in string.gmatch(watched or '', '(%S+) (%d+) (%d+) ') do
  until_, at = tonumber(until_), tonumber(at)
  if until_ > now or at + WORD_KEPT > now then
    known[type_], n = { until_, at }, n + 1
  end
end
for i = 1, #items do
  local type_, until_, at = unpack(items[i])
  local before = known[type_]
  if before and at >= before[2] then
    known[type_] = { until_, at }
  elseif not before and n < MOST then
    known[type_], n = { until_, at }, n + 1
  end
end
local words = {}
for type_, word in pairs(known) do
  words[#words + 1] = type_ .. ' ' .. text_of[word[1]] .. ' ' .. text_of[word[2]] .. ' '
end
if #words > 0 then
  redis.call('HSET', KEYS[1], 'watched', table.concat(words))
else
  redis.call('HDEL', KEYS[1], 'watched')
end
result(1, { 0 })
return reply(0)
