"""The current Python SDK when something fails: failover by the balancer, and errors that reach the client."""

import openai

import suite
from clients import AUDIO, answer_to, azure_client, create_chat, check_stream, resolve, for_each_flavour, user_message, v1_client
from suite import COLLEAGUE_KEY, NOT_NULL, LIMITED_KEY, expect, own_deployment, raises, test


# Failover, without retries by the SDK


@for_each_flavour("one backend throttled")
async def _(client, api):
    create = client.chat.completions.with_raw_response.create
    raw = await resolve(create(model=own_deployment("failover-chat"), messages=user_message("Anyone")))
    assert raw.parse().choices[0].message.content == answer_to("Anyone")
    attempts = int(raw.headers["x-aoai-lb-attempts"])
    # The first request causes the cooldown; later ones use the other backend at once.
    global is_throttling_known
    assert attempts == (1 if is_throttling_known else 2), attempts
    expect(
        statuses=[200] if is_throttling_known else [429, 200],
        backends=["westus"] if is_throttling_known else ["troubled", "westus"],
        backend="westus",
        upstream_deployment="gpt-4o",
        status=200,
    )
    is_throttling_known = True


is_throttling_known = False


@test("one backend throttled: an upload is repeated completely with another model, v1")
def _():
    answer = v1_client().audio.transcriptions.create(model=own_deployment("failover-dictation"), file=("speech.wav", AUDIO))
    assert f"{len(AUDIO)} bytes" in answer.text
    expect(operation="audio", statuses=[429, 200], upstream_deployment="whisper")


@test("one backend throttled: embeddings, classic")
def _():
    answer = azure_client().embeddings.create(model=own_deployment("failover-vectors"), input="text")
    assert len(answer.data[0].embedding) == 1536
    expect(operation="embeddings", statuses=[429, 200], upstream_deployment="text-embedding-3-small")


for case in ("hidden-created", "hidden-failed", "hidden-alone"):

    @test(f"a refusal inside a 200, {case}, v1 responses")
    def _(case=case):
        events = list(v1_client().responses.create(model=own_deployment(case), input="Hidden", stream=True))
        kinds = [event.type for event in events]
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed", kinds
        assert kinds.count("response.created") == 1 and "error" not in kinds, kinds
        expect(operation="responses", backends=["troubled", "westus"], status=200, outcome="answered")


@test("a refusal inside a 200, classic chat")
def _():
    check_stream(list(create_chat(azure_client(), own_deployment("hidden-chat"), stream=True)), "Hello")
    expect(operation="chat", backends=["troubled", "westus"], status=200, outcome="answered")


@test("every failure fails over without retries by the SDK")
def _():
    for case in suite.FAILING_MOODS:
        client = azure_client(max_retries=2)
        first = client.chat.completions.create(model=own_deployment(case), messages=user_message("Once"))
        assert first.choices[0].message.content == answer_to("Once")
        expect(status=200, backends=[own_deployment(case), "westus"], outcome="answered")
        # The same for a stream. The balancer may have found by now that the deployment is missing.
        check_stream(list(create_chat(client, own_deployment(case), stream=True)), "Hello")
        if case == "failing-absent":
            expect(status=200, backend="westus", outcome="answered")
        else:
            expect(status=200, backends=[own_deployment(case), "westus"], outcome="answered")


@test("the SDK retries after the time in the response")
def _():
    client = azure_client(max_retries=2)
    answer = client.chat.completions.create(model=own_deployment("again"), messages=user_message("Again"))
    assert answer.choices[0].message.content == answer_to("Again")
    expect(status=429, statuses=[429])
    expect(status=200, statuses=[200])


# Errors


def check(error, status, code, **fields):
    """Checks an error and expects its record."""
    assert error.status_code == status, error
    assert error.code == code, (error.code, error.body)
    assert error.request_id, "expected a request id"
    assert error.message and isinstance(error.body, dict) and "message" in error.body, error.body
    expect(request_id=error.response.headers["x-aoai-lb-request-id"], status=status, **fields)


BOTH = {"classic": azure_client, "v1": v1_client}


@test("wrong key")
def _():
    for api, make in BOTH.items():
        error = raises(openai.AuthenticationError, create_chat, make(api_key="wrong"))
        refused = {"outcome": "refused", "refusal": "invalid_api_key", "statuses": []}
        check(error, 401, "invalid_api_key", client=None, api=api, backend=None, **refused)


@test("keys of two clients")
def _():
    client = azure_client(default_headers={"Ocp-Apim-Subscription-Key": COLLEAGUE_KEY})
    error = raises(openai.AuthenticationError, create_chat, client)
    check(error, 401, "invalid_api_key", client=None, refusal="invalid_api_key")


@test("deployment not allowed for this client")
def _():
    for api, make in BOTH.items():
        error = raises(openai.PermissionDeniedError, create_chat, make(api_key=LIMITED_KEY))
        refused = {"outcome": "refused", "refusal": "deployment_not_allowed", "statuses": []}
        check(error, 403, "deployment_not_allowed", client="limited", api=api, deployment="gpt-4o", **refused)
        create_chat(make(api_key=LIMITED_KEY), "gpt-4o-mini")
        expect(client="limited", status=200)


@test("files not allowed for this client")
def _():
    for make in BOTH.values():
        error = raises(openai.PermissionDeniedError, make(api_key=LIMITED_KEY).files.list)
        check(error, 403, "deployment_not_allowed", client="limited", operation="files")


@test("unknown deployment")
def _():
    for make in BOTH.values():
        requested = "no-such-deployment"
        error = raises(openai.NotFoundError, create_chat, make(), requested)
        refused = {"outcome": "refused", "refusal": "DeploymentNotFound", "statuses": []}
        check(error, 404, "DeploymentNotFound", deployment=requested, **refused)


@test("all backends throttled")
def _():
    error = raises(openai.RateLimitError, create_chat, azure_client(), own_deployment("throttled"))
    check_wait(error)
    check(error, 429, error.code, statuses=[429])
    # Now the cooldown is known, and no backend is tried.
    error = raises(openai.RateLimitError, create_chat, v1_client(), own_deployment("throttled"))
    check_wait(error)
    check(error, 429, "all_throttled", outcome="refused", refusal="all_throttled", statuses=[])


def check_wait(error):
    headers = error.response.headers
    millis, seconds = float(headers["retry-after-ms"]), float(headers["retry-after"])
    assert 20_000 < millis <= 30_000 and millis / 1000 <= seconds <= 30, (millis, seconds)


@test("a bad request is relayed")
def _():
    for make in BOTH.values():
        error = raises(openai.BadRequestError, create_chat, make(), "gpt-4o-mini", messages=[])
        assert "messages" in error.message, error.message
        check(error, 400, error.code, outcome="answered", refusal=None, statuses=[400])


@test("a content filter error is relayed with its details")
def _():
    error = raises(openai.BadRequestError, create_chat, azure_client(), own_deployment("filtered"))
    assert error.body["innererror"]["code"] == "ResponsibleAIPolicyViolation", error.body
    check(error, 400, "content_filter", outcome="answered", statuses=[400])


@test("a resource that is down")
def _():
    error = raises(openai.InternalServerError, create_chat, azure_client(), own_deployment("down"))
    check(error, 503, error.code, backends=["troubled"] * 4)


@test("a backend with a wrong key")
def _():
    error = raises(openai.InternalServerError, create_chat, azure_client(), "miskeyed")
    check(error, 503, "backend_misconfigured", refusal="backend_misconfigured")


@test("a truncated stream is an error for the SDK")
def _():
    received_chunks = []

    def read():
        for chunk in create_chat(azure_client(), own_deployment("breaking"), stream=True):
            received_chunks.append(chunk)

    raises(Exception, read)
    assert received_chunks, "expected some chunks before the error"
    expect(stream=True, status=200, outcome="failed", backend="troubled", completion=NOT_NULL)


@test("a client that disconnects during a stream")
def _():
    for chunk in create_chat(azure_client(), own_deployment("slow"), stream=True):
        if chunk.choices and chunk.choices[0].delta.content:
            break
    chunk = None
    expect(stream=True, outcome="client_gone")


suite.run_tests()
