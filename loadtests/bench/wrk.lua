-- Random bodies of a file, as POST; what was measured as one line of JSON. load.py says what comes in.

local requests = {}

function init(_)
  local headers = { ["Content-Type"] = "application/json" }
  local key = os.getenv("BENCH_KEY")
  if key ~= "" then headers["Authorization"] = "Bearer " .. key end
  -- Formatted once: wrk shares its core with Redis, and should leave it most of it.
  for body in io.lines(os.getenv("BENCH_BODIES")) do
    requests[#requests + 1] = wrk.format("POST", os.getenv("BENCH_PATH"), headers, body)
  end
  math.randomseed(os.time())
end

function request()
  return requests[math.random(#requests)]
end

function done(summary, latency, _)
  local errors, counted, slow = summary.errors, 0, 0
  for at = 1, #latency do
    local microseconds, times = latency(at)
    counted = counted + times
    if microseconds > 400000 then slow = slow + times end
  end
  print(string.format(
    '{"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, "errors": %d, "slow": %.6f}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout, slow / math.max(counted, 1)))
end
