"""Bad input: each has its status, its error body in OpenAI's shape, and leaves nothing recorded."""

from __future__ import annotations

import asyncio

import orjson
import pytest

MAX_BODY_BYTES, MAX_MESSAGES = 100_000, 5
HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": "auto", "messages": HELLO}
CHAT_PATH, TEXT_PATH, VECTOR_PATH = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    config = {
        "server": {"max_body_bytes": MAX_BODY_BYTES, "max_messages": MAX_MESSAGES, "body_timeout_s": 0.5},
        "models": [trial.model("good"), trial.model("fair")],
        "pools": [{"name": "auto", "models": ["good", "fair"]}],
    }
    with run_service(config, tmp_path_factory.mktemp("input")) as service:
        service.extra["decisions"] = []
        yield service


@pytest.fixture
def refused(service, expect_refusal):
    """Post what must be refused: (status, error)."""

    async def refused(path, body, headers=None, method="POST"):
        return await expect_refusal(service, method, path, body, headers)

    return refused


@pytest.mark.parametrize("path", [CHAT_PATH, TEXT_PATH, VECTOR_PATH, "/v1/route", "/reward", "/outcome"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model":"auto",}',
        b'{"model":"auto","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"\xff"}',
        b'{"x":NaN}',
        b'{"x":1e400}',
        b"[" * 2_000 + b"]" * 2_000,
        b"\xef\xbb\xbf{}",
        b"model=auto",
    ],
    ids=["empty", "cut", "comma", "surrogate", "no-utf8", "nan", "infinity", "deep", "bom", "form"],
)
async def test_what_is_no_json(refused, path, body):
    """Nor is NaN, half a surrogate pair, or nesting nobody means."""
    status, error = await refused(path, body)
    assert (status, error["code"], error["type"]) == (400, "invalid_json", "invalid_request_error")


@pytest.mark.parametrize("body", [[], [CHAT], 7, None, "auto", True])
@pytest.mark.parametrize("path", [CHAT_PATH, TEXT_PATH, VECTOR_PATH, "/v1/route"])
async def test_what_is_no_object(refused, path, body):
    assert (await refused(path, orjson.dumps(body)))[1]["code"] == "invalid_json"


def _chat(**fields):
    return CHAT_PATH, CHAT | fields


def _message(**fields):
    return CHAT_PATH, CHAT | {"messages": [*HELLO, {"role": "user", "content": "x"} | fields]}


BAD_FIELDS = [
    *((_chat(model=value), "model") for value in (None, 7, "", "x" * 257, ["auto"], {}, True)),
    ((CHAT_PATH, {"messages": HELLO}), "model"),
    *((_chat(messages=value), "messages") for value in (None, "hello", {}, [], 7)),
    ((CHAT_PATH, {"model": "auto"}), "messages"),
    *((_chat(messages=[value]), "messages[0]") for value in (None, "hello", 7, [])),
    *((_message(role=value), "messages[1].role") for value in (None, "", 7, ["user"])),
    *((_message(content=value), "messages[1].content") for value in (7, {}, True, 1.5)),
    *((_message(content=["ok", value]), "messages[1].content[0]") for value in ("x", 7)),
    (_message(content=[{"type": "text", "text": "x"}, 7]), "messages[1].content[1]"),
    *((_chat(stream=value), "stream") for value in ("yes", 1, [], {})),
    *((_chat(stream_options=value), "stream_options") for value in ("x", 1, [], True)),
    *((_chat(tools=value), "tools") for value in ("x", 1, {}, True)),
    *((_chat(response_format=value), "response_format") for value in ("json_object", 1, [])),
    *(
        ((TEXT_PATH, {"model": "auto", "prompt": value}), "prompt")
        for value in (None, 7, True, {}, [], [True], [1.5], [None], [{}])
    ),
    ((TEXT_PATH, {"model": "auto"}), "prompt"),
    *(
        ((VECTOR_PATH, {"model": "auto", "input": value}), "input")
        for value in (None, 7, True, {}, [], [True], [1.5], [None], [{}], ["x"] * (MAX_MESSAGES + 1))
    ),
    ((VECTOR_PATH, {"model": "auto", "input": "x", "stream": True}), "stream"),
    (("/v1/route", {"messages": HELLO}), "model"),
    (("/v1/route", {"model": "auto", "messages": [7]}), "messages[0]"),
    (("/v1/route", {"model": "auto", "prompt": 7}), "prompt"),
    (("/v1/route", {"model": "auto", "input": 7}), "input"),
]


@pytest.mark.parametrize(("request_", "param"), BAD_FIELDS)
async def test_a_field_of_the_wrong_type_is_named(refused, request_, param):
    status, error = await refused(*request_)
    assert (status, error["param"], error["code"]) == (400, param, "invalid_request")


async def test_too_many_messages(refused):
    status, error = await refused(*_chat(messages=HELLO * (MAX_MESSAGES + 1)))
    assert (status, error["param"], error["code"]) == (400, "messages", "too_many_messages")


async def test_what_may_be_read_but_not_written_again(refused):
    """A field of ours that is nested too deeply to be passed on is the caller's mistake, not ours."""
    body = orjson.dumps(CHAT)[:-1] + b',"x":' + b"[" * 400 + b"]" * 400 + b"}"
    status, error = await refused(CHAT_PATH, body)
    assert (status, error["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("path", "model", "near"), [(CHAT_PATH, "autp", "auto"), (CHAT_PATH, "goood", "good"), ("/v1/route", "aut", "auto")]
)
async def test_an_unknown_model_is_told_the_nearest_name(refused, path, model, near):
    status, error = await refused(path, CHAT | {"model": model})
    assert (status, error["param"], error["code"]) == (404, "model", "model_not_found")
    assert f"did you mean '{near}'" in error["message"]


async def test_routing_is_for_pools_only(refused):
    assert (await refused("/v1/route", CHAT | {"model": "good"}))[0] == 404


async def test_an_unknown_model_without_a_near_one_is_told_what_there_is(refused):
    _, error = await refused(*_chat(model="x" * 200))
    assert "auto, fair, good" in error["message"]
    assert len(error["message"]) < 250


async def test_unknown_paths_and_methods(refused, service, http):
    assert await refused("/v1/chat", CHAT) == (
        404,
        {"message": "Not Found", "type": "invalid_request_error", "param": None, "code": "http_404"},
    )
    for method, path, allowed in (
        ("GET", "/reward", "POST"),
        ("DELETE", CHAT_PATH, "POST"),
        ("POST", "/healthz", "GET"),
    ):
        status, error = await refused(path, None, method=method)
        assert (status, error["code"]) == (405, "http_405")
        async with http.request(method, service.url + path) as response:
            assert allowed in response.headers["Allow"]


@pytest.mark.parametrize("path", [CHAT_PATH, "/reward", "/outcome", "/v1/route"])
async def test_an_oversized_body(refused, path):
    """Whether its length was announced or not."""
    body = orjson.dumps(CHAT | {"x": "y" * MAX_BODY_BYTES})

    async def pieces():
        for start in range(0, len(body), 4096):
            yield body[start : start + 4096]

    for data in (body, pieces):
        status, error = await refused(path, data)
        assert (status, error["code"]) == (413, "body_too_large")


async def test_a_body_that_says_it_is_compressed(refused):
    """Not taken, so that no small body grows into a large one."""
    status, error = await refused(CHAT_PATH, b"\x1f\x8b", {"Content-Encoding": "gzip"})
    assert (status, error["param"]) == (400, "content-encoding")


async def test_a_body_that_does_not_come(service):
    head = b"POST /v1/route HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n{"
    answer = await _raw(service, head)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"code":"body_timeout"' in answer


async def test_a_body_whose_chunks_are_broken(service):
    before = service.events()
    head = b"POST /v1/route HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
    assert (await _raw(service, head, b"zz\r\n")).split(b" ", 2)[1] == b"400"
    assert service.events() == before


async def test_the_body_of_a_connect_is_no_second_request(service):
    """It is refused with the last answer of its connection: a proxy may take for its body what our parser does not."""
    before = service.events()
    body = orjson.dumps(CHAT)
    hidden = b"POST /v1/route HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    head = b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(hidden)
    answer = await _raw(service, head + hidden)
    assert answer.startswith(b"HTTP/1.1 404")
    assert answer.count(b"HTTP/1.1") == 1
    assert service.events() == before


async def _raw(service, *pieces):
    """What comes back for bytes sent piece by piece, up to the end of the first answer's body."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(10):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.05)  # so that each travels alone
            answer = await reader.readuntil(b"\r\n\r\n")
            return answer + await reader.read(1 << 16)
    finally:
        writer.close()


BAD_HEADERS = [
    ("x-pointsman-category", ""),
    ("x-pointsman-category", "x" * 65),
    ("x-pointsman-category", "\u00a0"),
    ("x-pointsman-tags", "a"),
    ("x-pointsman-tags", "a="),
    ("x-pointsman-tags", "=b"),
    ("x-pointsman-tags", "a=1,"),
    ("x-pointsman-tags", "a=1,a=2"),
    ("x-pointsman-tags", "a=" + "x" * 65),
    ("x-pointsman-tags", "a\u00a0b=1"),
    ("x-pointsman-tags", ",".join(f"t{i}=1" for i in range(11))),
]


@pytest.mark.parametrize(("name", "value"), BAD_HEADERS)
async def test_headers_of_ours_that_are_wrong(refused, name, value):
    for path in (CHAT_PATH, "/v1/route"):
        status, error = await refused(path, CHAT, {name: value})
        assert (status, error["param"], error["code"]) == (400, name, "invalid_header")


@pytest.mark.parametrize("name", ["x-pointsman-category", "x-pointsman-tags"])
async def test_headers_of_ours_that_are_no_text(service, name):
    before = service.events()
    body = orjson.dumps(CHAT)
    head = f"POST /v1/route HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n{name}: a=".encode()
    assert (await _raw(service, head + b"\xff\r\n\r\n" + body)).startswith(b"HTTP/1.1 400")
    assert service.events() == before


async def test_numbers_beyond_64_bits_and_keys_given_twice(service, http, trial):
    """Documented: the first lose digits, of the second the last counts, for us and for the endpoint."""
    body = b'{"model":"nobody","model":"good","messages":[{"role":"user","content":"x"}],"seed":1%s}' % (b"0" * 30)
    async with http.post(service.url + CHAT_PATH, data=body) as response:
        assert response.status == 200
        service.extra["decisions"].append((await response.json())["id"])
    received = (await trial.last_request(http))["body"]
    assert (received["model"], received["seed"]) == ("good", 1e30)


# --- and in the end


async def test_after_all_this_only_what_was_accepted_is_recorded(service):
    """Also after everything that might have been on its way is written; and nobody was surprised."""
    assert service.stop() == 0
    assert sorted(e["decision_id"] for e in service.events("decision")) == sorted(service.extra["decisions"])
    assert {e["decision_id"] for e in service.events()} <= {*service.extra["decisions"], ""}
    assert "Traceback" not in service.log
    assert "unexpected" not in service.log
