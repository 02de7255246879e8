-- Reads cells of a market for a replica that starts: whole cells, until `limit` drivers are reached.
--
-- KEYS  1 meta (names the slot; the cells' keys are made here and carry the same hash tag)
-- ARGV  1 prefix of a cell's key, 2 limit, 3.. names of the cells to read
-- Answers {how many of the named cells were read, ids (msgpack array), their records (78 bytes each)}

local ids, records, read = {}, {}, 0
for index = 3, #ARGV do
  local entries = redis.call('HGETALL', ARGV[1] .. ARGV[index])
  for at = 1, #entries, 2 do
    ids[#ids + 1] = entries[at]
    records[#records + 1] = entries[at + 1]
  end
  read = read + 1
  if #ids >= tonumber(ARGV[2]) then break end
end
return {read, cmsgpack.pack(ids), table.concat(records)}
