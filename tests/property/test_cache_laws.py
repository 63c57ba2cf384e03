"""Laws of the cache: whoever asks whatever at whatever time, no answer, budget or session crosses tenants."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from metered_calls import budget

from bandit import Arm, Pool, Price
from bandit.types import Outcome
from serving.access.ledger import Ledger
from serving.access.principal import Principal
from serving.learner import Learner
from serving.metrics import Metrics
from serving.pool_settings import PoolSettings
from serving.records import Caller
from serving.request_headers import Hints
from serving.roster import Roster
from serving.routing import Answer, AnswerStream
from serving.sqlite_store import SqliteStore
from serving.traffic.assembly import Assembly, events_of
from serving.traffic.cache_key import cache_key
from serving.traffic.caching import Caching
from serving.traffic.canaries import Canary
from serving.traffic.state import Traffic
from serving.traffic.steering import Steering
from serving.wire import parse_call

law = settings(max_examples=25, deadline=None, derandomize=True, database=None)
COST_USD = 0.25
CALLERS = st.builds(
    Principal,
    user=st.sampled_from([None, "red", "ada", "bob"]),
    team=st.sampled_from([None, "red", "blue"]),
    tier=st.sampled_from([None, "paid"]),
    key_id=st.sampled_from([None, "k1", "k2"]),
)
CALLS = st.fixed_dictionaries(
    {
        "who": CALLERS,
        "prompt": st.sampled_from(["a", "b"]),
        "stream": st.booleans(),
        "session": st.sampled_from([None, "chat"]),
        "control": st.sampled_from([None, None, "no-cache", "no-store", "max-age=5"]),
        "at_once": st.booleans(),  # beside the one before it
        "breaks": st.sampled_from([False, False, True]),
    }
)


class Up:
    """Endpoints that are always there."""

    def __contains__(self, model):
        return True

    def available(self, _model):
        return True

    rested = available

    def serves(self, _model, _kind):
        return True

    can_say = all_ready = serves


class Upstream:
    """`serving.traffic.caching.Way`: each answer is another one, and says whose it is. It is logged as routing does."""

    def __init__(self, learner, steering):
        self.learner, self.steering, self.made, self.broken = learner, steering, Counter(), False

    def deadline_s(self, _pool):
        return 10.0

    async def _made(self, call, caller):
        decision, labels = self.steering.decide(call, caller, time.time())
        record, durable = self.learner.record_decision(decision, labels)
        breaks, number = call.body.get("breaks"), sum(self.made.values())
        self.made[caller.principal.tenant] += 1
        await asyncio.sleep(0)
        await durable
        outcome = Outcome(decision.decision_id, time.time(), decision.chosen, "ok", 0.1, None, 3, 2, COST_USD)
        self.learner.note_outcome(record, outcome)
        if breaks:
            raise ConnectionError
        text = orjson.dumps([caller.principal.tenant, caller.principal.tier, call.prompt.text, number]).decode()
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return record, {"id": decision.decision_id, "model": decision.chosen, "choices": [choice]}

    async def complete(self, call, caller):
        record, whole = await self._made(call, caller)
        return Answer(record.decision, record.outcome, orjson.dumps(whole), 0.1, record.labels, 1)

    @contextlib.asynccontextmanager
    async def stream(self, call, caller, *, assemble_bytes=None):
        record, whole = await self._made(call, caller)
        assembly = None if assemble_bytes is None else Assembly(call.kind, assemble_bytes)

        async def events():
            for event in events_of(call.kind, whole, record.decision.decision_id, record.decision.chosen, usage=False):
                await asyncio.sleep(0)
                if assembly is not None and b"[DONE]" not in event:
                    assembly.feed(orjson.loads(event[6:]), len(event))
                yield event

        yield AnswerStream(record.decision, events(), record.decision.chosen, record, 1, assembly)


class Room:
    """The real cache in the way of calls, over a real store, ledger and steering."""

    def __init__(self, store, scope):
        pool = Pool([Arm("m", Price(1.0, 1.0)), Arm("n", Price(1.0, 1.0))], name="auto")
        self.settings = PoolSettings(name="auto", models=("m", "n"), cache={"scope": scope})
        self.traffic = Traffic([self.settings], {"auto": Canary(pool, None)})
        self.ledger = Ledger([budget(name=f"{scope}", scope=scope, usd=1e6, per="total") for scope in ("team", "user")])
        metrics, generators = Metrics(), {"auto": np.random.default_rng(1)}
        self.learner = Learner(
            {"auto": pool},
            generators,
            store,
            metrics,
            cache_decisions=1000,
            snapshot_every_events=10**9,
            roster=Roster((), {"auto": ("m", "n")}, {}),
            folds=(self.traffic, self.ledger),
        )
        steering = Steering(self.learner, self.traffic, Up(), b"k" * 32, np.random.default_rng(2))
        self.way = Upstream(self.learner, steering)
        self.caching = Caching(
            self.way,
            self.learner,
            self.traffic,
            {"auto": self.settings.cache},
            labels=steering.labels,
            metrics=metrics,
            secret=b"s" * 32,
            clock=time.monotonic,
        )

    async def ask(self, who, prompt, *, stream, session, control, breaks):
        """(decision, labels, what the answer says of whose it is); None where it broke."""
        messages = [{"role": "user", "content": prompt}]
        body = {"model": "auto", "messages": messages, "stream": stream, "temperature": 0}
        call = parse_call("chat/completions", body, Hints(session=session, cache_control=control), 10)
        if breaks:
            call.body["breaks"] = True  # of the key, too: what breaks is another request
        caller = Caller(who)
        try:
            if not stream:
                answer = await self.caching.complete(call, caller)
                text = orjson.loads(answer.body)["choices"][0]["message"]["content"]
            else:
                async with self.caching.stream(call, caller) as answer:
                    raw = b"".join([event async for event in answer.events])
                deltas = [orjson.loads(event[6:])["choices"][0]["delta"] for event in raw.split(b"\n\n")[:-2]]
                text = "".join(delta.get("content") or "" for delta in deltas)
        except ConnectionError:
            return None
        return answer.decision, answer.labels, orjson.loads(text)


async def played(calls, scope):
    """All calls, those `at_once` beside the one before: (the room, [(call, what came of it)])."""
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "router.sqlite", synchronous="normal", queue_limit=10_000)
        room, done, batch = Room(store, scope), [], []
        for call in [*calls, None]:
            if batch and (call is None or not call["at_once"]):
                asked = [{n: v for n, v in c.items() if n != "at_once"} for c in batch]
                answers = await asyncio.gather(*(room.ask(**values) for values in asked))
                done += zip(batch, answers, strict=True)
                batch = []
            batch.append(call)
        events = store.read(0, 10_000)
        await store.close()
        return room, done, events


@given(st.lists(CALLS, min_size=1, max_size=14), st.sampled_from(["tenant", "user"]))
@law
def test_no_answer_crosses_tenants_however_calls_overlap(calls, scope):
    """Nor tiers, requests or (where the pool says so) users; and none that a caller forbade is kept or given."""
    _, done, _ = asyncio.run(played(calls, scope))
    made_for = {}
    for call, answer in done:
        if answer is None:
            assert call["breaks"]
            continue
        decision, labels, (tenant, tier, prompt, _) = answer
        who = call["who"]
        assert (tenant, tier, prompt) == (who.tenant, who.tier, call["prompt"])
        assert labels.principal == who
        if decision.mode != "cached":
            made_for[decision.decision_id] = call
        else:
            assert call["control"] not in {"no-cache", "no-store"}
    for call, answer in done:
        if answer is not None and answer[0].mode == "cached":
            origin = made_for[answer[1].origin]  # one of these calls, which let it be kept
            assert origin["control"] != "no-store"
            assert origin["who"].tenant == call["who"].tenant
            if scope == "user":
                assert origin["who"].user == call["who"].user


@given(st.lists(CALLS, min_size=1, max_size=14))
@law
def test_hits_are_on_nobodys_budget_and_in_nobodys_session(calls):
    """Each tenant has spent what its own calls of a model cost, and its sessions are its own calls'."""
    room, done, events = asyncio.run(played(calls, "tenant"))
    spent = Counter()
    for call, answer in done:
        who = call["who"]
        if answer is None or answer[0].mode != "cached":
            spent["team", who.team] += COST_USD
            spent["user", who.user and "/".join(filter(None, (who.team, who.user)))] += COST_USD
    shown = {(b["name"], c["member"]): c["spent"] for b in room.ledger.listed(time.time()) for c in b["counters"]}
    expected = {key: usd for key, usd in spent.items() if key[1] is not None and usd}
    assert {key: usd for key, usd in shown.items() if usd} == expected
    rows = [orjson.loads(event.payload) for event in events if event.kind == "decision"]
    tenants = {}
    for row in rows:
        if row["session"] is not None:
            who = Principal(row["user"], row["team"], row["tier"], row["key_id"])
            tenants.setdefault(row["session"], set()).add(who.tenant)
    assert all(len(of) == 1 for of in tenants.values())
    begun = {row["session"] for row in rows if row["mode"] != "cached"} - {None}
    assert {session for session, *_ in room.traffic.pools["auto"].sessions.state()} == begun
    assert len(rows) == len(done)
    assert sum(row["mode"] != "cached" for row in rows) == sum(room.way.made.values())


@given(CALLERS, CALLERS, st.sampled_from(["tenant", "user", "all"]))
def test_two_callers_share_a_key_only_where_their_scope_is_one(one, two, scope):
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
    call = parse_call("chat/completions", body, Hints(), 10)
    same = cache_key(b"s" * 32, call, one, scope, b"m") == cache_key(b"s" * 32, call, two, scope, b"m")
    if one.tier != two.tier or (scope != "all" and one.tenant != two.tenant):
        assert not same
    elif scope == "user":
        named = one.user is not None or two.user is not None
        assert same == (one.user == two.user if named else one.key_id == two.key_id)
    else:
        assert same
