"""What is kept of what events called for while nobody led: each thing once, until it is logged, and not for long."""

from __future__ import annotations

import orjson

from serving.due import Due
from serving.store import Event

TS = 1e9


def standing(model, to_state, **more):
    row = {"ts": TS, "pool": "auto", "model": model, "constraint_name": "max_error_rate", "to_state": to_state} | more
    return (None, Event("filter_event", "", TS, orjson.dumps(row)))


def notice(member, **more):
    row = {"subject": "budgets", "what": "spent", "pool": None, "model": None, "after": {"member": member} | more}
    return (("budgets", "spent"), Event("change", "", TS, orjson.dumps(row)))


def test_what_was_logged_is_due_no_more():
    due = Due()
    due.add([standing("a", "filtered"), standing("b", "filtered"), notice("ada", reserved=0.0), notice("bob")], TS)
    due.logged(standing("a", "filtered", evidence=7.0)[1])
    due.logged(standing("b", "admitted")[1])
    due.logged(Event("outcome", "d", TS, b"{}"))
    due.logged(notice("ada", reserved=0.5)[1])  # by one who had other calls under way
    assert due.taken(TS + 60) == [standing("b", "filtered"), notice("bob")]
    assert due.taken(TS + 60) == []


def test_what_was_called_for_long_ago_is_left_to_its_time():
    due = Due()
    due.add([standing("a", "filtered")], TS)
    due.add([standing("b", "filtered")], TS + 50)
    assert due.taken(TS + 61) == [standing("b", "filtered")]


def test_no_more_are_kept_than_a_bound():
    due = Due()
    due.add([standing(str(i), "filtered") for i in range(1_500)], TS)
    kept = due.taken(TS)
    assert (len(kept), kept[-1]) == (1_000, standing("1499", "filtered"))
