"""A load of your own against a running Pointsman: chat, streamed chat, and feedback that follows.

    pip install '.[bench]'
    locust -f benchmarks/locustfile.py --headless --host http://127.0.0.1:8080 --users 20 --spawn-rate 10 --run-time 30s

POINTSMAN_POOL (default auto) and POINTSMAN_KEY say whom to ask, and as whom. Feedback is random, so use a pool that may
learn nonsense, such as the demo's. Only for services on your own machine.
"""

from __future__ import annotations

import os
import random
from typing import Any

from locust import HttpUser, between, task

_POOL = os.environ.get("POINTSMAN_POOL", "auto")
_KEY = os.environ.get("POINTSMAN_KEY", "")
_CATEGORIES = ("math", "code", "chat", "extraction")


class Caller(HttpUser):
    """One user of an application: asks, sometimes streams, and grades most answers a while later."""

    wait_time = between(0.05, 0.5)

    def on_start(self) -> None:
        """Send the key with every call, if there is one."""
        self.ungraded: list[str] = []
        if _KEY:
            self.client.headers["Authorization"] = f"Bearer {_KEY}"

    @task(6)
    def chat(self) -> None:
        """An ordinary call."""
        with self._ask(stream=False) as response:
            if response.ok:
                self.ungraded.append(response.json()["id"])

    @task(2)
    def streamed_chat(self) -> None:
        """A streamed call, read to its end; its id is in the header, too."""
        with self._ask(stream=True) as response:
            if response.ok and not response.text.rstrip().endswith("data: [DONE]"):
                response.failure("the stream ended early")
            elif response.ok:
                self.ungraded.append(response.headers["x-pointsman-decision-id"])

    @task(4)
    def reward(self) -> None:
        """Feedback for up to ten earlier answers at once."""
        batch, self.ungraded = self.ungraded[:10], self.ungraded[10:]
        if batch:
            self.client.post("/reward", json=[{"decision_id": i, "quality": random.random()} for i in batch])

    def _ask(self, *, stream: bool) -> Any:
        category = random.choice(_CATEGORIES)
        body = {"model": _POOL, "stream": stream, "messages": [{"role": "user", "content": f"[{category}] Why?"}]}
        return self.client.post(
            "/v1/chat/completions",
            json=body,
            headers={"x-pointsman-category": category},
            name="chat, streamed" if stream else "chat",
            catch_response=True,
        )
