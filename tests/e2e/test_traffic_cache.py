"""The response cache on a real process: what is given again, to whom, for how long, and what never is."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import aiohttp
import openai
import orjson
import pytest
from numbered_upstream import COST_USD, TOOL, USAGE, Numbered

KEYS = {"ada": "search", "bob": "search", "eve": "ads"}
ADMIN = "operator-of-the-tests"
CALLERS = 12


@pytest.fixture(scope="module")
def upstream(serve_in_thread):
    upstream = Numbered()
    upstream.held.set()
    with serve_in_thread(upstream.app) as upstream.url:
        yield upstream


@pytest.fixture(scope="module")
def service(run_service, upstream, tmp_path_factory):
    pair = ["one", "two"]
    experiment = {"name": "tone", "unit": "user", "variants": [{"name": n, "share": 0.5, "model": n} for n in pair]}
    config = {
        "auth": {"admin_key": ADMIN, "keys": [{"key": f"key-of-{u}", "user": u, "team": t} for u, t in KEYS.items()]},
        "failures": {"retries": {"max_attempts": 1}},
        "models": [upstream.model(name, breaker={"enabled": False}) for name in pair],
        "pools": [
            {"name": "auto", "models": pair, "cache": {"max_wait_s": 10}},
            {"name": "brief", "models": pair, "cache": {"ttl_s": 0.4}},
            {"name": "own", "models": pair, "cache": {"scope": "user", "only_deterministic": False}},
            {"name": "tried", "models": pair, "cache": {}, "experiments": [experiment]},
            {"name": "plain", "models": pair},
        ],
    }
    with run_service(config, tmp_path_factory.mktemp("cache")) as service:
        yield service


numbers = itertools.count()


@pytest.fixture
def prompt():
    """A prompt that no other test has, with the words that steer the endpoint."""
    return lambda *words: " ".join(["question", str(next(numbers)), *words])


@pytest.fixture
def ask(service, http):
    """One call: status, headers, the answer or its error, what it says, and (of a stream) its events."""

    async def ask(prompt, model="auto", user="ada", session=None, headers=None, **more):
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0} | more
        headers = {"Authorization": f"Bearer key-of-{user}"} | (headers or {})
        url = f"{service.url}/v1/chat/completions"
        async with (session or http).post(url, json=body, headers=headers) as response:
            raw = await response.read()
        told = SimpleNamespace(status=response.status, headers=response.headers, events=None, body=None, text=None)
        told.mode, told.id = (response.headers.get(f"x-pointsman-{name}") for name in ("mode", "decision-id"))
        if body.get("stream") and response.status == 200:
            lines = raw.split(b"\n\n")
            assert lines[-2:] == [b"data: [DONE]", b""] or b'"error"' in lines[-2]
            told.events = [orjson.loads(line[6:]) for line in lines[:-2]]
            parts = [c["delta"].get("content") or "" for e in told.events for c in e["choices"]]
            told.text = "".join(parts)
        else:
            told.body = orjson.loads(raw)
            if response.status == 200:
                told.text = told.body["choices"][0]["message"]["content"]
        return told

    return ask


@pytest.fixture
def admin(service, http):
    async def admin(method, path, body=None):
        headers = {"Authorization": f"Bearer {ADMIN}"}
        async with http.request(method, service.url + path, json=body, headers=headers) as response:
            return response.status, await response.json()

    return admin


async def test_the_same_request_gets_the_same_answer_under_an_id_of_its_own(ask, upstream, prompt):
    text = prompt()
    first, again = await ask(text), await ask(text, user="bob")
    assert (first.mode, again.mode, upstream.asked[text]) == ("bandit", "cached", 1)
    assert again.body == first.body | {"id": again.id}
    assert again.id != first.id == first.body["id"]
    told = again.headers
    assert told["x-pointsman-model"] == first.headers["x-pointsman-model"] == again.body["model"]
    assert (float(told["x-pointsman-cost-usd"]), told["x-pointsman-attempts"]) == (0.0, "0")
    assert float(told["x-pointsman-saved-usd"]) == pytest.approx(COST_USD)
    assert 0 <= int(told["Age"]) < 30
    assert "Age" not in first.headers
    assert "x-pointsman-saved-usd" not in first.headers


async def test_another_request_or_another_tenant_gets_another_answer(ask, upstream, prompt):
    text = prompt()
    answers = [await ask(text), await ask(text, user="eve"), await ask(text, max_tokens=7), await ask(text, seed=1)]
    answers += [await ask(text, model="brief"), await ask(text, headers={"x-pointsman-category": "math"})]
    assert len({answer.text for answer in answers}) == len(answers) == upstream.asked[text]
    assert "cached" not in {answer.mode for answer in answers}


async def test_a_user_can_be_the_scope(ask, prompt):
    text = prompt()
    modes = [(await ask(text, model="own", user=user)).mode for user in ("ada", "bob", "ada")]
    assert modes == ["bandit", "bandit", "cached"]


async def test_only_requests_for_one_answer_are_kept_unless_the_pool_says_so(ask, upstream, prompt):
    text = prompt()
    warm = [(await ask(text, temperature=0.7)).mode for _ in range(2)]
    unsaid = [(await ask(text, temperature=None)).mode for _ in range(2)]
    assert (warm, unsaid, upstream.asked[text]) == (["bandit"] * 2, ["bandit"] * 2, 4)
    assert [(await ask(text, model="own", temperature=0.7)).mode for _ in range(2)] == ["bandit", "cached"]
    assert [(await ask(text, model="plain")).mode for _ in range(2)] == ["bandit", "bandit"]
    assert [(await ask(text, model="one")).mode for _ in range(2)] == ["pinned", "pinned"]


async def test_an_answer_is_given_until_it_is_too_old(ask, upstream, prompt):
    text = prompt()
    first = await ask(text, model="brief")
    await asyncio.sleep(0.5)
    later = await ask(text, model="brief")
    assert (later.mode, upstream.asked[text]) == ("bandit", 2)
    assert later.text != first.text


@pytest.mark.parametrize("words", [(), ("tool",)])
@pytest.mark.parametrize("first", [True, False])
async def test_a_stream_is_told_again_as_a_stream_and_as_a_whole(ask, upstream, prompt, first, words):
    """Whichever way it was first asked for; the content is the same to the byte, and so is a tool's call."""
    text = prompt(*words)
    made = await ask(text, stream=first)
    streamed, whole = await ask(text, stream=True), await ask(text)
    wants = {"stream": True, "stream_options": {"include_usage": True}}
    counted = await ask(text, **wants)
    assert upstream.asked[text] == 1
    assert {streamed.mode, whole.mode, counted.mode} == {"cached"}
    assert (made.text or "") == streamed.text == (whole.text or "") == counted.text
    for told in (streamed, counted):
        assert {(e["id"], e["model"], e["object"]) for e in told.events} == {
            (told.id, made.headers["x-pointsman-model"], "chat.completion.chunk")
        }
        assert float(told.headers["x-pointsman-saved-usd"]) == pytest.approx(COST_USD)
    assert not any("usage" in event for event in streamed.events)
    assert (counted.events[-1]["usage"], whole.body["usage"]) == (USAGE, USAGE)
    (choice,) = whole.body["choices"]
    assert choice["finish_reason"] == ("tool_calls" if words else "stop")
    if words:
        assert choice["message"]["tool_calls"] == [TOOL]
        (calls,) = [d["tool_calls"] for e in streamed.events for c in e["choices"] if "tool_calls" in (d := c["delta"])]
        assert calls == [{"index": 0, **TOOL}]


async def test_the_client_library_reads_a_kept_stream(service, prompt):
    key, messages = "key-of-ada", [{"role": "user", "content": prompt()}]
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0) as client:
        texts = []
        for _ in range(2):
            answer = await client.chat.completions.create(model="auto", messages=messages, temperature=0, stream=True)
            parts = [part async for part in answer]
            texts.append("".join(part.choices[0].delta.content or "" for part in parts if part.choices))
        vectors = [await client.embeddings.create(model="auto", input=messages[0]["content"]) for _ in range(2)]
    assert texts[0] == texts[1]
    assert vectors[0].data[0].embedding == vectors[1].data[0].embedding


@pytest.mark.parametrize(
    ("word", "stream"), [("fail", False), ("cut", False), ("fail", True), ("cut", True), ("break", True)]
)
async def test_what_failed_broke_off_or_was_cut_is_not_kept(ask, upstream, prompt, word, stream):
    text = prompt(word)
    answers = [await ask(text, stream=stream) for _ in range(2)]
    assert [answer.status for answer in answers] == [502 if word == "fail" else 200] * 2
    assert "cached" not in {answer.mode for answer in answers}
    assert upstream.asked[text] == 2


# --- at the same time


@pytest.fixture
async def under_way(ask, upstream, prompt, wait_until):
    """Makes a held call and others that wait for it: (the prompt, the first's task and session, the others' tasks)."""
    upstream.held.clear()
    sessions = []

    async def under_way(*words, others=CALLERS):
        text = prompt("hold", *words)
        sessions.append(session := aiohttp.ClientSession())
        first = asyncio.create_task(ask(text, session=session))
        await wait_until(lambda: upstream.asked[text])
        tasks = [asyncio.create_task(ask(text, user="bob", stream=i % 2 == 0)) for i in range(others)]
        await asyncio.sleep(0.3)  # were they to ask the endpoint themselves, they had
        assert upstream.asked[text] == 1
        return text, first, tasks

    yield under_way
    upstream.held.set()
    for session in sessions:
        await session.close()


async def test_concurrent_identical_requests_share_one_call(under_way, upstream):
    text, first, others = await under_way()
    upstream.held.set()
    made, *shared = await asyncio.gather(first, *others)
    assert upstream.asked[text] == 1
    assert {answer.text for answer in shared} == {made.text}
    assert [answer.mode for answer in shared] == ["cached"] * CALLERS
    assert len({answer.id for answer in shared} | {made.id}) == CALLERS + 1


async def test_a_leader_that_goes_away_leaves_the_lead_to_another(under_way, upstream, wait_until):
    text, first, others = await under_way()
    first.cancel()
    await wait_until(lambda: upstream.gone[text] == 1)
    await wait_until(lambda: upstream.asked[text] == 2)
    upstream.held.set()
    answers = await asyncio.gather(*others)
    assert upstream.asked[text] == 2
    assert {answer.status for answer in answers} == {200}
    assert sorted(answer.mode for answer in answers) == ["bandit"] + ["cached"] * (CALLERS - 1)
    assert len({answer.text for answer in answers}) == 1


@pytest.mark.parametrize("word", ["fail", "cut"])
async def test_where_the_first_brings_nothing_to_share_the_others_ask_themselves(under_way, upstream, word):
    text, first, others = await under_way(word, others=4)
    upstream.held.set()
    answers = await asyncio.gather(first, *others)
    assert {answer.status for answer in answers} <= {200, 502}
    assert "cached" not in {answer.mode for answer in answers}
    assert upstream.asked[text] == len(answers)


async def test_a_callers_own_time_bounds_its_wait(under_way, ask, upstream):
    text, first, _ = await under_way(others=0)
    late = await ask(text, headers={"x-pointsman-timeout-s": "0.2"})
    assert (late.status, late.body["error"]["code"]) == (504, "deadline_exceeded")
    upstream.held.set()
    assert (await first).status == 200


# --- what callers and operators say


async def test_cache_control_is_honoured(ask, upstream, prompt):
    text = prompt()

    async def mode(control):
        answer = await ask(text, headers={"Cache-Control": control})
        return answer.mode or answer.body["error"]["code"]

    assert await mode("only-if-cached") == "not_cached"
    assert await mode("no-store") == "bandit"
    assert await mode("only-if-cached") == "not_cached"  # what is not to be stored was not
    first = await ask(text)
    assert await mode("only-if-cached") == await mode("max-age=60") == "cached"
    assert await mode("no-cache") == "bandit"
    fresh = await ask(text)
    assert (fresh.mode, fresh.text != first.text) == ("cached", True)  # it took the place of the one before
    assert await mode("max-age=0") == "bandit"
    assert await mode("no-store") == "bandit"
    assert upstream.asked[text] == 5
    assert (await ask(text, headers={"Cache-Control": "max-age=soon"})).status == 400
    none = await ask(text, model="plain", headers={"Cache-Control": "only-if-cached"})
    assert (none.status, none.headers["x-should-retry"]) == (504, "false")


async def test_answers_of_a_disabled_model_are_not_given(ask, admin, prompt):
    text = prompt()
    model = (await ask(text)).headers["x-pointsman-model"]
    for path in ("/admin/pools/auto", f"/admin/models/{model}"):
        off, on = ([model], []) if "pools" in path else (True, False)
        assert (await admin("PATCH", path, {"disabled": off}))[0] == 200
        told = await ask(text)
        assert told.headers["x-pointsman-model"] != model
        assert (await admin("PATCH", path, {"disabled": on}))[0] == 200
    again = await ask(text)
    assert (again.mode, again.headers["x-pointsman-model"]) == ("cached", model)


async def test_an_operator_drops_what_is_kept_and_sees_what_was_saved(ask, admin, service, http, prompt):
    text = prompt()
    assert [(await ask(text)).mode for _ in range(2)] == ["bandit", "cached"]
    async with http.get(f"{service.url}/metrics") as response:
        metrics = dict(line.rsplit(" ", 1) for line in (await response.text()).splitlines() if line[0] != "#")
    label = '{pool="auto"}'
    saved = [float(v) for k, v in metrics.items() if k.startswith("pointsman_cache_saved_usd_total{model=")]
    assert sum(saved) >= COST_USD * 0.999
    assert float(metrics['pointsman_cache_requests_total{pool="auto",result="hit"}']) >= 1
    entries = float(metrics[f"pointsman_cache_entries{label}"])
    assert float(metrics[f"pointsman_cache_bytes{label}"]) > entries > 0
    assert await admin("DELETE", "/admin/pools/auto/cache") == (200, {"dropped": int(entries)})
    assert (await ask(text)).mode == "bandit"
    assert (await admin("DELETE", "/admin/pools/plain/cache"))[0] == 404


async def test_who_is_in_an_experiment_or_a_pool_with_a_canary_is_always_served_by_a_model(
    ask, admin, upstream, prompt
):
    text = prompt()
    answers = [await ask(text, model="tried", user=user) for user in ("ada", "bob") for _ in range(3)]
    assert {answer.mode for answer in answers} == {"weighted"}
    assert upstream.asked[text] == len(answers)
    assert (await admin("DELETE", "/admin/pools/tried/experiments/tone"))[0] == 200
    assert [(await ask(text, model="tried")).mode for _ in range(2)] == ["bandit", "cached"]
    canary = {"model": "two", "steps": [0.5, 1], "compare_to": "one"}
    assert (await admin("POST", "/admin/pools/tried/canary", canary))[0] == 201
    assert [(await ask(text, model="tried")).mode for _ in range(2)] == ["canary", "canary"]
    assert (await admin("DELETE", "/admin/pools/tried/canary"))[0] == 200
    held = [await ask(text, model="tried") for _ in range(2)]  # `two` is kept out: what it said is, too
    assert [answer.headers["x-pointsman-model"] for answer in held] == ["one", "one"]
