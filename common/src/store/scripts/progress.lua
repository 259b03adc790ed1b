-- progress: what running attempts said of themselves. Fenced by epoch and session.
-- Item: {id, epoch, event kind, data (JSON object), progress ms, fingerprint of the report}
-- Result: {0, rev} journaled    {1} fenced
-- Second call: a report that this very call id journaled is not journaled again.

local items = cmsgpack.unpack(ARGV[3])
local code = open_frame(#items)
if code ~= 0 then return reply(code) end
raise_commit()

local touched = {}
for i = 1, #items do
  local it = items[i]
  local rec = record(i)
  if not owns(rec, it[2]) then
    result(i, { 1 })
  elseif rec[CALL] == call and not touched[it[1]] then
    fetch_entry(rec[ENTRY])
    result(i, { 0, rec[REV] })
  else
    touched[it[1]] = true
    rec[CONTRACT] = C_PROGRESSING
    promise_progress(rec, it[5])
    rec[PRINT] = it[6]
    emit(rec, it[1], it[3], it[4])
    save(i, rec, it[1])
    result(i, { 0, rec[REV] })
  end
end
write_back()
return reply(0)
