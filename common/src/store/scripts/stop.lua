-- stop: asks the owner of a running attempt to stop it, because somebody wants the job cancelled. The session of the frame is
-- the owner: its next renewal is told.
-- Item: {id, epoch, data (JSON object)}
-- Result: {0, rev} asked, now or before    {1, status, epoch} that attempt does not run under this session any more    {2} no record
-- Second call: the same; the event is written once.

local items = cmsgpack.unpack(ARGV[3])
local code = open_frame(#items)
if code ~= 0 then return reply(code) end
raise_commit()

local marks = {}
for i = 1, #items do
  local it = items[i]
  local rec = record(i)
  if not rec then
    result(i, { 2 })
  elseif not owns(rec, it[2]) then
    result(i, { 1, rec[STATUS], rec[EPOCH] })
  else
    if rec[CANCEL] == 0 then
      rec[CANCEL] = 1
      emit(rec, it[1], 'cancel_requested', it[3])
      save(i, rec, it[1])
      marks[#marks + 1] = '!' .. it[1] .. ':' .. text_of[it[2]]
    else
      fetch_entry(rec[ENTRY])
    end
    result(i, { 0, rec[REV] })
  end
end
write_back()
if #marks > 0 then redis.call('SADD', KEYS[5], unpack(marks)) end
return reply(0)
