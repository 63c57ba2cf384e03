"""No bytes of a caller, an endpoint or a configuration become a header, a line or an answer that is not ours."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import orjson
import pytest
import yaml
from hostile_upstream import hostile_upstream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

OURS = {
    *("content-type", "content-length", "date", "server", "connection", "retry-after", "x-request-id", "cache-control"),
    *(
        f"x-pointsman-{name}"
        for name in ("decision-id", "model", "mode", "limits", "attempts", "overhead-ms", "cost-usd")
    ),
    *("x-accel-buffering", "transfer-encoding", "allow"),
}
SENT = {
    *("host", "content-type", "content-length", "accept-encoding", "accept", "user-agent", "authorization"),
    *("traceparent", "tracestate"),
}
LAW = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
nasty = st.lists(
    st.one_of(
        st.sampled_from(
            [b"\r\n", b"\n", b"\r", b"\0", b"\r\n\r\n", b"\r\nx-evil: 1\r\n", b"\r\n x-evil: 1", b"\x0b\x0c"]
        ),
        st.sampled_from(
            [b"\x1b[2J", b"\x7f", b"\x85", b"\xff\xfe", "\u2028é".encode(), b"%0d%0ax-evil: 1", b"\t", b" "]
        ),
        st.binary(max_size=12),
        st.sampled_from([b"a=b", b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01", b"5", b"math", b"\xc2\xb2", b"1e9"]),
    ),
    max_size=5,
).map(b"".join)
CALLERS = (
    *(b"x-request-id", b"x-pointsman-category", b"x-pointsman-tags", b"x-pointsman-session", b"x-pointsman-timeout-s"),
    *(b"traceparent", b"tracestate", b"cache-control", b"authorization", b"origin", b"accept", b"if-none-match"),
)


@pytest.fixture(scope="module")
def upstream():
    with hostile_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def service(run_service, upstream, tmp_path_factory):
    config = {
        "failures": {"retries": {"max_attempts": 1}},
        "models": [{"name": "m", "endpoint": f"{upstream.url}/v1", "breaker": {"enabled": False}}],
        "pools": [{"name": "auto", "models": ["m"]}],
    }
    with run_service(config, tmp_path_factory.mktemp("hostile")) as service:
        yield service


def answers(service, raw):
    """Everything the service says to `raw` on one connection, as (status, {header: value}, body) each."""
    host, port = urlsplit(service.url).netloc.split(":")
    found, received = [], b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(raw)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65_536):
                received += part
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        status, *lines = head.split(b"\r\n")
        headers = {}
        for line in lines:
            name, separator, value = line.partition(b": ")
            assert separator, head
            assert name.decode().lower() not in headers, head
            assert not any(byte < 32 or byte == 127 for byte in value if byte != 9), head
            headers[name.decode().lower()] = value
        assert status.startswith((b"HTTP/1.1 ", b"HTTP/1.0 400 ")), head  # the latter: what cannot be parsed
        length = headers.get("content-length")
        body = received if length is None else received[: int(length)]
        received = b"" if length is None else received[int(length) :]
        found.append((int(status.split()[1]), headers, body))
    return found


def post(path, body, *lines):
    head = [b"POST " + path + b" HTTP/1.1", b"Host: 127.0.0.1", b"Connection: close", b"Content-Type: application/json"]
    return b"\r\n".join([*head, b"Content-Length: %d" % len(body), *lines, b"", body])


def good(**more):
    body = orjson.dumps({"id": "x", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}} | more)
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


CHAT = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "hello"}]})


@LAW
@given(st.lists(st.tuples(st.sampled_from(CALLERS), nasty), min_size=1, max_size=3))
def test_a_callers_headers(service, upstream, lines):
    """Who writes a line break into a header has written two headers of a request; it is nothing more than that."""
    upstream.answer, upstream.heads[:] = good(), []
    told = answers(service, post(b"/v1/chat/completions", CHAT, *(name + b": " + value for name, value in lines)))
    for status, headers, body in told:
        assert status < 500 or status == 504, body
        assert set(headers) <= OURS, headers
    assert len(upstream.heads) <= 1
    for head in upstream.heads:
        names = {line.partition(b":")[0].decode().lower() for line in head.split(b"\r\n")[1:] if line}
        assert names <= SENT, head
        assert not set(b"\n\r\0") & set(head.replace(b"\r\n", b"")), head


@LAW
@given(nasty, nasty, nasty, st.sampled_from([200, 301, 400, 401, 422, 429, 500, 503, 529]), st.booleans())
def test_an_endpoints_answer(service, upstream, retry_after, kind, text, status, stream):  # noqa: PLR0917 - what is drawn
    """Its Retry-After, content type, reason, and in JSON whatever it says of the model, an id or an error's code."""
    said = text.decode(errors="replace")
    body = orjson.dumps(
        {"id": said, "model": said, "error": {"message": said, "code": said, "type": said, "param": said}}
    )
    head = b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nRetry-After: %s\r\nx-pointsman-mode: %s\r\n"
    head %= (status, text.replace(b"\r", b"").replace(b"\n", b""), kind, retry_after, text)
    upstream.answer = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    call = orjson.loads(CHAT) | {"stream": stream}
    (told,) = answers(service, post(b"/v1/chat/completions", orjson.dumps(call)))
    assert told[0] != 500, told
    assert set(told[1]) <= OURS, told
    assert told[1].get("retry-after", b"1").strip(), told


@LAW
@given(
    nasty, st.sampled_from([b"/v1/infer/", b"/admin/models/", b"/admin/decisions/", b"/dashboard/", b"/docs/", b"/"])
)
def test_names_in_a_path(service, upstream, name, path):
    upstream.answer = good()
    quoted = b"".join(b"%%%02x" % byte for byte in name)
    for written in (name.replace(b" ", b"").replace(b"\r", b"").replace(b"\n", b""), quoted):
        raw = b"GET " + path + written + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        for status, headers, _ in answers(service, raw):
            assert status != 500
            assert set(headers) <= OURS | {
                "etag",
                "content-security-policy",
                "x-content-type-options",
                "referrer-policy",
            }


def test_nothing_unforeseen_happened_and_no_line_of_the_log_was_forged(service):
    assert "unexpected error" not in service.log
    assert "Unhandled exception" not in service.log
    assert "\x1b" not in service.log


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("models", 0, "name"), "m\r\nx-evil: 1"),
        (("models", 0, "name"), "m\0"),
        (("models", 0, "upstream_model"), "m\nn"),
        (("models", 0, "api_key"), "key\r\nx-evil: 1"),
        (("models", 0, "headers"), {"x-a": "1\r\nx-evil: 1"}),
        (("models", 0, "headers"), {"x-a\r\nx-evil": "1"}),
        (("models", 0, "headers"), {"host": "evil.example"}),
        (("models", 0, "headers"), {"Transfer-Encoding": "chunked"}),
        (("models", 0, "endpoint"), "http://127.0.0.1:9/v1\r\nx-evil: 1"),
        (("pools", 0, "name"), "auto\r\nx-evil: 1"),
        (("budgets",), [{"scope": "all", "usd": 1, "name": "b\r\nx-evil:1", "kind": "soft"}]),
        (("budgets",), [{"scope": "all", "usd": 1, "webhook": "http://127.0.0.1/\r\nx-evil: 1"}]),
        (("tracing",), {"endpoint": "http://127.0.0.1:9", "headers": {"x-a": "\n1"}}),
    ],
)
def test_a_configuration_with_a_line_break_in_it_is_refused(tmp_path, path, value):
    config = {
        "models": [{"name": "m", "endpoint": "http://127.0.0.1:9/v1"}],
        "pools": [{"name": "auto", "models": ["m"]}],
    }
    place = config
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    (file := tmp_path / "p.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "serving", "check", "-c", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stdout
