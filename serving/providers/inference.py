"""Endpoints of any other model: those that take a JSON object of their own, and those of the Open Inference Protocol.

Bodies pass as they are; the protocol's are checked, so that what it cannot say is known before anything is recorded.
It must never know what a tensor means, nor what OpenAI's protocol wants. The protocol: "Open Inference Protocol",
inference_rest.md; its binary extension is not spoken.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

import orjson
from pydantic import SecretStr

from serving.errors import InvalidRequest
from serving.providers.openai import reason_of
from serving.providers.protocol import EventTranslator, Reason
from serving.wire import Call, Usage, usage_of

__all__ = ["OpenInference", "PlainJson"]

_BINARY: Final = ("binary_data_size", "binary_data", "binary_data_output")  # parameters of the binary extension
_MAX_TENSORS: Final = 1_000


class PlainJson:
    """A JSON object, posted to the endpoint's own URL; the answer is any JSON value."""

    def path(self, call: Call, upstream_model: str) -> str:
        """None: the endpoint is the URL itself."""
        del call, upstream_model
        return ""

    def can_say(self, call: Call) -> bool:
        """Whether it is an inference call; what is wrong with the body of one is for its caller to hear."""
        return call.kind == "infer"

    def body(self, call: Call, upstream_model: str) -> bytes:
        """The caller's own body."""
        del upstream_model
        try:
            return orjson.dumps(call.body)
        except orjson.JSONEncodeError as error:  # a lone surrogate, for one
            raise InvalidRequest(f"the body cannot be passed on as JSON: {error}", code="invalid_json") from None

    def headers(self, api_key: SecretStr | None) -> dict[str, str]:
        """The key as a bearer token; one that goes elsewhere is for the model's own `headers`."""
        return {} if api_key is None else {"Authorization": f"Bearer {api_key.get_secret_value()}"}

    def answer(self, call: Call, parsed: Any) -> Any:
        """The answer as it is."""
        del call
        return parsed

    def usage(self, call: Call, answer: Any) -> Usage:
        """From a field `usage` as OpenAI has it; without one the tokens are unknown, if there are any."""
        del call
        return usage_of(answer) if isinstance(answer, dict) else Usage(None, None)

    def marks(self, call: Call, decision_id: str, model: str) -> dict[str, str]:
        """None: nothing is put into an answer whose fields are not known."""
        del call, decision_id, model
        return {}

    def events(self, call: Call) -> EventTranslator | None:
        """None: inference is not streamed."""
        del call
        return None

    def refusal(self, status: int, error: dict[str, Any]) -> Reason | None:
        """By what its message says, as servers of text models do."""
        return reason_of(status, error)


class OpenInference(PlainJson):
    """The Open Inference Protocol, version 2, over HTTP: named tensors in, named tensors out."""

    def path(self, call: Call, upstream_model: str) -> str:
        """The model's own path; `name/versions/2` as its name is one version of it."""
        del call
        return f"/v2/models/{quote(upstream_model, safe='/')}/infer"

    def body(self, call: Call, upstream_model: str) -> bytes:
        """The caller's own body, once it is what the protocol says."""
        _check(call.body)
        return super().body(call, upstream_model)

    def answer(self, call: Call, parsed: Any) -> Any:
        """The answer as it is, once it has outputs."""
        del call
        outputs = parsed.get("outputs") if isinstance(parsed, dict) else None
        if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
            raise ValueError("the answer has no list of outputs")
        return parsed

    def marks(self, call: Call, decision_id: str, model: str) -> dict[str, str]:
        """`model_name`, and `id`: the caller's own where it sent one, as the protocol promises, else the decision's."""
        return {"model_name": model, "id": call.body.get("id", decision_id)}


def _check(body: dict[str, Any]) -> None:
    """Raise InvalidRequest, with the field's path, where a body is no request of the protocol."""
    if not isinstance(body.get("id", ""), str):
        raise InvalidRequest("must be a string", "id")
    if "binary_data_output" in _object(body, "parameters", "parameters"):
        raise _binary("parameters.binary_data_output")
    for i, tensor in enumerate(_tensors(body, "inputs", required=True)):
        at = f"inputs[{i}]"
        _named(tensor, at)
        shape = tensor.get("shape")
        if not isinstance(shape, list) or not all(_natural(n) for n in shape):
            raise InvalidRequest("must be a list of whole numbers", f"{at}.shape")
        if not isinstance(tensor.get("datatype"), str):
            raise InvalidRequest("must be a string such as FP32 or BYTES", f"{at}.datatype")
        if not isinstance(tensor.get("data"), list):
            raise InvalidRequest("must be a list, nested or flat", f"{at}.data")
    for i, tensor in enumerate(_tensors(body, "outputs", required=False)):
        _named(tensor, f"outputs[{i}]")


def _tensors(body: dict[str, Any], field: str, *, required: bool) -> list[Any]:
    tensors = body.get(field, None if required else [])
    if not isinstance(tensors, list) or (required and not tensors):
        raise InvalidRequest("must be a list of tensors, as the Open Inference Protocol says", field)
    if len(tensors) > _MAX_TENSORS:
        raise InvalidRequest(f"at most {_MAX_TENSORS:,} tensors", field)
    return tensors


def _named(tensor: Any, at: str) -> None:
    if not isinstance(tensor, dict):
        raise InvalidRequest("must be an object", at)
    if not isinstance(tensor.get("name"), str):
        raise InvalidRequest("must be a string", f"{at}.name")
    for name in _object(tensor, "parameters", f"{at}.parameters"):
        if name in _BINARY:
            raise _binary(f"{at}.parameters.{name}")


def _object(holder: dict[str, Any], field: str, at: str) -> dict[str, Any]:
    value = holder.get(field, {})
    if not isinstance(value, dict):
        raise InvalidRequest("must be an object", at)
    return value


def _natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _binary(at: str) -> InvalidRequest:
    return InvalidRequest("tensors go as JSON here: leave the binary extension out", at)
