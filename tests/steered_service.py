"""A running service as its callers and its operator see it, for tests of what is done to traffic.

Says what came back and never judges it; whatever is awaited here is awaited with a bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb

ADMIN_KEY = "operator-of-the-tests"
KEY = "caller-of-the-tests"
AUTH = {"admin_key": ADMIN_KEY, "keys": [{"key": KEY, "user": "ada", "team": "search"}]}
HELLO = [{"role": "user", "content": "hello"}]
TOOL_LOOP = [
    *HELLO,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "t1", "content": "seen"},
]


@dataclass(frozen=True, slots=True)
class Told:
    """What a caller was told."""

    status: int
    headers: Any
    body: dict[str, Any]

    @property
    def decision_id(self) -> str:
        return self.headers["x-pointsman-decision-id"]

    @property
    def model(self) -> str:
        """Which model answered."""
        return self.headers["x-pointsman-model"]

    @property
    def mode(self) -> str:
        return self.headers["x-pointsman-mode"]

    @property
    def text(self) -> str:
        return self.body["choices"][0]["message"]["content"]


class Steered:
    """One service; `http` is the tests' client."""

    def __init__(self, http, service) -> None:
        self.http, self.service = http, service

    async def ask(self, pool, headers=None, *, key=KEY, messages=HELLO, status=200, **more) -> Told:
        """One chat call, which must end with `status`."""
        body = {"model": pool, "messages": messages, "max_tokens": 50, **more}
        headers = {"Authorization": f"Bearer {key}"} | (headers or {})
        async with self.http.post(f"{self.service.url}/v1/chat/completions", json=body, headers=headers) as response:
            told = Told(response.status, response.headers, await response.json())
        assert told.status == status, told
        return told

    async def grade(self, decision_id, quality, *, key=KEY, status=200) -> dict[str, Any]:
        """Feedback for one decision."""
        body, headers = {"decision_id": decision_id, "quality": quality}, {"Authorization": f"Bearer {key}"}
        async with self.http.post(f"{self.service.url}/reward", json=body, headers=headers) as response:
            answer = await response.json()
        assert response.status == status, answer
        return answer

    async def admin(self, method, path, body=None, *, status=200, key=ADMIN_KEY) -> dict[str, Any]:
        """What the operator is told at `/admin{path}`."""
        headers = {"Authorization": f"Bearer {key}"}
        async with self.http.request(method, f"{self.service.url}/admin{path}", json=body, headers=headers) as response:
            answer = await response.json()
        assert response.status == status, answer
        return answer

    def decision(self, decision_id) -> dict[str, Any]:
        """A decision as it was logged."""
        (event,) = self.service.events("decision", decision_id)
        return event["payload"]

    def changes(self, what=None) -> list[dict[str, Any]]:
        """The changes that were logged, or those of one kind."""
        rows = [event["payload"] for event in self.service.events("change")]
        return [row for row in rows if what in (None, row["what"])]

    def rows(self, query) -> list[tuple[Any, ...]]:
        """What the analytical log says by now; nothing while it is written or not there."""
        try:
            with duckdb.connect(str(self.service.data_dir / "log.duckdb"), read_only=True) as log:
                return log.execute(query).fetchall()
        except duckdb.Error:
            return []
