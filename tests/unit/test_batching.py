"""Requests that go together: who waits for whom, what fits, and how answers come apart again."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import UpstreamError, UpstreamRefused, UpstreamTimeout
from serving.request_headers import Hints
from serving.traffic.batch_forms import form_of, shared_out
from serving.traffic.batching import Batcher, Shared
from serving.traffic.cache_settings import BatchingSettings
from serving.wire import Call, parse_call


def embed(given, **more):
    return parse_call("embeddings", {"model": "auto", "input": given} | more, Hints(), 100)


def infer(body):
    base = embed("x")
    return Call("infer", "auto", body, False, False, base.prompt)


class Endpoint:
    """Answers each input with its length; raises what `fails` says of a list of inputs."""

    def __init__(self, fails=lambda _: None):
        self.asked, self.fails, self.hold = [], fails, None
        self.begun = asyncio.Event()

    async def __call__(self, call):
        given = call.body["input"]
        inputs = given if isinstance(given, list) else [given]
        self.asked.append(inputs)
        self.begun.set()
        if self.hold is not None:
            await self.hold.wait()
        if (error := self.fails(inputs)) is not None:
            raise error
        data = [{"index": i, "embedding": [len(item)]} for i, item in enumerate(inputs)]
        tokens = sum(map(len, inputs))
        return {"data": data[::-1], "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def batcher(**more):
    return Batcher(BatchingSettings(**({"max_size": 3, "max_wait_ms": 1000.0} | more)))


async def both(*sends):
    """What each got: its answer or its error."""
    shared = await asyncio.wait_for(asyncio.gather(*sends, return_exceptions=True), 5)
    return [one.answer if isinstance(one, Shared) else one for one in shared]


async def test_requests_go_as_one_and_each_gets_its_own():
    spared = []
    endpoint, batches = Endpoint(), Batcher(BatchingSettings(max_size=3, max_wait_ms=1000.0), spared=spared.append)
    answers = await both(batches.send(embed("a"), "t", endpoint), batches.send(embed(["bb", "ccc"]), "t", endpoint))
    assert endpoint.asked == [["a", "bb", "ccc"]]
    assert [[(item["index"], item["embedding"]) for item in answer["data"]] for answer in answers] == [
        [(0, [1])],
        [(0, [2]), (1, [3])],
    ]
    assert sum(answer["usage"]["prompt_tokens"] for answer in answers) == 6
    assert (batches.batches, batches.joined, spared) == (1, 2, [1])


async def test_a_lonely_request_goes_when_its_wait_is_over():
    endpoint = Endpoint()
    (answer,) = await both(batcher(max_wait_ms=1.0).send(embed("a"), "t", endpoint))
    assert answer["data"][0]["embedding"] == [1]


async def test_other_tenants_parameters_and_kinds_of_input_do_not_fit():
    endpoint, batches = Endpoint(), batcher(max_wait_ms=1.0)
    calls = [("t", embed("a")), ("u", embed("a")), ("t", embed("a", dimensions=2)), ("t", embed([1, 2]))]
    await both(*(batches.send(call, tenant, endpoint) for tenant, call in calls))
    assert len(endpoint.asked) == 4
    batches = batcher(max_size=2, across_tenants=True)
    await both(batches.send(embed("a"), "t", endpoint), batches.send(embed("b"), "u", endpoint))
    assert endpoint.asked[-1] == ["a", "b"]


async def test_neither_inputs_nor_tokens_pass_their_limit():
    endpoint, batches = Endpoint(), batcher(max_wait_ms=1.0)
    await both(*(batches.send(embed(["a", "b"]), "t", endpoint) for _ in range(3)))
    await both(batches.send(embed(["a"] * 4), "t", endpoint))
    assert [len(inputs) for inputs in endpoint.asked] == [2, 2, 2, 4]
    endpoint, batches = Endpoint(), batcher(max_wait_ms=1.0, max_tokens=5)
    await both(*(batches.send(embed([[1, 2, 3]]), "t", endpoint) for _ in range(2)))
    assert len(endpoint.asked) == 2


async def test_one_bad_input_fails_nobody_else():
    def fails(inputs):
        return UpstreamRefused("m", 400, {"message": "bad"}) if "bad" in inputs else None

    endpoint, batches = Endpoint(fails), batcher()
    good, bad, fine = await both(*(batches.send(embed(text), "t", endpoint) for text in ("a", "bad", "cc")))
    assert isinstance(bad, UpstreamRefused)
    assert (good["data"][0]["embedding"], fine["data"][0]["embedding"]) == ([1], [2])
    assert len(endpoint.asked) == 4


@pytest.mark.parametrize(
    "error", [UpstreamError("m", "the endpoint answered 500", 500), UpstreamTimeout("m", 1.0), RuntimeError("?")]
)
async def test_what_is_nobodys_fault_is_everybodys_error_of_their_own(error):
    """The endpoint is asked once, and each may write its decision's id into its error."""
    endpoint, batches = Endpoint(lambda _: error), batcher()
    raised = await both(*(batches.send(embed("a"), "t", endpoint) for _ in range(3)))
    assert [(type(one), str(one), vars(one)) for one in raised] == [(type(error), str(error), vars(error))] * 3
    assert len({id(one) for one in raised}) == 3
    assert len(endpoint.asked) == 1


async def test_who_leaves_cancels_nobody_and_the_last_one_the_call():
    endpoint, batches = Endpoint(), batcher()
    endpoint.hold = asyncio.Event()
    waiting = [asyncio.create_task(batches.send(embed("a"), "t", endpoint)) for _ in range(3)]
    await endpoint.begun.wait()
    endpoint.begun.clear()
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    endpoint.hold.set()
    answers = await both(*waiting[1:])
    assert [answer["data"][0]["embedding"] for answer in answers] == [[1], [1]]
    endpoint.hold = asyncio.Event()
    waiting = [asyncio.create_task(batches.send(embed("a"), "t", endpoint)) for _ in range(3)]
    await endpoint.begun.wait()
    (under_way,) = batches._tasks
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await asyncio.wait([under_way], timeout=5)
    assert under_way.cancelled()


async def test_who_leaves_before_it_is_sent_is_not_sent():
    endpoint, batches = Endpoint(), batcher(max_size=2)
    first = asyncio.create_task(batches.send(embed("gone"), "t", endpoint))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await both(*(batches.send(embed(text), "t", endpoint) for text in ("a", "b")))
    assert endpoint.asked == [["a", "b"]]


async def test_no_more_calls_are_under_way_than_the_endpoint_takes():
    """Also of those that go one by one: the fourth call is one of three that a refusal has set free."""
    now, most = [0], [0]

    async def refusing(call):
        now[0] += 1
        most[0] = max(most[0], now[0])
        await asyncio.sleep(0)
        now[0] -= 1
        if isinstance(call.body["input"], list):
            raise UpstreamRefused("m", 400, {"message": "one at a time"})
        return {"data": []}

    batches = Batcher(BatchingSettings(max_size=3, max_wait_ms=1000.0), most_at_once=2)
    await both(*(batches.send(embed(text), "t", refusing) for text in "abcdef"))
    assert most == [2]


async def test_an_answer_that_does_not_fit_is_asked_for_singly():
    async def short(call):
        given = call.body["input"]
        return {"data": [{"index": 0, "embedding": [len(given)]}]}

    batches = batcher()
    answers = await both(*(batches.send(embed(text), "t", short) for text in ("a", "bb", "ccc")))
    assert [answer["data"][0]["embedding"] for answer in answers] == [[1], [2], [3]]


@pytest.mark.parametrize("nested", [False, True])
def test_tensors_are_joined_and_cut_along_their_first_axis(nested):
    def tensor(rows):
        data = [[row, row + 0.5] for row in rows]
        flat = [value for row in data for value in row]
        return {"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": data if nested else flat}

    forms = [form_of(infer({"id": str(i), "inputs": [tensor(rows)]})) for i, rows in enumerate(([1], [2, 3]))]
    assert forms[0].key == forms[1].key
    merged = forms[0].join(forms).body["inputs"][0]
    assert (merged["shape"], merged["data"]) == ([3, 2], tensor([1, 2, 3])["data"])
    output = {"name": "y", "datatype": "FP32", "shape": [3], "data": [10, 20, 30]}
    parts = forms[0].split({"id": "0", "model_name": "m", "outputs": [output]}, forms)
    assert [(part["id"], part["outputs"][0]["shape"], part["outputs"][0]["data"]) for part in parts] == [
        ("0", [1], [10]),
        ("1", [2], [20, 30]),
    ]
    with pytest.raises(ValueError, match="first axis"):
        forms[0].split({"outputs": [{**output, "shape": [1], "data": [10]}]}, forms)


def test_instances_are_joined_and_predictions_cut():
    forms = [form_of(infer({"instances": list(given)})) for given in ("a", "bc")]
    assert forms[0].join(forms).body["instances"] == ["a", "b", "c"]
    parts = forms[0].split({"predictions": [1, 2, 3], "version": "7"}, forms)
    assert parts == [{"predictions": [1], "version": "7"}, {"predictions": [2, 3], "version": "7"}]
    assert forms[0].split([1, 2, 3], forms) == [[1], [2, 3]]
    with pytest.raises(ValueError, match="one item for each"):
        forms[0].split([1, 2], forms)


@pytest.mark.parametrize(
    "call",
    [
        embed(["a", ""]),
        embed(["a", [1]]),
        infer({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1, 2], "data": [1]}]}),
        infer({"inputs": [{"name": "x", "datatype": "FP32", "shape": [4], "parameters": {"binary_data_size": 16}}]}),
        infer({"anything": 1}),
    ],
)
def test_what_is_not_plainly_of_a_form_goes_alone(call):
    assert form_of(call) is None


@given(st.integers(0, 10**9), st.lists(st.integers(1, 10**6), min_size=1, max_size=20))
def test_what_is_shared_out_adds_up_and_none_is_off_by_one(total, weights):
    shares = shared_out(total, weights)
    assert sum(shares) == total
    assert all(
        abs(share * sum(weights) - total * weight) < sum(weights) for share, weight in zip(shares, weights, strict=True)
    )


@pytest.mark.parametrize("data", [[{}, {}], [{"index": 0}, {"index": 0}], [{"index": 0}, {"index": "b"}], [0, 1]])
def test_an_answer_whose_indices_are_wrong_does_not_fit(data):
    forms = [form_of(embed(text)) for text in "ab"]
    with pytest.raises(ValueError, match="indices"):
        forms[0].split({"data": data}, forms)
