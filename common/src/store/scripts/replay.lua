-- replay: another generation of an ended job, whose new carrier is already published. (A claim that meets the carrier
-- first does the same by itself.)
-- Item: {id, new generation, carrier, created ms, finish ms, data (JSON object)}
-- Result: {0, gen, rev} applied or already so    {1, status} it is open    {2} no record: the claim will make one
-- Second call: the generation is already the new one: {0}.

local items = cmsgpack.unpack(ARGV[3])
local code = open_frame(#items)
if code ~= 0 then return reply(code) end
raise_commit()

for i = 1, #items do
  local it = items[i]
  local rec = record(i)
  if not rec then
    result(i, { 2 })
  elseif rec[GEN] >= it[2] then
    result(i, { 0, rec[GEN], rec[REV] })
  elseif not is_terminal(rec) then
    result(i, { 1, rec[STATUS] })
  else
    regenerate(rec, it[1], it[3], '', it[4], it[4] + it[5], it[6])
    save(i, rec, it[1])
    result(i, { 0, rec[GEN], rec[REV] })
  end
end
write_back()
return reply(0)
