"""The routes: each reads its request, calls one thing that does the work, and renders what comes back.

A handler holds no state and makes no decision. Errors are not caught here but where they become responses
(`http_errors`); the one exception is a stream that has begun, whose error can only be another event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from bandit.types import Outcome
from serving.admin_handlers import AdminHandlers
from serving.admission import Principal
from serving.api.handlers import ApiHandlers
from serving.dashboard.handlers import DashboardHandlers
from serving.errors import CallerGone, InvalidRequest, ServiceError, Unavailable, UnknownModel
from serving.fault_handlers import FaultHandlers
from serving.feedback import parse_outcome, parse_rewards
from serving.http_errors import CALLER_HEADERS, described
from serving.infer_body import parse_infer
from serving.key_handlers import KeyHandlers
from serving.objectives import Served
from serving.operator_handlers import OperatorHandlers
from serving.parts import Parts
from serving.pool_handlers import PoolHandlers
from serving.records import Caller
from serving.request_headers import Hints, read_hints, read_timeout, with_fields
from serving.routing import AnswerStream
from serving.spending_handlers import SpendingHandlers
from serving.store import StoreError
from serving.telemetry.about import ABOUT, About
from serving.traffic.shadow import answer_text
from serving.wire import Call, Kind, model_name, parse_body, parse_call, parse_json, parse_route

if TYPE_CHECKING:
    from bandit.types import Decision
    from serving.admin_handlers import Reload
    from serving.lifecycle import Life

__all__ = ["Handlers"]

_CHUNK_BYTES = 1 << 18
_LITTLE = 1 << 14  # bytes; far below what a transport holds before it asks to wait
_UNTIMED = nullcontext()


class Handlers(
    AdminHandlers,
    ApiHandlers,
    DashboardHandlers,
    FaultHandlers,
    KeyHandlers,
    OperatorHandlers,
    PoolHandlers,
    SpendingHandlers,
):
    """All routes of the service, over the parts that `app` put together.

    A reload puts others in their place: after a wait, a handler goes on with those of then, and so never acts on what
    is gone. A call whose decision is made has its own way to the end, with what it was decided by.
    """

    def __init__(self, parts: Parts, life: Life, reload: Reload) -> None:
        self._life, self._reload = life, reload
        self._started_at = int(time.time())
        self.use(parts)

    def use(self, parts: Parts) -> None:
        """Work with these from now on."""
        self._server, self._admission, self._routing, self._desk = (
            parts.server,
            parts.admission,
            parts.routing,
            parts.desk,
        )
        self._admin, self._benchmarks, self._matrix = parts.admin, parts.benchmarks, parts.matrix
        self._export, self._keys, self._tiers = parts.export, parts.keys, parts.tiers
        self._pools, self._budgets, self._usage = parts.pools, parts.budgets, parts.usage
        self._learner, self._metrics, self._intake = parts.learner, parts.metrics, parts.intake
        self._dashboard, self._history = parts.dashboard, parts.history
        self._operator, self._drain, self._faults = parts.operator, parts.drain, parts.faults

    def routes(self) -> list[web.RouteDef]:
        """The table of routes."""
        return [
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.completions),
            web.post("/v1/embeddings", self.embeddings),
            web.post("/v1/infer/{pool:.+}", self.infer),
            web.get("/v1/models", self.models),
            web.post("/v1/route", self.route),
            web.post("/outcome", self.outcome),
            web.post("/reward", self.reward),
            web.get("/healthz", self.healthz),
            web.get("/readyz", self.readyz),
            web.get("/metrics", self.metrics),
            *self.api_routes(),
            *self.admin_routes(),
            *self.key_routes(),
            *self.operator_routes(),
            *self.fault_routes(),
            *self.spending_routes(),
            *self.pool_routes(),
            *self.dashboard_routes(),
        ]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`."""
        return await self._infer(request, "chat/completions")

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/completions`."""
        return await self._infer(request, "completions")

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/embeddings`."""
        return await self._infer(request, "embeddings")

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/infer/{pool}`: a call of any other kind of model."""
        return await self._infer(request, "infer")

    async def models(self, request: web.Request) -> web.Response:
        """`GET /v1/models`: what the caller may use; pools first, then the models themselves."""
        principal = await self._admit(request)
        pools = set(self._learner.pools)
        names = self._tiers.visible(principal, self._routing.names)
        data = [
            {
                "id": name,
                "object": "model",
                "created": self._started_at,
                "owned_by": "pointsman-pool" if name in pools else "pointsman",
            }
            for name in names
        ]
        return _json({"object": "list", "data": data})

    async def route(self, request: web.Request) -> web.Response:
        """`POST /v1/route`: a decision for a call that the caller makes itself."""
        principal = await self._admit(request)
        self._drain.check()
        raw = await self._read(request)
        body = parse_body(raw)
        self._entitle(principal, body)
        if (name := model_name(body)) not in self._learner.pools:
            raise UnknownModel(name, self._tiers.visible(principal, list(self._learner.pools)))
        hints = with_fields(read_hints(request.headers), body)
        if self._routing.serves(name, "infer"):
            del body["model"]
            call = parse_infer(name, body, len(raw), hints)
        else:
            call = parse_route(body, hints, self._server.max_messages)
        decision, labels = self._routing.decide(call, _caller(request, principal, hints), ts=time.time())
        upstream_model = self._routing.upstream_model(decision.chosen)
        _, durable = self._learner.record_decision(decision, replace(labels, outside=True))
        await durable
        return _json(
            {
                "decision_id": decision.decision_id,
                "model": decision.chosen,
                "upstream_model": upstream_model,
                "mode": decision.mode,
                "propensity": decision.propensity,
                "probabilities": dict(zip(decision.arms, decision.probabilities.tolist(), strict=True)),
                "limits_met": not decision.infeasible,
                "expires_at": decision.ts + self._server.feedback_horizon_s,
            },
            _decision_headers(decision),
        )

    async def outcome(self, request: web.Request) -> web.Response:
        """`POST /outcome`: what became of a call that the caller made itself."""
        tenant = self._admission.tenant_of(await self._admit(request))
        item = parse_outcome(parse_json(await self._read(request)))
        status = await self._desk.accept_outcome(item, time.time(), tenant)
        return _json({"decision_id": item.decision_id, "status": status})

    async def reward(self, request: web.Request) -> web.Response:
        """`POST /reward`: feedback for one decision, or a list of up to 1,000."""
        tenant = self._admission.tenant_of(await self._admit(request))
        items = parse_rewards(parse_json(await self._read(request)))
        now = time.time()
        if not isinstance(items, list):
            try:
                status = await self._desk.accept(items, now, tenant)
            except ServiceError as error:
                self._count_feedback(described(error)[1]["error"]["code"])
                raise
            self._count_feedback(status)
            return _json({"decision_id": items.decision_id, "status": status})
        results = []
        for item, result in zip(items, await self._desk.accept_batch(items, now, tenant), strict=True):
            entry: dict[str, Any] = {"decision_id": item.decision_id}
            if isinstance(result, ServiceError):
                http_status, body, _ = described(result)
                entry |= {"status": "refused", "http_status": http_status, **body}
            else:
                entry["status"] = result
            self._count_feedback(entry["status"])
            results.append(entry)
        refused = sum(entry["status"] == "refused" for entry in results)
        return _json({"accepted": len(results) - refused, "refused": refused, "results": results})

    async def healthz(self, request: web.Request) -> web.Response:
        """`GET /healthz`: the process is alive."""
        await self._admit_operator(request)
        return _json({"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:
        """`GET /readyz`: calls are taken; 503 while starting, draining, stopping, or without a working store."""
        await self._admit_operator(request)
        self._drain.check()
        if not self._life.ready or not self._learner.healthy:
            raise Unavailable("starting, stopping, or the operational store has failed")
        return _json({"status": "ready"})

    async def metrics(self, request: web.Request) -> web.Response:
        """`GET /metrics`: Prometheus's text format."""
        await self._admit_operator(request)
        body = await self._metrics.exposition()
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _infer(self, request: web.Request, kind: Kind) -> web.StreamResponse:
        arrived, began = time.perf_counter(), asyncio.get_running_loop().time()
        principal = await self._admit(request)
        self._drain.check()
        async with self._intake.gate.entered(self._tiers.priority(principal), read_timeout(request.headers)):
            raw = await self._read(request)
            body, hints = parse_body(raw), read_hints(request.headers)
            if kind == "infer":
                name = self._tiers.entitled(principal, request.match_info["pool"], self._routing.names)
                call = parse_infer(name, body, len(raw), hints)
            else:
                self._entitle(principal, body)
                call = parse_call(kind, body, hints, self._server.max_messages)
            caller = _caller(request, principal, hints, began)
            request[CALLER_HEADERS] = caller.headers
            with self._metrics.objectives.request(call.model, arrived, call.timeout_s) as served:
                taken = await self._intake.take(call, caller, time.time())
                caller.about.admitted(call)
                try:
                    if call.stream:
                        response, used = await self._stream(request, call, caller, served)
                    else:
                        async with self._life.call():
                            response, used = await self._complete(call, caller, arrived)
                finally:
                    self._intake.settle(taken, caller, time.time())
                served.ended(used)
            return response

    async def _complete(self, call: Call, caller: Caller, arrived: float) -> tuple[web.StreamResponse, Outcome]:
        with self._routing.in_use():
            answer = await self._intake.caching.complete(call, caller)
        overhead_s = time.perf_counter() - arrived - answer.upstream_s
        self._metrics.overhead.observe(overhead_s)
        outcome, now = answer.outcome, time.time()
        headers = _decision_headers(answer.decision, outcome.model) | self._intake.told(caller, now) | caller.headers
        headers["Content-Type"] = "application/json"
        headers["x-pointsman-attempts"] = str(answer.attempts)
        headers["x-pointsman-overhead-ms"] = f"{overhead_s * 1000:.2f}"
        if outcome.cost_usd is not None:
            headers["x-pointsman-cost-usd"] = f"{outcome.cost_usd:.9f}"
        shadow = self._intake.shadows.draw(call, answer.decision, answer.labels, now)
        if shadow is not None:
            headers["x-pointsman-shadow-id"] = shadow.decision_id
            self._intake.shadows.send(shadow, answer_text(answer.body), now)
        return web.Response(body=answer.body, headers=headers), outcome

    async def _stream(
        self, request: web.Request, call: Call, caller: Caller, served: Served
    ) -> tuple[web.StreamResponse, Outcome | None]:
        try:
            with self._routing.in_use():
                return await self._streamed(request, call, caller, served)
        except CallerGone:
            if request.transport is not None:
                request.transport.abort()  # one who stopped reading would keep the connection
            caller.about.error = "caller_went_away"
            return web.Response(), None  # to nobody

    async def _streamed(
        self, request: web.Request, call: Call, caller: Caller, served: Served
    ) -> tuple[web.StreamResponse, Outcome | None]:
        response: web.StreamResponse | None = None
        answer: AnswerStream | None = None
        try:
            async with self._life.call(), self._intake.caching.stream(call, caller) as answer:
                now = time.time()
                headers = _decision_headers(answer.decision, answer.model) | self._intake.told(caller, now)
                headers |= caller.headers
                headers["Content-Type"] = "text/event-stream; charset=utf-8"
                headers["Cache-Control"], headers["X-Accel-Buffering"] = "no-cache", "no"
                headers["x-pointsman-attempts"] = str(answer.attempts)
                shadow = self._intake.shadows.draw(call, answer.decision, answer.labels, now)
                if shadow is not None:  # beside a stream it is not graded: the answer's text is not kept
                    headers["x-pointsman-shadow-id"] = shadow.decision_id
                    self._intake.shadows.send(shadow, "", now)
                response = web.StreamResponse(headers=headers)
                await self._passed_on(response.prepare(request))
                async for events in answer.events:
                    await self._passed_on(response.write(events), at_once=_taken_at_once(request, events))
                    served.answered()
        except (ServiceError, StoreError) as error:
            if response is None or isinstance(error, CallerGone):
                raise  # nothing was passed on yet: an ordinary error response
            body = described(error)[1]
            caller.about.error = str(body["error"]["code"])
            await self._passed_on(response.write(b"data: " + orjson.dumps(body) + b"\n\n"))
        assert response is not None  # noqa: S101 - the block above has either raised or prepared it
        assert answer is not None  # noqa: S101
        await self._passed_on(response.write_eof())
        return response, answer.record.ended

    async def _passed_on(self, writing: Awaitable[Any], *, at_once: bool = False) -> None:
        """Write as fast as the caller reads; one who stops reading is gone after `body_timeout_s`.

        `at_once`: it waits for nobody, and needs no clock.
        """
        try:
            async with _UNTIMED if at_once else asyncio.timeout(self._server.body_timeout_s):
                await writing
        except (ConnectionResetError, TimeoutError):
            raise CallerGone("the caller closed the connection or stopped reading") from None

    async def _read(self, request: web.Request) -> bytes:
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise InvalidRequest("send the body uncompressed", "content-encoding", "invalid_header")
        if request.content.is_eof():  # all of it came with the headers: no timer needed
            return await request.read()
        try:
            async with asyncio.timeout(self._server.body_timeout_s):
                return await request.read()
        except TimeoutError:
            seconds = self._server.body_timeout_s
            raise InvalidRequest(f"the body did not arrive within {seconds:g} s", code="body_timeout") from None
        except web.RequestPayloadError:
            raise InvalidRequest("the body's transfer encoding is broken", code="invalid_body") from None

    async def _admit(self, request: web.Request) -> Principal:
        return await self._admission.admit(request.headers)

    async def _admit_operator(self, request: web.Request) -> None:
        ours = self._server.loopback and self._admission.here(request.headers)
        if not (ours or self._server.metrics_public):
            await self._admit(request)

    def _admit_admin(self, request: web.Request) -> Principal:
        return self._admission.admit_admin(request.headers)

    def _entitle(self, principal: Principal, body: dict[str, Any]) -> None:
        """Put what the caller's tier means by the body's model in its place; raises NotAllowed and UnknownModel."""
        body["model"] = self._tiers.entitled(principal, model_name(body), self._routing.names)

    def _count_feedback(self, status: str) -> None:
        self._metrics.feedback.labels(status).inc()


def _taken_at_once(request: web.Request, data: bytes) -> bool:
    """Whether it is little, and goes to a caller who has read all there was so far."""
    transport = request.transport
    return transport is not None and len(data) <= _LITTLE and not transport.get_write_buffer_size()


def _caller(request: web.Request, principal: Principal, hints: Hints, arrived: float | None = None) -> Caller:
    return Caller(principal, hints.tags, arrived=arrived, about=request.get(ABOUT) or About())


def _json(body: Any, headers: dict[str, str] | None = None, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", headers=headers)


def _decision_headers(decision: Decision, model: str | None = None) -> dict[str, str]:
    """`model`: which one answered, where it is not the one that was decided for."""
    headers = {
        "x-pointsman-decision-id": decision.decision_id,
        "x-pointsman-model": model or decision.chosen,
        "x-pointsman-mode": decision.mode,
    }
    if decision.infeasible:
        headers["x-pointsman-limits"] = "least-violation"
    return headers
