"""The key ring: made, rotated, revoked and expired keys, by the clock, and as the fold of its changes."""

from __future__ import annotations

import asyncio
from hashlib import sha256

import orjson
import pytest

from serving.access.keys import KeyRing, digest_of
from serving.access.principal import Principal
from serving.access.settings import AuthSettings, TierSettings
from serving.admin_keys import KeyDesk
from serving.errors import Conflict, InvalidFields, UnknownKey


class Changes:
    """Logs rows and hands them to the ring, as the learner does."""

    def __init__(self, ring):
        self.ring, self.rows = ring, []

    def change(self, rows):
        for row in rows:
            self.rows.append(orjson.dumps(row))
            self.ring.changed(orjson.loads(self.rows[-1]))
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class Office:
    """A ring, its desk and a clock."""

    def __init__(self, **auth):
        self.now = 1000.0
        self.auth = AuthSettings.model_validate({"admin_key": "admin-key-1"} | auth)
        self.ring = KeyRing(self.auth.keys)
        self.changes = Changes(self.ring)
        tiers = [TierSettings.model_validate({"name": "free", "pools": {"auto": "cheap"}})]
        self.desk = KeyDesk(
            self.auth, tiers, self.ring, self.changes, known=lambda: ["cheap", "small"], clock=lambda: self.now
        )

    def whose(self, secret):
        found = self.ring.find(digest_of(secret), self.now)
        return None if found is None else found.user

    def replayed(self):
        ring = KeyRing(self.auth.keys)
        for row in self.changes.rows:
            ring.changed(orjson.loads(row))
        return ring


@pytest.fixture
def office():
    return Office()


async def test_a_key_is_admitted_as_it_was_made(office):
    made = await office.desk.create({"user": "ada", "team": "search", "tier": "free", "allow": ["auto"]}, "admin")
    principal = office.ring.find(digest_of(made["secret"]), office.now)
    assert principal == Principal("ada", "search", "free", made["id"])
    assert office.ring.allowed(made["id"]) == ("auto",)
    assert office.ring.find(digest_of(made["secret"] + "x"), office.now) is None


async def test_a_secret_has_256_random_bits_and_is_kept_as_its_sha256(office):
    """43 characters of base64url are 258 bits, the last two of them 0."""
    made = [await office.desk.create({"user": "ada"}, None) for _ in range(2)]
    secrets = [entry["secret"] for entry in made]
    assert len({*secrets}) == 2
    assert all(len(secret.removeprefix("pm-key-")) == 43 for secret in secrets)
    kept = orjson.dumps(office.ring.state()).decode()
    assert sha256(secrets[0].encode()).hexdigest() in kept
    assert not any(secret in text for secret in secrets for text in (kept, str(office.changes.rows)))


async def test_a_list_shows_no_secret_and_no_digest(office):
    secret = (await office.desk.create({"user": "ada", "name": "laptop"}, None))["secret"]
    office.whose(secret)
    (entry,) = office.desk.listed()
    assert (entry["prefix"], entry["name"], entry["state"], entry["source"]) == (
        f"{secret[:11]}…",
        "laptop",
        "valid",
        "runtime",
    )
    assert entry["last_used_at"] == 960.0  # 1000 rounded down to a minute
    text = orjson.dumps(entry).decode() + repr(office.ring.get(entry["id"]))
    assert secret not in text
    assert sha256(secret.encode()).hexdigest() not in text
    assert "secrets" not in orjson.loads(office.changes.rows[0])["after"]


async def test_after_a_rotation_both_secrets_count_until_the_grace_ends(office):
    made = await office.desk.create({"user": "ada"}, None)
    turned = await office.desk.rotate(made["id"], {"grace_s": 60}, None)
    assert turned["secret"] != made["secret"]
    assert turned["old_secret_until"] == 1060.0
    office.now = 1059.9
    assert (office.whose(made["secret"]), office.whose(turned["secret"])) == ("ada", "ada")
    office.now = 1060.0
    assert (office.whose(made["secret"]), office.whose(turned["secret"])) == (None, "ada")


async def test_a_rotation_without_grace_ends_every_older_secret(office):
    """Also one whose own grace would have lasted longer."""
    made = await office.desk.create({"user": "ada"}, None)
    second = await office.desk.rotate(made["id"], {"grace_s": 3600}, None)
    third = await office.desk.rotate(made["id"], {"grace_s": 0}, None)
    assert [office.whose(entry["secret"]) for entry in (made, second, third)] == [None, None, "ada"]


async def test_at_most_four_secrets_of_a_key_count(office):
    made = await office.desk.create({"user": "ada"}, None)
    turned = [(await office.desk.rotate(made["id"], {"grace_s": 600}, None))["secret"] for _ in range(6)]
    assert [office.whose(secret) for secret in turned] == [None, None, "ada", "ada", "ada", "ada"]


async def test_a_revoked_key_is_over_at_once(office):
    made = await office.desk.create({"user": "ada"}, None)
    turned = await office.desk.rotate(made["id"], {"grace_s": 600}, None)
    assert (await office.desk.revoke(made["id"], None))["state"] == "revoked"
    assert (await office.desk.revoke(made["id"], None))["revoked_at"] == 1000.0
    assert [office.whose(entry["secret"]) for entry in (made, turned)] == [None, None]
    with pytest.raises(Conflict):
        await office.desk.rotate(made["id"], {}, None)
    assert len(office.changes.rows) == 3


async def test_a_key_expires(office):
    made = await office.desk.create({"user": "ada", "expires_at": 1100.0}, None)
    office.now = 1099.0
    assert office.whose(made["secret"]) == "ada"
    office.now = 1100.0
    assert office.whose(made["secret"]) is None
    assert office.desk.listed()[0]["state"] == "expired"
    with pytest.raises(Conflict):
        await office.desk.rotate(made["id"], {}, None)


async def test_what_is_over_is_forgotten_after_ninety_days(office):
    made = await office.desk.create({"user": "ada"}, None)
    await office.desk.revoke(made["id"], None)
    office.now += 90 * 86_400.0
    await office.desk.create({"user": "bo"}, None)
    assert len(office.desk.listed()) == 2
    office.now += 1
    await office.desk.create({"user": "cy"}, None)
    assert [entry["user"] for entry in office.desk.listed()] == ["bo", "cy"]
    assert office.replayed().state() == office.ring.state()


async def test_the_ring_is_the_fold_of_its_changes(office):
    made = [await office.desk.create({"user": name}, "admin") for name in ("ada", "bo", "cy")]
    turned = await office.desk.rotate(made[0]["id"], {}, None)
    await office.desk.revoke(made[1]["id"], None)
    from_snapshot = KeyRing()
    from_snapshot.load(orjson.loads(orjson.dumps(office.ring.state())))
    for ring in (office.replayed(), from_snapshot):
        assert ring.state() == office.ring.state()
        users = [ring.find(digest_of(e["secret"]), office.now) for e in (*made, turned)]
        assert [found and found.user for found in users] == ["ada", None, "cy", "ada"]


async def test_keys_of_the_configuration_are_listed_and_left_alone():
    office = Office(keys=[{"key": "callers-key-1", "user": "ada", "tier": "paid", "allow": ["auto"]}])
    (entry,) = office.desk.listed()
    assert (entry["source"], entry["user"], entry["tier"], entry["allow"]) == (
        "configuration",
        "ada",
        "paid",
        ("auto",),
    )
    assert office.ring.allowed(entry["id"]) == ("auto",)
    for change in (office.desk.rotate(entry["id"], {}, None), office.desk.revoke(entry["id"], None)):
        with pytest.raises(Conflict, match="configuration"):
            await change


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "user"),
        ({"user": "a\nb"}, "user"),
        ({"user": ""}, "user"),
        ({"user": "ada", "tier": "gold"}, "tier"),
        ({"user": "ada", "expires_at": 1000.0}, "expires_at"),
        ({"user": "ada", "expires_at": "soon"}, "expires_at"),
        ({"user": "ada", "allow": ["auto", "dear"]}, "allow[1]"),
        ({"user": "ada", "key": "mine"}, "key"),
        ([], ""),
    ],
)
async def test_what_cannot_be_a_key_is_refused_by_its_field(office, body, param):
    with pytest.raises(InvalidFields) as refused:
        await office.desk.create(body, None)
    assert refused.value.problems[0]["param"] == param
    assert office.changes.rows == []


async def test_there_is_a_most_of_keys_that_are_valid():
    office = Office(max_keys=1)
    made = await office.desk.create({"user": "ada"}, None)
    with pytest.raises(Conflict, match=r"auth\.max_keys"):
        await office.desk.create({"user": "bo"}, None)
    await office.desk.revoke(made["id"], None)
    await office.desk.create({"user": "bo"}, None)


async def test_an_open_service_makes_no_keys(office):
    desk = KeyDesk(None, (), office.ring, office.changes, known=list, clock=lambda: 0.0)
    with pytest.raises(Conflict, match="runs open"):
        await desk.create({"user": "ada"}, None)


async def test_an_unknown_key_is_not_found(office):
    for change in (office.desk.rotate("key-0", {}, None), office.desk.revoke("key-0", None)):
        with pytest.raises(UnknownKey):
            await change
    with pytest.raises(InvalidFields):
        await office.desk.rotate("key-0", {"grace_s": -1}, None)
