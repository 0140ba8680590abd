"""Made-up states of a balancer: what `GET /api/status` and `GET /api/requests` return."""

import hashlib
import math
from datetime import datetime, timedelta, timezone

TIMELINE_STEPS = 180
HOSTILE_MARKUP = "<img src=x onerror=alert(1)>"


def seconds_ago(seconds):
    return (datetime.now(timezone.utc) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def backend(name, tick=0, share=0.2, tier=1, **more):
    oscillation = math.sin(tick / 7 + len(name))
    document = {
        "name": name,
        "endpoint": f"contoso-{name}.openai.azure.com",
        "tier": tier,
        "weight": 1,
        "state": "healthy",
        "reason": None,
        "since": None,
        "until": None,
        "until_ms": None,
        "in_flight": 3 + round(2 * oscillation),
        "oldest_attempt_seconds": None,
        "last_error": None,
        "attempts": 12034 + 7 * tick,
        "counters": {"answered": 11890 + 7 * tick, "throttled": 120, "failed": 4, "refused": 18, "client_gone": 2},
        "last_minute": {
            "attempts": round(600 * share),
            "throttled": 2,
            "failed": 0,
            "share": share,
            "p50_ms": 830 + round(90 * oscillation),
            "p95_ms": 2400 + round(300 * oscillation),
        },
        "resting": [],
        "deployments": [deployment("gpt-4o", 0.5 + 0.3 * oscillation)],
    }
    return document | more


def deployment(name, remaining=0.7, **more):
    document = {"name": name, "state": "healthy", "reason": None, "since": None, "until": None, "until_ms": None}
    document |= {"remaining_tokens": round(240000 * remaining), "limit_tokens": 240000}
    document |= {"remaining_requests": round(1440 * remaining), "limit_requests": 1440, "utilization": None}
    return document | more


def unavailability(state, seconds, remaining=None, reason=None):
    until = None if remaining is None else seconds_ago(-remaining)
    document = {"state": state, "since": seconds_ago(seconds), "until": until, "until_ms": None if remaining is None else remaining * 1000}
    return document | {"reason": reason}


def pool(name, *tiers, kind="deployment"):
    def member(fields):
        return {"backend": fields[0], "upstream": fields[1], "weight": fields[2], "state": fields[3], "until_ms": fields[4]}

    listed = [{"tier": index + 1, "members": [member(fields) for fields in members]} for index, members in enumerate(tiers)]
    return {"kind": kind, "deployment": name, "tiers": listed}


def refused(unauthorized=0, forbidden=0, not_found=0, throttled=0, other=0, failed=0):
    by_status = {"401": unauthorized, "403": forbidden, "404": not_found, "429": throttled, "other": other}
    return {"refused": by_status, "failed": failed}


def client(name, divisor):
    recent = {"requests": 88 // divisor, "input_tokens": 91000 // divisor, "output_tokens": 40200 // divisor} | refused()
    total = {"requests": 9182 // divisor, "input_tokens": 12000000 // divisor, "output_tokens": 3100000 // divisor} | refused()
    return {"name": name} | total | {"last_minute": recent}


def service(state, *problems, seconds=724):
    return {"state": state, "since": seconds_ago(seconds), "problems": [dict(zip(("state", "subject", "text"), problem)) for problem in problems]}


def sink(name, **more):
    document = {"sink": name, "backlog_records": 0, "backlog_bytes": 0, "backlog_seconds": None, "last_delivery": seconds_ago(1), "failing_since": None}
    document |= {"last_error": None, "last_error_at": None, "dropped": 0, "dropped_last_15_minutes": 0, "dead_letters": 0}
    return document | more


def certificate(name, days, used_by="listener 0.0.0.0:443"):
    seconds = round(days * 86400)
    return {"certificate": name, "expires": seconds_ago(-seconds), "expires_in_seconds": seconds, "used_by": [used_by]}


def credential(backend, days, part="key_vault_secret", renewal_error=None):
    seconds = round(days * 86400)
    return {"backend": backend, "part": part, "expires": seconds_ago(-seconds), "expires_in_seconds": seconds, "renewal_error": renewal_error}


def attempt(backend, start_ms, ms, status=None, error=None, first_byte_ms=None):
    return {"backend": backend, "status": status, "error": error, "start_ms": start_ms, "first_byte_ms": first_byte_ms, "ms": ms}


def troubled_request(number, trouble, status, cause, attempts=(), client="team-a", deployment="gpt-4o", **more):
    """The request that ended `number` seconds ago."""
    document = {"id": f"0199a3f0-7c1e-7b2a-9d44-{number:012x}", "time": seconds_ago(number), "trouble": trouble, "client": client, "client_ip": "10.1.2.3"}
    document |= {"deployment": deployment, "operation": "chat", "status": status, "outcome": "answered" if trouble in ("retried", "slow") else trouble}
    answering = next((attempt["backend"] for attempt in attempts if attempt["status"] == status), None)
    document |= {"refusal": None, "cause": cause, "backend": answering, "attempts": list(attempts), "attempts_left_out": 0}
    ends = [attempt["start_ms"] + attempt["ms"] for attempt in attempts]
    return document | {"duration_ms": max(ends, default=3), "first_byte_ms": 1840 if status == 200 else None, "waited_ms": 300, "queued_ms": 1500} | more


def trouble_list(count):
    """Requests of all kinds, newest first."""

    def request(number):
        throttled = attempt("eastus-ptu", 1, 38, 429, first_byte_ms=38)
        kinds = [
            ("retried", 200, "eastus-ptu: 429", [throttled, attempt("westus", 40, 2210, 200, first_byte_ms=1790)]),
            ("failed", 502, "eastus-ptu: connection refused, westus: 503", [attempt("eastus-ptu", 1, 3, error="connect_refused"), attempt("westus", 5, 812, 503, first_byte_ms=811)]),
            ("refused", 401, "no valid key, token or certificate, or those of two clients", []),
            ("refused", 429, "all backends are throttled", [throttled, attempt("westus", 41, 40, 429, first_byte_ms=40)]),
            ("slow", 200, "no first byte for more than 30 s", [attempt("sweden", 1, 61300, 200, first_byte_ms=44100)]),
        ]
        kind = kinds[number % len(kinds)]
        name = None if kind[1] == 401 else ["team-a", "team-b", "batch jobs+nightly"][number % 3]
        return troubled_request(number + 1, *kind, client=name)

    return [request(number) for number in range(count)]


def resource(name, *backends, entries=0, accepted=0, denied=0, requests=0, lag_ms=None):
    document = {"name": name, "backends": list(backends), "entries": entries, "asked": {"accepted": accepted, "denied": denied}}
    return document | {"last_minute_requests": requests, "last_read_lag_ms": lag_ms}


def affinity(*resources, **more):
    document = {"entries": sum(resource["entries"] for resource in resources), "capacity": 1_887_436, "bytes": 64 << 20, "evicted": 0, "evicted_with_maker": 0}
    return document | {"owner": "off", "not_saved": None, "resources": list(resources)} | more


def limit(name, value, used):
    return {"limit": name, "value": value, "used": used, "remaining": max(0, value - used)}


def limits():
    team_a = [limit("requests_per_minute", 600, 12), limit("deployments.gpt-4o.tokens_per_minute", 200_000, 199_999)]
    clients = [("team-b", "batch", [limit("tokens_per_day", 1000, 1200)]), ("team-a", "interactive", team_a)]
    return {"mode": "enforce", "budgets_not_saved": None, "clients": [{"client": name, "class": class_name, "limits": own} for name, class_name, own in clients]}


def shared(problem=None, *names):
    instances = [{"id": f"{i:016x}", "name": name, "version": "0.1.0", "since": seconds_ago(3600), "requests_per_second": 12.5 * i, "is_self": i == 0} for i, name in enumerate(names)]
    return {"up": problem is None, "problem": problem, "since": seconds_ago(90), "last_seen_count": len(instances), "instances": instances}


def queue(interactive=0, standard=0, batch=0, **lines):
    waiting = {"interactive": interactive, "standard": standard, "batch": batch}
    lines = [{"deployment": None if name == "none" else name, "waiting": count} for name, count in lines.items()]
    return {"wait_ms": 5000, "requests": 1000, "body_memory": 256 << 20, "waiting": waiting, "lines": lines}


def costs(*clients):
    """`clients` have a name, and what they cost today and in this month, with the responses that are left out."""

    def cost_sum(cost, provisioned=0, without_cost=0):
        return {"cost": cost, "provisioned": provisioned, "without_cost": without_cost}

    listed = [{"client": name, "today": cost_sum(*today), "month": cost_sum(*month)} for name, today, month in clients]
    return {"currency": "EUR", "not_saved": None, "clients": listed}


TEAM_COSTS = costs(("team-b", ("0.75",), ("12.5", 3, 2)), ("team-a", ("1.000001",), ("120.25", 4000, 1)), (None, ("0",), ("0", 0, 7)))

CALM = {
    "limits": limits,
    "affinity": lambda: affinity(
        resource("contoso-eastus.openai.azure.com:443", "eastus-ptu", "westus", entries=123_456, accepted=12, denied=3, requests=240, lag_ms=7200),
        resource("contoso-sweden.openai.azure.com:443", "sweden"),
    ),
    "service": lambda: service("healthy"),
    "refusals": lambda: [],
    "sinks": lambda: [sink("spool"), sink("jsonl"), sink("log_analytics", backlog_records=12, backlog_bytes=34_567, backlog_seconds=4)],
    "certificates": lambda: [certificate("/etc/aoai-lb/tls/listener.pem", 71), certificate("/etc/aoai-lb/tls/admin.pem", 200, "admin")],
    "credentials": lambda: [credential("westus", 90), credential("sweden", 45, "client_certificate")],
    "trouble": lambda: trouble_list(40),
}


def timeline(tick, has_problems=False, first_known_step=TIMELINE_STEPS):
    """The last 15 minutes. The process was started `first_known_step` steps ago; before that, values are unknown."""

    def samples(value):
        return [value(index + tick / 3) if index >= TIMELINE_STEPS - first_known_step else None for index in range(TIMELINE_STEPS)]

    load_factor = lambda index: 1 + 0.5 * math.sin(index / 23) + 0.16 * math.sin(index * 2.1) + 0.1 * math.sin(index * 5.3)
    has_problem = lambda index: has_problems and index % TIMELINE_STEPS > 130
    series = {
        "requests": samples(lambda index: round(110 * load_factor(index))),
        "throttled": samples(lambda index: round(18 * load_factor(index)) if has_problem(index) else 0),
        "failed": samples(lambda index: round(9 * load_factor(index)) if has_problem(index) else int(int(index) % 61 == 7)),
        "failovers": samples(lambda index: round(30 * load_factor(index)) if has_problem(index) else int(int(index) % 17 == 3)),
        "retries_429": samples(lambda index: round(24 * load_factor(index)) if has_problem(index) else int(int(index) % 23 == 5)),
        "input_tokens": samples(lambda index: round(52000 * load_factor(index))),
        "output_tokens": samples(lambda index: round(14000 * load_factor(index + 4))),
        "p50_ms": samples(lambda index: round(640 * load_factor(index)) if int(index) % 50 > 3 else None),
        "p95_ms": samples(lambda index: round((4100 if has_problem(index) else 1900) * load_factor(index + 2)) if int(index) % 50 > 3 else None),
        "in_flight": samples(lambda index: round(14 * load_factor(index))),
    }
    return {"step_seconds": 5, "until": seconds_ago(0), **series}


def status_document(tick, backends, pools, clients, configuration=None, process=None, has_problems=False, first_known_step=TIMELINE_STEPS, **more):
    """A calm status except for what is given."""
    calm = {name: make() for name, make in CALM.items() if name not in more}
    return calm | more | {
        "build": {"version": "0.1.0"},
        "process": {"pid": 4711, "started": seconds_ago(4211), "uptime_seconds": 4211 + tick, "ready": True, "stopping": False, "replaced": False, "drains_not_saved": None}
        | (process or {}),
        "configuration": {
            "file": "/etc/aoai-lb/aoai-lb.yaml",
            "version": 3,
            "sha256": hashlib.sha256(b"a configuration").hexdigest(),
            "loaded": seconds_ago(4000),
            "problem": None,
            "needs_upgrade": [],
        }
        | (configuration or {}),
        "in_flight": 12,
        "settled": 123456 + 31 * tick,
        "pools": pools,
        "backends": backends,
        "clients": clients,
        "timeline": timeline(tick, has_problems, first_known_step),
        "something_new": {"that": "the page does not know"},
    }


def healthy(tick=0):
    provisioned = deployment("gpt-4o-ptu", remaining_tokens=None, remaining_requests=None, utilization=0.83)
    backends = [
        backend("eastus-ptu", tick, 0.41, weight=2, deployments=[provisioned]),
        backend("westus", tick, 0.33, tier=2, deployments=[deployment("gpt-4o"), deployment("gpt-4o-mini", 0.2)]),
        backend("sweden", tick, 0.26, tier=2),
    ]
    pools = [
        pool("gpt-4o", [("eastus-ptu", "gpt-4o-ptu", 2, "healthy", None)], [(name, "gpt-4o", 1, "healthy", None) for name in ("westus", "sweden")]),
        pool("gpt-4o-mini", [("westus", "gpt-4o-mini", 1, "healthy", None)]),
        pool(None, [("westus", None, 1, "healthy", None)], kind="home"),
    ]
    return status_document(tick, backends, pools, [client(name, index + 1) for index, name in enumerate(["team-a", "team-b", "batch-jobs"])], costs=TEAM_COSTS)


def problems(tick=0):
    cooldown_reason = "answered 429, or sent retry-after"
    cooling = deployment("gpt-4o", 0.0, **unavailability("cooling", 4, 47, cooldown_reason))
    cooldown = {"deployment": "gpt-4o", "operation": None, "until": None, "until_ms": 47000, "reason": "cooling", "since": seconds_ago(4)}
    images = {"deployment": None, "operation": "images", "until": None, "until_ms": 3000, "reason": "permission", "since": seconds_ago(9)}
    flex = {**cooldown, "deployment": "gpt-5.6-sol", "service_tier": "flex", "until_ms": 12000}
    last_error = {"at": seconds_ago(12), "status": 503, "code": "ServiceUnavailable", "message": "The service is temporarily unable to process your request."}
    overdrawn = deployment("gpt-4o-overdrawn", remaining_tokens=-1200, remaining_requests=-3)
    cooling["remaining_tokens"] = 0
    backends = [
        backend("eastus-ptu", tick, 0.0, **unavailability("breaker_open", 12, 18, "failed too often; last: 503 ServiceUnavailable"), weight=2, last_error=last_error, oldest_attempt_seconds=34.2, deployments=[overdrawn]),
        backend("westus", tick, 0.62, tier=2, resting=[cooldown], deployments=[deployment(f"gpt-{index}", index / 9) for index in range(1, 8)] + [cooling]),
        backend("sweden", tick, 0.38, tier=2, resting=[images, flex]),
        backend("france", tick, 0.0, tier=2, **unavailability("credential", 900, None, "has no credential yet: the vault refuses")),
        backend("japan", tick, 0.0, tier=3, **unavailability("drained", 7200, None, "drained by the operator")),
    ]
    pools = [
        pool("gpt-4o", [("eastus-ptu", "gpt-4o-ptu", 2, "breaker_open", 18000)], [("westus", "gpt-4o", 1, "cooling", 47000), ("sweden", "gpt-4o", 1, "healthy", None)]),
        pool("o3", [("eastus-ptu", "o3", 1, "breaker_open", 18000)], [("france", "o3", 1, "credential", None)]),
        pool("gpt-4o-mini", [("westus", "gpt-4o-mini", 1, "healthy", None)]),
    ]
    problem = "backends[2].weight: must be at least 1"
    configuration = {"problem": problem, "needs_upgrade": ["listeners[0].address", "server.threads"]}
    parts = {
        "service": service(
            "failing",
            ("failing", "requests", "9 of 112 in the last 30 s were refused or failed; last: eastus-ptu: 503"),
            ("degraded", "eastus-ptu", "breaker_open: failed too often; last: 503 ServiceUnavailable"),
            ("degraded", "france", "credential: has no credential yet: the vault refuses"),
            ("degraded", "deployment o3", "no backend of it is available"),
            ("degraded", "log_analytics", "records are not delivered: 403 from the endpoint: the identity lacks the role Monitoring Metrics Publisher"),
            ("degraded", "configuration", f"the last reload failed: {problem}"),
            ("spilling", "westus", "its provisioned capacity is full, and others serve"),
            seconds=95,
        ),
        "refusals": [
            {"client": None} | refused(unauthorized=4012) | {"last_minute": refused(unauthorized=240)},
            {"client": "team-b"} | refused(forbidden=3, not_found=77, throttled=1024, failed=12) | {"last_minute": refused(not_found=7, throttled=52, failed=9)},
            {"client": "batch jobs+nightly"} | refused(other=2) | {"last_minute": refused()},
        ],
        "sinks": [
            sink("spool"),
            sink("jsonl"),
            sink(
                "log_analytics",
                backlog_records=None,
                backlog_bytes=734_003_200,
                backlog_seconds=5400,
                last_delivery=seconds_ago(5400),
                failing_since=seconds_ago(5390),
                last_error="403 from the endpoint: the identity lacks the role Monitoring Metrics Publisher",
                last_error_at=seconds_ago(3),
                dropped=1200,
                dropped_last_15_minutes=12,
                dead_letters=4,
            ),
        ],
        "certificates": [certificate("/etc/aoai-lb/tls/listener.pem", -1.5), certificate("/etc/aoai-lb/tls/backend.pem", 12, "backend westus"), certificate("/etc/aoai-lb/tls/admin.pem", 200, "admin")],
        "credentials": [credential("france", 2, "token", "the vault refuses: 403"), credential("westus", 90)],
        "trouble": trouble_list(120),
        "costs": TEAM_COSTS,
        "shared": shared("cannot use Redis at 10.0.0.4:6380: no answer in time", "vm-1/1234", "vm-2/99"),
        "affinity": affinity(
            resource("contoso-eastus.openai.azure.com:443", "eastus-ptu", "westus", entries=1_887_000, accepted=12, denied=3_456, requests=240, lag_ms=480),
            resource("a resource with quite a long name of its own", "sweden", "france", "japan", entries=1),
            evicted=1234,
            evicted_with_maker=5,
            not_saved="cannot use /var/lib/aoai-lb: Permission denied (os error 13)",
        ),
    }
    return status_document(tick, backends, pools, [client("team-a", 1), client("team-b", 3)], configuration, has_problems=True, **parts)


def stopping(tick=0):
    document = healthy(tick)
    document["process"] |= {"ready": False, "stopping": True}
    return document


def many_backends(tick, count, kinds, **more):
    names = [f"region-{index:03}" for index in range(count)]
    backends = [
        backend(name, tick, 1 / count, tier=1 + index % 3, weight=1 + index % 2, deployments=[deployment(f"gpt-4o-{part}", (index + part + tick) % 10 / 10) for part in range(3)])
        | (unavailability(*kinds[index]) if index in kinds else {})
        for index, name in enumerate(names)
    ]
    states = {document["name"]: (document["state"], document["until_ms"]) for document in backends}
    in_tiers = lambda index: [[(name, None, 1, *states[name]) for name in names[(2 * index + 4 * tier) % (count - 4) :][:4]] for tier in range(3)]
    pools = [pool(f"deployment-{index:02}", *in_tiers(index)) for index in range(count // 2)]
    return status_document(tick, backends, pools, [client(f"client-{index:03}", index + 1) for index in range(60)], **more)


def forty_backends(tick=0):
    return many_backends(tick, 40, {})


def forty_in_trouble(tick=0):
    kinds = {
        3: ("cooling", 3, 12, "answered 429, or sent retry-after; last: 429 RateLimitReached"),
        7: ("breaker_open", 5, 25, "failed too often; last: 503"),
        12: ("stalled", 41, None, "does not answer any more, not even a free question; an attempt waits for 71s"),
        18: ("unresolvable", 600, None, "contoso-region-018.openai.azure.com does not resolve: no such host"),
        21: ("absent", 50, 30, "the resource does not have a deployment; last: 404 DeploymentNotFound"),
        22: ("permission", 50, 30, "its credential may not do an operation (403); last: 403 PermissionDenied"),
        25: ("credential", 3900, None, "rejects its credential or our network (401, 403); last: 401 Access denied due to invalid subscription key"),
        30: ("failing", 20, None, "8 of 8 attempts of the last minute failed; last: connect to 10.0.0.4:443: connection refused"),
        33: ("drained", 90000, None, "drained by the operator"),
        36: ("disabled", 0, None, "enabled: false in the configuration"),
    }
    worst = problems(tick)
    found = [("degraded", f"region-{index:03}", f"{state}: {reason}") for index, (state, _, _, reason) in kinds.items() if state not in ("drained", "disabled")]
    whole = service("failing", ("failing", "requests", "31 of 402 in the last 30 s were refused or failed; last: region-030: connection refused"), *found, seconds=95)
    parts = {name: worst[name] for name in ("refusals", "sinks", "certificates", "credentials", "trouble")}
    return many_backends(tick, 40, kinds, service=whole, has_problems=True, **parts)


def spilling(tick=0):
    """A provisioned backend is full, and others serve."""
    document = healthy(tick)
    document["service"] = service("spilling", ("spilling", "eastus-ptu", "its provisioned capacity is full, and others serve"))
    document["backends"][0] |= unavailability("cooling", 2, 1, "answered 429, or sent retry-after") | {"oldest_attempt_seconds": 1.4}
    document["pools"][0]["tiers"][0]["members"][0] |= {"state": "cooling", "until_ms": 1000}
    return document


def hundred_backends(tick=0):
    kinds = {7: ("cooling", 3, 12), 40: ("breaker_open", 5, 25), 77: ("absent", 50, 30), 90: ("drained", 500, None)}
    whole = service("degraded", *[("degraded", f"region-{index:03}", kind[0]) for index, kind in kinds.items()])
    return many_backends(tick, 100, kinds, service=whole)


def hostile_names(tick=0):
    """The state `problems` with markup in every text, and with names that are special in JavaScript or URLs."""

    def add_markup(value, key=None):
        if isinstance(value, dict):
            return {name: add_markup(value_inside, name) for name, value_inside in value.items()}
        if isinstance(value, list):
            return [add_markup(value_inside, key) for value_inside in value]
        unchanged_keys = ("since", "until", "started", "loaded", "kind", "expires", "time", "at", "last_delivery", "failing_since", "last_error_at")
        return f"{HOSTILE_MARKUP}{value}" if isinstance(value, str) and key not in unchanged_keys else value

    document = add_markup(problems(tick))
    document["clients"] += [client(name, 5) for name in ("__proto__", "constructor", HOSTILE_MARKUP, HOSTILE_MARKUP, "‮evil", "x" * 200)]
    document["backends"].append(backend("</script><script>alert(2)</script>", tick, state="__proto__", since="not a date"))
    document["backends"].append(backend("a/../b?c#d", tick, endpoint="'\"><b>", reason="javascript:alert(3)"))
    return document


def null_values(tick=0):
    """All fields exist, and every value is null."""

    def nullify(value):
        if isinstance(value, dict):
            return {name: nullify(value_inside) for name, value_inside in value.items()}
        return [nullify(value_inside) for value_inside in value] if isinstance(value, list) else None

    document = nullify(healthy(tick))
    for request in document["trouble"]:
        # An empty list is not unknown.
        request["attempts"] = None
    return document


def missing_values(_=0):
    """Almost all fields are missing or have the wrong type."""
    return {"service": 7, "sinks": [{}], "certificates": [{}], "credentials": [None, {}], "refusals": [{}], "affinity": {"resources": [{}, 7]}, "shared": {"instances": [{}, 7]}, "costs": {"clients": [{}, 7]}, "trouble": {"requests": [{}, 3]}, "backends": [{}], "pools": [None, 7, {}], "clients": [{}], "timeline": None, "process": None, "build": None}


STATES = {make_state.__name__: make_state for make_state in (healthy, problems, spilling, stopping, forty_backends, forty_in_trouble, hundred_backends, hostile_names, null_values, missing_values)}
