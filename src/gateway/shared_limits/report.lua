-- Takes the report of one instance and grants leases. KEYS: one hash for each limit of the report, with an entry for each
-- instance. ARGV[1]: the report, in JSON. Of a budget, an entry has what was booked (`used`) and what was taken back of it
-- (`refunded`); both only rise, and earlier versions do not know the second one. Returns for each limit: what is granted, what is
-- left, what the others have, what this instance has booked and taken back of a budget, and a list: of a budget, the id of each
-- other instance with its two sums, of a rate, pairs of a second and an amount. Returns a text, and changes nothing, if another process has
-- reported under the id of this instance since this one has.
local report = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local second = tonumber(time[1])
local now = second * 1000 + math.floor(time[2] / 1000)
-- A second of a rate counts until 60 seconds after its end.
local oldest = second - 60

local function read(text)
  local is_valid, entry = pcall(cmsgpack.unpack, text)
  if is_valid and type(entry) == 'table' and entry.version == 1 then return entry end
end

local function write(key, id, entry)
  entry.version = 1
  if id == report.id then entry.writer = report.writer end
  redis.call('HSET', key, id, cmsgpack.pack(entry))
end

for index, limit in ipairs(report.limits) do
  if limit.is_known then
    local entry = read(redis.call('HGET', KEYS[index], report.id) or '')
    if entry and entry.writer and entry.writer ~= report.writer then return 'the id is in use' end
  end
end

local answers = {}
for index, limit in ipairs(report.limits) do
  local key = KEYS[index]
  -- What the server has lost of budgets.
  for position = 1, #limit.others, 3 do
    local id, used, refunded = limit.others[position], limit.others[position + 1], limit.others[position + 2]
    local entry = read(redis.call('HGET', key, id) or '')
    if not entry then
      write(key, id, { free = 0, held = 0, expires = 0, used = used, refunded = refunded, seconds = {} })
    elseif entry.used < used or (entry.refunded or 0) < refunded then
      entry.used = math.max(entry.used, used)
      entry.refunded = math.max(entry.refunded or 0, refunded)
      write(key, id, entry)
    end
  end
  local entries = redis.call('HGETALL', key)
  local own_used, own_refunded, others, others_refunded, living = limit.used, limit.refunded, 0, 0, 1
  local by_second, details = {}, {}
  for position = 1, #entries, 2 do
    local id, entry = entries[position], read(entries[position + 1])
    if not entry then
      -- It is of another version.
    elseif id == report.id then
      own_used = math.max(own_used, entry.used)
      own_refunded = math.max(own_refunded, entry.refunded or 0)
    else
      local refunded = entry.refunded or 0
      others = others + entry.used
      others_refunded = others_refunded + refunded
      if entry.used + refunded > 0 then
        table.insert(details, id)
        table.insert(details, entry.used)
        table.insert(details, refunded)
      end
      for slot = 1, #entry.seconds, 2 do
        local at, used = entry.seconds[slot], entry.seconds[slot + 1]
        if at >= oldest then
          others = others + used
          by_second[at] = (by_second[at] or 0) + used
        end
      end
      if now < entry.expires then
        others = others + entry.free + entry.held
        living = living + 1
      elseif entry.used + refunded == 0 and now > entry.expires + 120000 then
        redis.call('HDEL', key, id)
      end
    end
  end
  local own = own_used + limit.held + limit.free
  for slot = 2, #limit.seconds, 2 do
    own = own + limit.seconds[slot]
  end
  -- One instance takes back what another one has booked.
  local counted = math.max(others + own - others_refunded - own_refunded, 0)
  local room = math.max(limit.limit - counted, 0)
  local granted = math.min(limit.short, room)
  -- What is leased in advance is a fair part of what is left.
  granted = granted + math.min(limit.extra, math.floor((room - granted) / (2 * living)))
  if own_refunded + granted + own > 0 then
    write(key, report.id, {
      free = limit.free + granted,
      held = limit.held,
      expires = now + report.lifetime_ms,
      used = own_used,
      refunded = own_refunded,
      seconds = limit.seconds,
    })
    redis.call('PEXPIRE', key, limit.keep_ms)
  else
    redis.call('HDEL', key, report.id)
  end
  if granted < limit.short then
    for at, used in pairs(by_second) do
      table.insert(details, at)
      table.insert(details, used)
    end
  end
  answers[index] = { granted, room - granted, others, own_used, own_refunded, details }
end
return answers
