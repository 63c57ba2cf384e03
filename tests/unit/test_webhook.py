"""Webhooks: told once, tried again where that may help, and never named where others read."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from metered_calls import budget

from serving.access.budget_settings import MeteringSettings
from serving.access.webhook import Webhooks

NOTICE = {"event": "warned", "budget": "b", "spent": 0.8}


@pytest.fixture
async def hook():
    """A receiver whose answers a test sets; yields (url, answers, what came)."""
    answers, came = [], []

    async def receive(request):
        came.append(await request.json())
        return web.Response(status=answers.pop(0))

    app = web.Application()
    app.router.add_post("/secret-0451", receive)
    async with TestServer(app) as server:
        yield str(server.make_url("/secret-0451")), answers, came


async def delivered(wait_until, url, done, **settings):
    """Run until `done` says so; the webhooks, and the pauses they made."""
    pauses = []

    async def pause(seconds):
        pauses.append(seconds)

    async with aiohttp.ClientSession() as session:
        hooks = Webhooks(session, MeteringSettings(**settings), pause)
        hooks.put(budget(name="b", webhook=url), NOTICE)
        task = asyncio.create_task(hooks.run())
        await wait_until(lambda: done(hooks))
        task.cancel()
    return hooks, pauses


async def test_a_webhook_that_is_down_is_told_again(hook, wait_until):
    url, answers, came = hook
    answers += [500, 429, 204]
    _, pauses = await delivered(wait_until, url, lambda hooks: hooks.delivered == 1)
    assert came == [NOTICE] * 3
    assert pauses == [0.5, 1.0]


@pytest.mark.parametrize(("given", "tried"), [([404], 1), ([302], 1), ([500, 500], 2)])
async def test_one_that_refuses_or_stays_down_is_given_up_and_its_url_is_not_shown(
    hook, caplog, wait_until, given, tried
):
    caplog.set_level(logging.DEBUG)
    url, answers, came = hook
    answers += given
    await delivered(wait_until, url, lambda hooks: hooks.failed == 1, webhook_attempts=2)
    assert len(came) == tried
    assert "0451" not in "".join(r.getMessage() for r in caplog.records if r.name.startswith("pointsman"))
    assert "0451" not in repr(budget(webhook=url))


async def test_one_nobody_answers_at_is_given_up(wait_until):
    hooks, _ = await delivered(wait_until, "http://127.0.0.1:9/secret-0451", lambda hooks: hooks.failed == 1)
    assert hooks.delivered == 0


async def test_the_queue_is_bounded_and_a_budget_without_a_webhook_takes_no_place():
    async with aiohttp.ClientSession() as session:
        hooks = Webhooks(session, MeteringSettings(webhook_queue=1))
        for entry in (budget(), budget(webhook="http://h/"), budget(webhook="http://h/")):
            hooks.put(entry, NOTICE)
        assert hooks.dropped == 1
