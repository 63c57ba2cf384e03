"""Laws of keys: whatever operators do, no secret and no digest is shown, and the log alone rebuilds the ring."""

from __future__ import annotations

import asyncio

import orjson
from hypothesis import given
from hypothesis import strategies as st

from serving.access.keys import KeyRing, digest_of
from serving.access.principal import Principal
from serving.access.settings import AuthSettings, TierSettings
from serving.access.tiers import Tiers
from serving.admin_keys import KeyDesk
from serving.errors import NotAllowed, ServiceError, UnknownModel

names = st.sampled_from(["ada", "bo", "search", "key-1", "admin"])
acts = st.tuples(
    st.sampled_from(["create", "rotate", "revoke", "wait"]), names, st.integers(0, 5), st.floats(0, 100, width=32)
)


class Log:
    def __init__(self, ring):
        self.ring, self.rows = ring, []

    def change(self, rows):
        for row in rows:
            self.rows.append(orjson.dumps(row))
            self.ring.changed(row)
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


@given(st.lists(acts, max_size=20))
async def test_secrets_are_in_their_answers_alone_and_the_log_rebuilds_the_ring(acts):
    """Answers without their `secret`, lists, reprs, errors, and the public part of every row."""
    auth = AuthSettings.model_validate({"admin_key": "the-admins-key", "keys": [{"key": "a-callers-key", "user": "u"}]})
    ring, now = KeyRing(auth.keys), [1000.0]
    log = Log(ring)
    desk = KeyDesk(auth, (), ring, log, known=list, clock=lambda: now[0])
    secrets, told, ids = ["the-admins-key", "a-callers-key"], [repr(auth), str(auth.model_dump())], []
    for what, name, which, number in acts:
        try:
            if what == "wait":
                now[0] += number
                continue
            key_id = ids[which % len(ids)] if ids else "key-0"
            if what == "create":
                answer = await desk.create({"user": name, "expires_at": now[0] + 1 + number}, name)
                ids.append(answer["id"])
            elif what == "rotate":
                answer = await desk.rotate(key_id, {"grace_s": number}, name)
            else:
                answer = await desk.revoke(key_id, name)
        except ServiceError as error:
            told.append(f"{error!r} {error}")
            continue
        if "secret" in answer:
            secrets.append(answer.pop("secret"))
        told.append(str(answer))
        told += [str(desk.listed()), repr(ring.get(answer["id"])), repr(ring)]
    for row in map(orjson.loads, log.rows):
        row.pop("secrets")
        told.append(str(row))
    text = "\n".join(told)
    assert not any(secret in text or digest_of(secret).hex() in text for secret in secrets)
    again = KeyRing(auth.keys)
    for row in log.rows:
        again.changed(orjson.loads(row))
    assert again.state() == ring.state()
    assert [again.find(digest_of(s), now[0]) for s in secrets] == [ring.find(digest_of(s), now[0]) for s in secrets]


labels = st.one_of(st.none(), st.text(max_size=6))
principals = st.builds(Principal, labels, labels, labels, labels)


@given(principals, principals)
def test_tenants_that_are_called_alike_are_one_only_where_they_are(one, other):
    """The same tenant: the same team; without teams the same user; without users the same key."""
    if one.operator or other.operator:
        assert (one.tenant == other.tenant) == (one.operator and other.operator)
    elif one.tenant == other.tenant:
        assert one.team == other.team
        assert one.team is not None or one.user == other.user
        assert one.team is not None or one.user is not None or one.key_id == other.key_id


known = ["a", "b", "c", "d"]
some = st.lists(st.sampled_from([*known, "alias", "gone"]), unique=True, max_size=5)
tier_entries = st.fixed_dictionaries(
    {
        "pools": st.dictionaries(st.sampled_from([*known, "alias"]), st.sampled_from([*known, "gone"]), max_size=3),
        "allow": st.none() | some,
        "default": st.booleans(),
    }
)


@given(tier_entries, st.none() | some, st.sampled_from(["t", None, "other"]))
def test_what_is_seen_is_what_may_be_used(entry, own, tier):
    tiers = Tiers([TierSettings.model_validate(entry | {"name": "t"})], {"k": own}.get)
    principal = Principal("u", None, tier, "k")
    seen = tiers.visible(principal, known)
    for name in (*known, "alias", "gone"):
        try:
            actual = tiers.entitled(principal, name, known)
        except (NotAllowed, UnknownModel):
            assert name not in seen
        else:
            assert name in seen
            assert actual in known
            assert own is None or name in own
