"""The two servers Pointsman is measured against, each its own process: an upstream of no latency, a bare pass-through.

python -m benchmarks.servers upstream|passthrough --port P [--target URL]
"""

from __future__ import annotations

import argparse
import asyncio

import aiohttp
import orjson
import uvloop
from aiohttp import web

ANSWER = orjson.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "m",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "All aboard. " * 40}}
        ],
        "usage": {"prompt_tokens": 60, "completion_tokens": 120, "total_tokens": 180},
    }
)


async def answer(request: web.Request) -> web.Response:
    """The same answer to every call."""
    await request.read()
    return web.Response(body=ANSWER, content_type="application/json")


def passthrough(target: str) -> web.Application:
    """What the least a proxy can do costs: read, send on, send back, a stream as it comes."""
    app = web.Application()
    session: list[aiohttp.ClientSession] = []

    async def forward(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        async with session[0].post(target + request.path, data=body, headers={"Content-Type": "application/json"}) as r:
            if r.content_type != "text/event-stream":
                return web.Response(body=await r.read(), status=r.status, content_type="application/json")
            streamed = web.StreamResponse(status=r.status, headers={"Content-Type": "text/event-stream"})
            await streamed.prepare(request)
            async for data in r.content.iter_any():
                await streamed.write(data)
            await streamed.write_eof()
            return streamed

    async def client(_: web.Application) -> None:
        session.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))

    app.on_startup.append(client)
    app.router.add_post("/{path:.*}", forward)
    return app


async def main(app: web.Application, port: int) -> None:
    """Serve until killed; prints the port."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(f"listening at http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("upstream", "passthrough"))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--target", default="")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    options = parser.parse_args()
    if options.what == "upstream":
        application = web.Application()
        application.router.add_post("/{path:.*}", answer)
    else:
        application = passthrough(options.target)
    run = uvloop.run if options.loop == "uvloop" else asyncio.run
    run(main(application, options.port))
