#!lua name=inferengine_quota_v1
--[[
The quota of one tenant: requests in, admissions and charges out. Every decision of all pods is made here, atomically.

KEYS, the same six for every function, all under the tenant's hash tag:
  1 limits    hash    written by the document's writer (contract/limits.py), only read here; "" or absent: no limit
  2 state     hash    requests, tokens: bucket levels at `at` (ms); day: the latest window seen;
                      used:<window>, reserved:<window>: the ledgers, window = YYYYMMDD or YYYYMM in UTC
  3 leases    zset    request id -> when its lease expires (ms). A member with a score in the past is expired: it no longer
                      counts as live, and still holds its reservation
  4 requests  hash    request id -> record, see `pack`
  5 settled   zset    request id -> when its record may be forgotten (ms)
  6 audit     stream  one entry for each reservation that was closed

Invariants:
  Q1  used + reserved <= limit in every window, unless the limit itself was lowered.
  Q2  reserved of a window = the sum of the estimates of its open records; each open record is in `leases`, each closed one
      in `settled`, and none in both.
  Q3  a reservation is charged at most its estimate, once, in the windows in which it was made.
  Q4  0 <= level <= burst for both buckets.

The only clock is TIME of the store.
]]

local DAY_MS = 86400000
local KEEP_SETTLED_MS = 600000 -- a late or repeated settle is recognised for so long
local SWEEP_BATCH = 16 -- expired reservations closed by one reserve, so that its cost stays bounded
local AUDIT_LENGTH = 10000
local RETRY_CONCURRENCY_MS = 250 -- nobody knows when a running request ends
local RETRY_RESERVED_MS = 1000 -- likewise, where only other requests' reservations are in the way
local MAX_COUNT = 9007199254740992 -- 2^53

local LIMITS = {
  'requestsPerMinute', 'requestsBurst', 'tokensPerMinute', 'tokensBurst',
  'maxConcurrentRequests', 'tokensPerDay', 'tokensPerMonth', 'cachedTokenWeight',
}

local function clock_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The UTC calendar day of `ms`, by the algorithm of Howard Hinnant, "chrono-compatible low-level date algorithms".
local function calendar(ms)
  local days = math.floor(ms / DAY_MS) + 719468
  local era = math.floor(days / 146097)
  local doe = days - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local day = doy - math.floor((153 * mp + 2) / 5) + 1
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  local length = ({ 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 })[month]
  if month == 2 and (year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0)) then length = 29 end
  local day_left = DAY_MS - ms % DAY_MS
  return {
    day = string.format('%04d%02d%02d', year, month, day), day_left = day_left,
    month = string.format('%04d%02d', year, month), month_left = day_left + (length - day) * DAY_MS,
  }
end

-- Returns the limits; or nil for a tenant without any; or nil and an error: a damaged limit must not read as "no limit".
local function read_limits(KEYS)
  local values = redis.call('HMGET', KEYS[1], unpack(LIMITS))
  local limits, found = { cachedTokenWeight = 1 }, false
  for i, name in ipairs(LIMITS) do
    if values[i] then
      found = true
      if values[i] ~= '' then
        local number = tonumber(values[i])
        local lowest = name == 'cachedTokenWeight' and 0 or 1
        local highest = name == 'cachedTokenWeight' and 1 or MAX_COUNT
        if not (number and number >= lowest and number <= highest) then
          return nil, redis.error_reply('BADLIMITS ' .. name .. ' is not a number that is allowed')
        end
        limits[name] = number
      end
    end
  end
  return found and limits or nil
end

-- The two buckets at `now`. A bucket without a rate is absent. A burst of nil is one minute's worth.
local function read_buckets(KEYS, limits, now)
  local stored = redis.call('HMGET', KEYS[2], 'requests', 'tokens', 'at')
  local at = math.max(tonumber(stored[3] or '') or now, 0)
  local function bucket(level, rate, burst)
    if not rate then return nil end
    burst = burst or rate
    -- keeps Q4; a clock that went back refills nothing
    return { rate = rate, burst = burst,
             level = math.min(burst, (tonumber(level or '') or burst) + math.max(0, now - at) * rate / 60000) }
  end
  return {
    requests = bucket(stored[1], limits.requestsPerMinute, limits.requestsBurst),
    tokens = bucket(stored[2], limits.tokensPerMinute, limits.tokensBurst),
    at = math.max(now, at),
  }
end

local function write_buckets(KEYS, buckets)
  local function level(bucket) return bucket and string.format('%.6f', bucket.level) or '' end
  redis.call('HSET', KEYS[2], 'requests', level(buckets.requests), 'tokens', level(buckets.tokens), 'at', buckets.at)
end

-- used, reserved of a window; used is nil for a window whose ledger is gone
local function read_ledger(KEYS, window)
  local values = redis.call('HMGET', KEYS[2], 'used:' .. window, 'reserved:' .. window)
  return tonumber(values[1] or ''), tonumber(values[2] or '') or 0
end

local function add(KEYS, ledger, window, amount)
  redis.call('HINCRBY', KEYS[2], ledger .. ':' .. window, string.format('%.0f', amount))
end

-- Record of a request: state R (open), S (settled) or X (closed by the sweep); estimate; prompt tokens; the last reported
-- charge, -1 before the first report; what was charged; the weight of cached tokens; the windows.
local function pack(r)
  return string.format('%s|%.0f|%.0f|%.0f|%.0f|%.17g|%s|%s',
    r.state, r.estimate, r.prompt, r.reported, r.charged, r.weight, r.day, r.month)
end

local function read_record(KEYS, id)
  local text = redis.call('HGET', KEYS[4], id)
  if not text then return nil end
  local f = {}
  for part in string.gmatch(text, '[^|]+') do f[#f + 1] = part end
  return { state = f[1], estimate = tonumber(f[2]), prompt = tonumber(f[3]), reported = tonumber(f[4]),
           charged = tonumber(f[5]), weight = tonumber(f[6]), day = f[7], month = f[8] }
end

local function write_record(KEYS, id, record)
  redis.call('HSET', KEYS[4], id, pack(record))
end

-- ceil(computed + weight * cached + output). The small term undoes the rounding of, say, 0.1 * 3; max undoes a negative zero.
local function price(weight, computed, cached, output)
  return math.max(0, math.ceil(tonumber(computed) + weight * tonumber(cached) + tonumber(output) - 1e-6))
end

local function audit(KEYS, event, id, record, charged, uncharged)
  redis.call('XADD', KEYS[6], 'MAXLEN', '~', AUDIT_LENGTH, '*', 'event', event, 'id', id,
    'reserved', string.format('%.0f', record.estimate), 'charged', string.format('%.0f', charged),
    'uncharged', string.format('%.0f', uncharged), 'day', record.day)
end

-- Turns an open reservation into a charge. Returns charged, uncharged.
local function close(KEYS, id, record, used, now, state)
  local charged = math.min(used, record.estimate) -- keeps Q3
  for _, window in ipairs({ record.day, record.month }) do -- keeps Q1, Q2
    add(KEYS, 'reserved', window, -record.estimate)
    add(KEYS, 'used', window, charged)
  end
  local buckets = read_buckets(KEYS, (read_limits(KEYS)) or {}, now)
  if buckets.tokens then
    buckets.tokens.level = math.min(buckets.tokens.burst, buckets.tokens.level + record.estimate - charged) -- keeps Q4
    write_buckets(KEYS, buckets)
  end
  redis.call('ZREM', KEYS[3], id)
  redis.call('ZADD', KEYS[5], now + KEEP_SETTLED_MS, id)
  record.state, record.charged = state, charged
  write_record(KEYS, id, record)
  audit(KEYS, state == 'X' and 'swept' or 'settled', id, record, charged, used - charged)
  return charged, used - charged
end

-- A settle after the sweep: what was used beyond the sweep's charge, as far as the windows have room (keeps Q1).
local function charge_late(KEYS, id, record, used, now)
  local limits = (read_limits(KEYS)) or {}
  local missing = math.max(0, math.min(used, record.estimate) - record.charged)
  local extra = missing
  for window, limit in pairs({ [record.day] = limits.tokensPerDay or MAX_COUNT, [record.month] = limits.tokensPerMonth or MAX_COUNT }) do
    local spent, reserved = read_ledger(KEYS, window)
    extra = math.max(0, math.min(extra, spent and limit - spent - reserved or 0))
  end
  if extra > 0 then
    add(KEYS, 'used', record.day, extra)
    add(KEYS, 'used', record.month, extra)
    local buckets = read_buckets(KEYS, limits, now)
    if buckets.tokens then
      buckets.tokens.level = math.max(0, buckets.tokens.level - extra) -- keeps Q4
      write_buckets(KEYS, buckets)
    end
  end
  record.state, record.charged = 'S', record.charged + extra
  write_record(KEYS, id, record)
  audit(KEYS, 'late', id, record, extra, missing - extra)
  return record.charged, missing - extra
end

-- Closes at most `most` reservations whose lease expired `hold_ms` ago or earlier, at their last reported charge (before the
-- first report: the prompt), and forgets as many old records. Returns how many reservations it closed.
local function sweep(KEYS, now, hold_ms, most)
  local expired = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - hold_ms, 'LIMIT', 0, most)
  for _, id in ipairs(expired) do
    local record = read_record(KEYS, id)
    if record then
      close(KEYS, id, record, record.reported >= 0 and record.reported or record.prompt, now, 'X')
    else
      redis.call('ZREM', KEYS[3], id)
    end
  end
  local old = redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now, 'LIMIT', 0, most)
  if #old > 0 then
    redis.call('ZREM', KEYS[5], unpack(old))
    redis.call('HDEL', KEYS[4], unpack(old))
  end
  return #expired
end

-- On the first request of a day: forgets past windows in which nothing is reserved any more.
local function roll_windows(KEYS, today)
  if redis.call('HGET', KEYS[2], 'day') == today.day then return end
  local fields = redis.call('HGETALL', KEYS[2])
  for i = 1, #fields, 2 do
    local window = string.match(fields[i], '^used:(%d+)$')
    if window and window ~= today.day and window ~= today.month then
      local _, reserved = read_ledger(KEYS, window)
      if reserved == 0 then redis.call('HDEL', KEYS[2], 'used:' .. window, 'reserved:' .. window) end
    end
  end
  redis.call('HSET', KEYS[2], 'day', today.day)
end

local function live_count(KEYS, now)
  return redis.call('ZCOUNT', KEYS[3], '(' .. string.format('%.0f', now), '+inf')
end

-- The limit that this estimate can never meet: its name and value, or nil.
local function never_fits(limits, estimate)
  local tokens = limits.tokensPerMinute and (limits.tokensBurst or limits.tokensPerMinute)
  if tokens and estimate > tokens then
    return limits.tokensBurst and 'tokensBurst' or 'tokensPerMinute', tokens
  end
  for _, name in ipairs({ 'tokensPerDay', 'tokensPerMonth' }) do
    if limits[name] and estimate > limits[name] then return name, limits[name] end
  end
end

-- The denial that lasts longest, as {reason, limit's name, limit, retry_ms}, or nil if the request fits all limits.
local function find_denial(KEYS, limits, buckets, estimate, today, now)
  local worst
  local function deny(reason, name, retry_ms)
    if not worst or retry_ms > worst[4] then worst = { reason, name, limits[name], math.max(1, math.ceil(retry_ms)) } end
  end
  local function check_bucket(bucket, amount, reason, name)
    if bucket and bucket.level < amount then deny(reason, name, (amount - bucket.level) * 60000 / bucket.rate) end
  end
  local function check_window(window, left_ms, reason, name)
    if not limits[name] then return end
    local used, reserved = read_ledger(KEYS, window)
    used = used or 0
    if used + reserved + estimate <= limits[name] then return end
    deny(reason, name, used + estimate <= limits[name] and RETRY_RESERVED_MS or left_ms)
  end
  if limits.maxConcurrentRequests and live_count(KEYS, now) >= limits.maxConcurrentRequests then
    deny('concurrency', 'maxConcurrentRequests', RETRY_CONCURRENCY_MS)
  end
  check_bucket(buckets.requests, 1, 'requests_per_minute', 'requestsPerMinute')
  check_bucket(buckets.tokens, estimate, 'tokens_per_minute', 'tokensPerMinute')
  check_window(today.day, today.day_left, 'tokens_per_day', 'tokensPerDay')
  check_window(today.month, today.month_left, 'tokens_per_month', 'tokensPerMonth')
  return worst
end

--[[ inferengine_quota_v1_reserve: all or nothing; repeating it with the same id and estimate returns the same reservation.
ARGV    1 request id  2 prompt tokens  3 estimate (prompt + max_tokens)  4 lease ms  5 hold ms
Return  {'ok', ms that the lease has left}
        {'denied', reason, name of the limit, the limit, ms after which to retry or -1 for never}
        {'duplicate'}: the id is in use with another estimate, its lease expired, or it was closed ]]
local function reserve(KEYS, ARGV)
  local now = clock_ms()
  local id, estimate, lease_ms = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
  local old = read_record(KEYS, id)
  if old then
    local left = (tonumber(redis.call('ZSCORE', KEYS[3], id) or '') or 0) - now
    if old.state == 'R' and old.estimate == estimate and left > 0 then return { 'ok', left } end
    return { 'duplicate' }
  end
  local limits, damaged = read_limits(KEYS)
  if damaged then return damaged end
  if not limits then return { 'denied', 'unknown_tenant', '', 0, -1 } end
  local name, limit = never_fits(limits, estimate)
  if name then return { 'denied', 'too_large', name, limit, -1 } end

  sweep(KEYS, now, tonumber(ARGV[5]), SWEEP_BATCH)
  local today = calendar(now)
  local buckets = read_buckets(KEYS, limits, now)
  local denial = find_denial(KEYS, limits, buckets, estimate, today, now)
  if denial then return { 'denied', unpack(denial) } end

  roll_windows(KEYS, today)
  if buckets.requests then buckets.requests.level = buckets.requests.level - 1 end -- keeps Q4, as does the next line
  if buckets.tokens then buckets.tokens.level = buckets.tokens.level - estimate end
  write_buckets(KEYS, buckets)
  for _, window in ipairs({ today.day, today.month }) do -- keeps Q1, Q2
    add(KEYS, 'reserved', window, estimate)
    add(KEYS, 'used', window, 0)
  end
  redis.call('ZADD', KEYS[3], now + lease_ms, id)
  write_record(KEYS, id, { state = 'R', estimate = estimate, prompt = tonumber(ARGV[2]), reported = -1, charged = 0,
                           weight = limits.cachedTokenWeight, day = today.day, month = today.month })
  return { 'ok', lease_ms }
end

--[[ inferengine_quota_v1_settle: closes a reservation. Repeating it changes nothing and returns the first outcome's charge.
ARGV    1 request id  2 computed tokens  3 cached tokens  4 output tokens
Return  {charged in all, used and not charged}. A request that is not known charges nothing. ]]
local function settle(KEYS, ARGV)
  local now = clock_ms()
  local id = ARGV[1]
  local record = read_record(KEYS, id)
  if not record then
    local used = price(((read_limits(KEYS)) or { cachedTokenWeight = 1 }).cachedTokenWeight, ARGV[2], ARGV[3], ARGV[4])
    audit(KEYS, 'unknown', id, { estimate = 0, day = calendar(now).day }, 0, used)
    return { 0, used }
  end
  if record.state == 'S' then return { record.charged, 0 } end
  local used = price(record.weight, ARGV[2], ARGV[3], ARGV[4])
  if record.state == 'X' then return { charge_late(KEYS, id, record, used, now) } end
  return { close(KEYS, id, record, used, now, 'S') }
end

--[[ inferengine_quota_v1_renew: prolongs leases and notes what their requests used so far.
ARGV    1 lease ms, then for each request: id, computed tokens, cached tokens, output tokens
Return  the ids whose lease is lost: expired, closed or not known. Their place may be another's by now. ]]
local function renew(KEYS, ARGV)
  local now = clock_ms()
  local lost = {}
  for i = 2, #ARGV, 4 do
    local id = ARGV[i]
    local expiry = tonumber(redis.call('ZSCORE', KEYS[3], id) or '')
    local record = expiry and expiry > now and read_record(KEYS, id)
    if record then
      local used = price(record.weight, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
      record.reported = math.max(record.reported, math.min(used, record.estimate))
      write_record(KEYS, id, record)
      redis.call('ZADD', KEYS[3], now + tonumber(ARGV[1]), id)
    else
      lost[#lost + 1] = id
    end
  end
  return lost
end

--[[ inferengine_quota_v1_sweep: closes reservations whose holder is gone.
ARGV    1 hold ms  2 how many at most
Return  how many were closed ]]
local function sweep_now(KEYS, ARGV)
  return sweep(KEYS, clock_ms(), tonumber(ARGV[1]), tonumber(ARGV[2]))
end

--[[ inferengine_quota_v1_usage: what a tenant used and holds now. Writes nothing.
ARGV    none
Return  {fields of the limits hash, live requests, held expired reservations,
         {requests left, tokens left} in the buckets as text, "" without a limit,
         {day, used, reserved, ms until it ends}, {month, used, reserved, ms until it ends}} ]]
local function usage(KEYS, _)
  local now = clock_ms()
  local limits, damaged = read_limits(KEYS)
  if damaged then return damaged end
  local buckets, today = read_buckets(KEYS, limits or {}, now), calendar(now)
  local function level(bucket) return bucket and string.format('%.6f', bucket.level) or '' end
  local function ledger(window, left_ms)
    local used, reserved = read_ledger(KEYS, window)
    return { window, used or 0, reserved, left_ms }
  end
  local live = live_count(KEYS, now)
  return {
    redis.call('HGETALL', KEYS[1]), live, redis.call('ZCARD', KEYS[3]) - live,
    { level(buckets.requests), level(buckets.tokens) },
    ledger(today.day, today.day_left), ledger(today.month, today.month_left),
  }
end

redis.register_function('inferengine_quota_v1_reserve', reserve)
redis.register_function('inferengine_quota_v1_settle', settle)
redis.register_function('inferengine_quota_v1_renew', renew)
redis.register_function('inferengine_quota_v1_sweep', sweep_now)
redis.register_function({ function_name = 'inferengine_quota_v1_usage', callback = usage, flags = { 'no-writes' } })
