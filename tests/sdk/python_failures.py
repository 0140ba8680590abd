"""The current Python SDK when something goes wrong: what the balancer mends, and what it has to tell."""

import openai

import suite
from clients import AUDIO, answer_to, azure, chat, check_stream, done, each, says, v1
from suite import COLLEAGUE_KEY, KNOWN, LIMITED_KEY, expect, mine, raises, test


# Failover: the SDK needs no retry of its own


@each("one backend throttled")
async def _(client, api):
    create = client.chat.completions.with_raw_response.create
    raw = await done(create(model=mine("failover-chat"), messages=says("Anyone")))
    assert raw.parse().choices[0].message.content == answer_to("Anyone")
    attempts = int(raw.headers["x-aoai-lb-attempts"])
    # The first such request learns it, the next ones know.
    global learnt
    assert attempts == (1 if learnt else 2), attempts
    expect(
        statuses=[200] if learnt else [429, 200],
        backends=["westus"] if learnt else ["troubled", "westus"],
        backend="westus",
        upstream_deployment="gpt-4o",
        status=200,
    )
    learnt = True


learnt = False


@test("one backend throttled: an upload is sent again whole, under another name, v1")
def _():
    answer = v1().audio.transcriptions.create(model=mine("failover-dictation"), file=("speech.wav", AUDIO))
    assert f"{len(AUDIO)} bytes" in answer.text
    expect(operation="audio", statuses=[429, 200], upstream_deployment="whisper")


@test("one backend throttled: embeddings, classic")
def _():
    answer = azure().embeddings.create(model=mine("failover-vectors"), input="text")
    assert len(answer.data[0].embedding) == 1536
    expect(operation="embeddings", statuses=[429, 200], upstream_deployment="text-embedding-3-small")


for case in ("hidden-created", "hidden-failed", "hidden-alone"):

    @test(f"a refusal within a 200, {case}, v1 responses")
    def _(case=case):
        events = list(v1().responses.create(model=mine(case), input="Hidden", stream=True))
        kinds = [event.type for event in events]
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed", kinds
        assert kinds.count("response.created") == 1 and "error" not in kinds, kinds
        expect(operation="responses", backends=["troubled", "westus"], status=200, outcome="answered")


@test("a refusal within a 200, classic chat")
def _():
    check_stream(list(chat(azure(), mine("hidden-chat"), stream=True)), "Hello")
    expect(operation="chat", backends=["troubled", "westus"], status=200, outcome="answered")


@test("whatever fails fails over, and the SDK's own retries are not needed")
def _():
    learnt = ["failing-absent", "failing-locked"]
    for case in suite.FAILING:
        client = azure(max_retries=2)
        first = client.chat.completions.create(model=mine(case), messages=says("Once"))
        assert first.choices[0].message.content == answer_to("Once")
        expect(status=200, backends=[mine(case), "westus"], outcome="answered")
        # A stream as well; what was found out about credential and deployment is known by now.
        check_stream(list(chat(client, mine(case), stream=True)), "Hello")
        asked = ["westus"] if case in learnt else [mine(case), "westus"]
        expect(status=200, backends=asked, outcome="answered")


@test("the SDK's own retry, after as long as it was told")
def _():
    client = azure(max_retries=2)
    answer = client.chat.completions.create(model=mine("again"), messages=says("Again"))
    assert answer.choices[0].message.content == answer_to("Again")
    expect(status=429, statuses=[429])
    expect(status=200, statuses=[200])


# Errors


def check(error, status, code, **fields):
    """What every error carries, and the line of the record that belongs to it."""
    assert error.status_code == status, error
    assert error.code == code, (error.code, error.body)
    assert error.request_id, "no request id"
    assert error.message and isinstance(error.body, dict) and "message" in error.body, error.body
    expect(request_id=error.response.headers["x-aoai-lb-request-id"], status=status, **fields)


BOTH = {"classic": azure, "v1": v1}


@test("wrong key")
def _():
    for api, make in BOTH.items():
        error = raises(openai.AuthenticationError, chat, make(api_key="wrong"))
        refused = {"outcome": "refused", "refusal": "invalid_api_key", "statuses": []}
        check(error, 401, "invalid_api_key", client=None, api=api, backend=None, **refused)


@test("keys of two clients")
def _():
    client = azure(default_headers={"Ocp-Apim-Subscription-Key": COLLEAGUE_KEY})
    error = raises(openai.AuthenticationError, chat, client)
    check(error, 401, "invalid_api_key", client=None, refusal="invalid_api_key")


@test("deployment not allowed for this client")
def _():
    for api, make in BOTH.items():
        error = raises(openai.PermissionDeniedError, chat, make(api_key=LIMITED_KEY))
        refused = {"outcome": "refused", "refusal": "deployment_not_allowed", "statuses": []}
        check(error, 403, "deployment_not_allowed", client="limited", api=api, deployment="gpt-4o", **refused)
        chat(make(api_key=LIMITED_KEY), "gpt-4o-mini")
        expect(client="limited", status=200)


@test("files not allowed for this client")
def _():
    for make in BOTH.values():
        error = raises(openai.PermissionDeniedError, make(api_key=LIMITED_KEY).files.list)
        check(error, 403, "deployment_not_allowed", client="limited", operation="files")


@test("unknown deployment")
def _():
    for make in BOTH.values():
        asked = "no-such-deployment"
        error = raises(openai.NotFoundError, chat, make(), asked)
        refused = {"outcome": "refused", "refusal": "DeploymentNotFound", "statuses": []}
        check(error, 404, "DeploymentNotFound", deployment=asked, **refused)


@test("everything throttled")
def _():
    error = raises(openai.RateLimitError, chat, azure(), mine("throttled"))
    check_wait(error)
    check(error, 429, error.code, statuses=[429])
    # Now it is known, and nobody is asked.
    error = raises(openai.RateLimitError, chat, v1(), mine("throttled"))
    check_wait(error)
    check(error, 429, "all_throttled", outcome="refused", refusal="all_throttled", statuses=[])


def check_wait(error):
    headers = error.response.headers
    millis, seconds = float(headers["retry-after-ms"]), float(headers["retry-after"])
    assert 20_000 < millis <= 30_000 and millis / 1000 <= seconds <= 30, (millis, seconds)


@test("a bad request, relayed")
def _():
    for make in BOTH.values():
        error = raises(openai.BadRequestError, chat, make(), "gpt-4o-mini", messages=[])
        assert "messages" in error.message, error.message
        check(error, 400, error.code, outcome="answered", refusal=None, statuses=[400])


@test("the content filter, relayed with its verdicts")
def _():
    error = raises(openai.BadRequestError, chat, azure(), mine("filtered"))
    assert error.body["innererror"]["code"] == "ResponsibleAIPolicyViolation", error.body
    check(error, 400, "content_filter", outcome="answered", statuses=[400])


@test("a resource that is down")
def _():
    error = raises(openai.InternalServerError, chat, azure(), mine("down"))
    check(error, 503, error.code, backends=["troubled"] * 4)


@test("a resource that does not know its own key")
def _():
    error = raises(openai.InternalServerError, chat, azure(), "miskeyed")
    check(error, 503, "backend_misconfigured", refusal="backend_misconfigured")


@test("a stream that breaks off is an error, not an end")
def _():
    seen = []

    def read():
        for chunk in chat(azure(), mine("breaking"), stream=True):
            seen.append(chunk)

    raises(Exception, read)
    assert seen, "nothing came before"
    expect(stream=True, status=200, outcome="failed", backend="troubled", completion=KNOWN)


@test("a client that leaves a stream")
def _():
    for chunk in chat(azure(), mine("slow"), stream=True):
        if chunk.choices and chunk.choices[0].delta.content:
            break
    chunk = None
    expect(stream=True, outcome="client_gone")


suite.run()
