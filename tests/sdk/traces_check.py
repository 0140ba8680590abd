"""Decodes exported traces with the messages that OpenTelemetry publishes for Google's protobuf.

    python3 tests/sdk/traces_check.py BINARY

Runs in an environment with requirements-traces.txt. Prints what is wrong; exit code 1 if anything is.
"""

import gzip
import http.client
import json
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from stack import START_TIMEOUT, Stack, wait_for_condition

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """An OTLP receiver over HTTP that keeps what it gets."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), CollectorHandler)
        self.exports, self.problems = [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def spans(self):
        return [span for export in self.exports for resource in export.resource_spans for scope in resource.scope_spans for span in scope.spans]


class CollectorHandler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        export = ExportTraceServiceRequest.FromString(body)
        # Fields that the published messages do not have, or have with another type.
        export.DiscardUnknownFields()
        if self.path != "/v1/traces" or self.headers["content-type"] != "application/x-protobuf":
            self.server.problems.append(f"{self.path} {self.headers['content-type']}")
        if export.ByteSize() != len(body):
            self.server.problems.append(f"{len(body) - export.ByteSize()} bytes of {len(body)} are not of the published messages")
        self.server.exports.append(export)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


class TracedStack(Stack):
    """The stack of the SDK tests with traces, and without its second balancer."""

    collector = None

    def balancer_yaml(self, *arguments):
        return f"{super().balancer_yaml(*arguments)}traces: {{ endpoint: 'http://127.0.0.1:{self.collector.server_port}' }}\n"

    def start_edge(self, _):
        pass

    def chat(self, deployment):
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=30)
        headers = {"api-key": self.keys["python"], "content-type": "application/json", "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
        path = f"/openai/deployments/{deployment}/chat/completions?api-version=2024-10-21"
        try:
            connection.request("POST", path, json.dumps({"messages": [{"role": "user", "content": "hello"}]}), headers)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()


def value_of(value):
    kind = value.WhichOneof("value")
    return [value_of(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def attributes(holder):
    return {attribute.key: value_of(attribute.value) for attribute in holder.attributes}


def check_spans(collector):
    """The answered request comes first, then the throttled one."""
    [resource] = {tuple(sorted(attributes(spans.resource).items())) for export in collector.exports for spans in export.resource_spans}
    assert dict(resource)["service.name"] == "aoai-lb", resource
    spans = collector.spans()
    servers = {attributes(span)["http.response.status_code"]: span for span in spans if span.kind == Span.SPAN_KIND_SERVER}
    attempts = {attributes(span)["http.response.status_code"]: span for span in spans if span.kind == Span.SPAN_KIND_CLIENT}
    assert len(spans) == 4 and servers.keys() == attempts.keys() == {200, 429}, spans
    for status, server in servers.items():
        attempt = attempts[status]
        assert {span.trace_id.hex() for span in (server, attempt)} == {TRACE_ID}
        assert (server.parent_span_id.hex(), attempt.parent_span_id) == (PARENT_ID, server.span_id)
        assert server.name == "POST /openai/deployments/{deployment}/chat/completions", server.name
        # An attempt of less than a millisecond ends when it begins.
        assert server.start_time_unix_nano <= attempt.start_time_unix_nano <= attempt.end_time_unix_nano, (server, attempt)
        assert server.start_time_unix_nano < server.end_time_unix_nano, server
    answered, throttled = attributes(attempts[200]), attributes(attempts[429])
    assert attempts[200].name == "chat gpt-4o-mini" and attempts[200].status.code == Status.STATUS_CODE_UNSET, attempts[200]
    assert attempts[429].status.code == Status.STATUS_CODE_ERROR and throttled["error.type"] == "429", attempts[429]
    assert (answered["gen_ai.operation.name"], answered["gen_ai.provider.name"]) == ("chat", "azure.ai.openai"), answered
    assert answered["gen_ai.usage.input_tokens"] > 0 and answered["gen_ai.response.finish_reasons"] == ["stop"], answered
    assert throttled["aoai_lb.backend"] == "troubled" and "gen_ai.usage.input_tokens" not in throttled, throttled


def main():
    collector = Collector()
    with tempfile.TemporaryDirectory(prefix="aoai-lb-traces-") as directory:
        stack = TracedStack(Path(sys.argv[1]).resolve(), Path(directory))
        stack.collector = collector
        with stack:
            statuses = [stack.chat("gpt-4o-mini"), stack.chat("throttled-python")]
            wait_for_condition(lambda: len(collector.spans()) >= 4, START_TIMEOUT, f"no four spans of {statuses}", stack.balancer)
    assert statuses == [200, 429] and collector.problems == [], (statuses, collector.problems)
    check_spans(collector)


if __name__ == "__main__":
    main()
