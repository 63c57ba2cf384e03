"""A server of small models: the Open Inference Protocol, JSON of its own, and OpenAI's embeddings, to route tests to.

Served in a thread of the tests' own process: `bodies[name]` are those it was sent, `failing[name]` the status it
answers with from now on, `waits[name]` the seconds it takes; those in `made` say 201 instead of 200.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from aiohttp import web

REFUSED = "refuse me"  # an input that spoils the whole request it is in


def vector(text):
    """What a text is embedded as: no two texts of these tests have the same."""
    return [float(len(text)), float(sum(text.encode()))]


class InferenceServer:
    """`POST /v2/models/{name}/infer`, `/plain/{name}` and `/{name}/v1/embeddings`."""

    def __init__(self) -> None:
        self.bodies = defaultdict(list)
        self.headers = defaultdict(list)
        self.failing, self.waits, self.made = {}, defaultdict(float), set()
        self.app = web.Application()
        self.app.router.add_post("/v2/models/{name}/infer", self.open_inference)
        self.app.router.add_post("/v2/models/{name}/versions/{version}/infer", self.open_inference)
        self.app.router.add_post("/plain/{name}", self.plain)
        self.app.router.add_post("/{name}/v1/embeddings", self.embeddings)

    def model(self, name, protocol="oip", **more):
        """A model's entry in a configuration; without a protocol it makes embeddings."""
        if protocol is None:
            return {"name": name, "endpoint": f"{self.url}/{name}/v1"} | more
        endpoint = self.url if protocol == "oip" else f"{self.url}/plain/{name}"
        return {"name": name, "kind": "http", "protocol": protocol, "endpoint": endpoint} | more

    def calls(self, name):
        """How often it was asked."""
        return len(self.bodies[name])

    async def open_inference(self, request):
        """The sum of each row of the first tensor; its text in capitals where it has any."""
        body = await self._begin(request)
        (tensor, *_) = body["inputs"]
        rows, data = tensor["shape"][0], tensor["data"]
        if tensor["datatype"] == "BYTES":
            found = [text.upper() for text in data]
        else:
            width = len(data) // rows if not isinstance(data[0], list) else 0
            cut = [data[i * width : (i + 1) * width] for i in range(rows)] if width else data
            found = [float(sum(row)) for row in cut]
        output = {"name": "found", "datatype": tensor["datatype"], "shape": [rows], "data": found}
        answer = {"model_name": request.match_info["name"], "model_version": "1", "outputs": [output]}
        return web.json_response(answer | ({"id": body["id"]} if "id" in body else {}))

    async def plain(self, request):
        """A prediction for each instance; to any other body a list."""
        body = await self._begin(request)
        if "instances" in body:
            return web.json_response({"predictions": [len(str(one)) for one in body["instances"]]})
        status = 201 if request.match_info["name"] in self.made else 200
        return web.json_response([{"label": request.match_info["name"], "score": 0.5}], status=status)

    async def embeddings(self, request):
        """OpenAI's, in the reverse order, with four tokens for each input."""
        body = await self._begin(request)
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        if REFUSED in texts:
            return web.json_response({"error": {"message": "one of the inputs is bad"}}, status=400)
        data = [{"object": "embedding", "index": i, "embedding": vector(text)} for i, text in enumerate(texts)]
        usage = {"prompt_tokens": 4 * len(texts), "total_tokens": 4 * len(texts)}
        return web.json_response({"object": "list", "data": data[::-1], "model": "m", "usage": usage})

    async def _begin(self, request):
        name = request.match_info["name"]
        body = await request.json()
        self.bodies[name].append(body)
        self.headers[name].append(request.headers)
        if (status := self.failing.get(name)) is not None:
            raise _failed(status)
        await asyncio.sleep(self.waits[name])
        return body


def _failed(status):
    kinds = {400: web.HTTPBadRequest, 500: web.HTTPInternalServerError}
    return kinds[status](text='{"error": "what the server says of it"}', content_type="application/json")
