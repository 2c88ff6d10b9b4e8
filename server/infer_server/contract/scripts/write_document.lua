-- Replaces the desired-state document and its tenants' limits, if the stored document is still the one that the writer read.
-- All or nothing, so that a tenant's limits and its entry in the document never come from two revisions.
--
-- KEYS[1]            the document (hash: uid, generation, revision, body)
-- KEYS[2 .. n+1]     limits hashes of the document's tenants: written anew
-- KEYS[n+2 ..]       limits hashes of tenants that have left: deleted
-- ARGV[1]            the revision that the writer read; "0": there was no document
-- ARGV[2 .. 5]       uid, generation, revision, body
-- ARGV[6]            the channel that announces the revision
-- ARGV[7]            n, the number of tenants
-- ARGV[8 ..]         for each tenant: how many arguments follow for it, then field, value, field, value, ...
-- return             the revision found. The write took place if, and only if, it equals ARGV[1].
local found = redis.call('HGET', KEYS[1], 'revision') or '0'
if found ~= ARGV[1] then
  return found
end
redis.call('HSET', KEYS[1], 'uid', ARGV[2], 'generation', ARGV[3], 'revision', ARGV[4], 'body', ARGV[5])
local tenants, at = tonumber(ARGV[7]), 8
for i = 2, tenants + 1 do
  local length = tonumber(ARGV[at])
  redis.call('DEL', KEYS[i])
  if length > 0 then
    redis.call('HSET', KEYS[i], unpack(ARGV, at + 1, at + length))
  end
  at = at + 1 + length
end
for i = tenants + 2, #KEYS do
  redis.call('DEL', KEYS[i])
end
redis.call('PUBLISH', ARGV[6], ARGV[4])
return found
