"""Endpoints that are no chat: what is sent to each kind, what is taken from it, and what the features see of a call."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from serving.config_file import ConfigError
from serving.errors import InvalidRequest
from serving.infer_body import parse_infer
from serving.model_settings import ModelSettings
from serving.providers.inference import OpenInference, PlainJson
from serving.providers.kinds import provider_of, served_by
from serving.request_headers import Hints
from serving.settings import Settings
from serving.upstream import ModelEndpoints
from serving.wire import Usage

URL = "http://127.0.0.1:1"
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 1]}


def call(body, size=40, **hints):
    return parse_infer("auto", body, size, Hints(**hints))


def model(**more):
    return ModelSettings.model_validate({"name": "m", "kind": "http", "endpoint": URL} | more)


def test_a_models_kind_and_protocol_say_who_speaks_for_it():
    assert type(provider_of(model())) is PlainJson
    assert type(provider_of(model(protocol="oip"))) is OpenInference
    assert served_by(model()) == ("infer",)
    assert "infer" not in served_by(ModelSettings.model_validate({"name": "m", "endpoint": URL}))


def test_json_of_its_own_is_sent_and_taken_as_it_is():
    plain, body = PlainJson(), {"anything": [1, 2.5, None], "model": "theirs"}
    assert plain.path(call(body), "m") == ""
    assert orjson.loads(plain.body(call(body), "m")) == body
    for answer in ([1], "text", None, {"id": "theirs"}):
        assert plain.answer(call(body), answer) == answer
        assert plain.usage(call(body), answer) == Usage(None, None)
    assert plain.usage(call(body), {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}) == Usage(3, 2)
    assert plain.marks(call(body), "d-1", "m") == {}
    with pytest.raises(InvalidRequest):
        plain.body(call({"text": "\ud800"}), "m")


@pytest.mark.parametrize(
    ("upstream_model", "path"),
    [
        ("resnet", "/v2/models/resnet/infer"),
        ("resnet/versions/2", "/v2/models/resnet/versions/2/infer"),
        ("a b?c", "/v2/models/a%20b%3Fc/infer"),
    ],
)
def test_the_protocols_path_names_the_model(upstream_model, path):
    assert OpenInference().path(call({}), upstream_model) == path


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [TENSOR]},
        {"inputs": [TENSOR | {"shape": [0, 2], "data": []}]},
        {"inputs": [TENSOR | {"datatype": "BYTES", "data": [["a", "b"]]}], "id": "7", "outputs": [{"name": "y"}]},
        {"inputs": [TENSOR | {"parameters": {"content_type": "np"}}], "parameters": {"sequence_id": 1}},
    ],
)
def test_what_the_protocol_says_is_sent(body):
    assert orjson.loads(OpenInference().body(call(body), "m")) == body


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"instances": [1]}, "inputs"),
        ({"inputs": {}}, "inputs"),
        ({"inputs": [1]}, "inputs[0]"),
        ({"inputs": [TENSOR, {}]}, "inputs[1].name"),
        ({"inputs": [TENSOR | {"shape": [-1]}]}, "inputs[0].shape"),
        ({"inputs": [TENSOR | {"shape": [True]}]}, "inputs[0].shape"),
        ({"inputs": [TENSOR | {"datatype": 32}]}, "inputs[0].datatype"),
        ({"inputs": [TENSOR | {"data": "AAAA"}]}, "inputs[0].data"),
        ({"inputs": [TENSOR | {"parameters": {"binary_data_size": 8}}]}, "inputs[0].parameters.binary_data_size"),
        ({"inputs": [TENSOR | {"parameters": []}]}, "inputs[0].parameters"),
        ({"inputs": [TENSOR], "outputs": {}}, "outputs"),
        ({"inputs": [TENSOR], "id": 7}, "id"),
        ({"inputs": [TENSOR] * 1_001}, "inputs"),
    ],
)
def test_what_it_does_not_is_refused_with_its_place(body, param):
    with pytest.raises(InvalidRequest) as caught:
        OpenInference().body(call(body), "m")
    assert caught.value.param == param


@pytest.mark.parametrize("answer", [[], {}, {"error": "no"}, {"outputs": 1}, {"outputs": [1]}])
def test_an_answer_without_outputs_is_malformed(answer):
    with pytest.raises(ValueError, match="outputs"):
        OpenInference().answer(call({}), answer)


def test_an_answers_id_is_the_callers_or_the_decisions():
    assert OpenInference().marks(call({}), "d-1", "m") == {"model_name": "m", "id": "d-1"}
    assert OpenInference().marks(call({"id": "mine"}), "d-1", "m")["id"] == "mine"


@pytest.mark.parametrize(
    ("body", "text", "turns"),
    [
        ({"text": "how now", "options": {"lang": "en"}}, "how now\nen", 1),
        ({"instances": [{"q": "a"}, {"q": "b"}, 3]}, "a\nb", 3),
        ({"inputs": [TENSOR | {"shape": [4, 2]}], "id": "i"}, "", 4),
        ({"inputs": [TENSOR | {"datatype": "BYTES", "shape": [2], "data": ["hey", "ho"]}]}, "hey\nho", 2),
        ({"image": "A" * 5_000, "caption": "a cat"}, "a cat", 1),
        ({"inputs": [{"shape": [-1]}], "n": [[[]]]}, "", 1),
    ],
)
def test_the_features_see_the_bodys_strings_its_length_and_its_inputs(body, text, turns):
    prompt = call(body, 4_000, category="night", vector=(1.0,)).prompt
    assert (prompt.text, prompt.turns, prompt.input_tokens) == (text, turns, 1_000)
    assert (prompt.category, prompt.vector) == ("night", (1.0,))


def test_only_a_part_of_a_body_is_looked_at():
    prompt = call({"rows": [[f"word {i} {j}" for j in range(2_000)] for i in range(2_000)]}).prompt
    assert 0 < len(prompt.text) <= 4_096
    assert call({"numbers": [[0.5] * 1_000] * 1_000, "late": "x"}).prompt.text == "x"


def test_a_call_costs_its_price_once_it_is_answered_and_a_share_of_it_in_a_batch():
    """Where tokens have a price and are not counted the cost is unknown, never zero."""

    async def costs(price):
        of = ModelEndpoints(model(price=price), 1_000)
        unknown, counted = Usage(None, None), Usage(1_000, 0)
        told = [of.cost_usd(unknown), of.cost_usd(unknown, answered=True), of.cost_usd(unknown, answered=True, calls=4)]
        told += [of.cost_usd(counted, answered=True), of.cost_usd(counted, answered=True, calls=4)]
        for endpoint in of.endpoints:
            await endpoint.close()
        return told

    assert asyncio.run(costs({"per_call": 0.4})) == [None, 0.4, 0.1, 0.4, pytest.approx(0.1)]
    per_token = {"input_per_million": 1.0, "output_per_million": 2.0, "per_call": 0.4}
    assert asyncio.run(costs(per_token)) == [None, None, None, pytest.approx(0.401), pytest.approx(0.101)]
    assert asyncio.run(costs(None)) == [None] * 5


def problems(models, pool=(), **more):
    with pytest.raises(ConfigError) as caught:
        Settings.parse({"models": models, "pools": [{"name": "p", "models": list(pool), **more}]})
    return {problem.path: problem.message for problem in caught.value.problems}


def test_settings_that_do_not_go_together_are_problems():
    chat, tensors = (
        {"name": "chat", "endpoint": URL},
        {"name": "oip", "kind": "http", "protocol": "oip", "endpoint": URL},
    )
    plain = {"name": "plain", "kind": "http", "endpoint": URL, "price": {"per_call": 0}}
    found = problems(
        [chat, tensors, plain], ["oip", "chat", "plain"], shadow={"model": "plain", "share": 0.1, "max_usd_per_day": 1}
    )
    assert set(found) == {"pools[0].models[1]", "pools[0].models[2]", "pools[0].shadow.model"}
    assert found["pools[0].models[1]"] == "'chat' takes OpenAI's calls, and 'oip' calls of the Open Inference Protocol"
    assert "models[0].protocol" in problems([chat | {"protocol": "oip"}], ["chat"])
    assert "models[0].batching" in problems([chat | {"kind": "anthropic", "batching": {}}], ["chat"])
    assert "models[0].batching.max_size" in problems([tensors | {"batching": {"max_size": 1}}], ["oip"])
    assert problems([plain | {"name": ["x"]}, 3], [["x"], {}])  # told, not raised
