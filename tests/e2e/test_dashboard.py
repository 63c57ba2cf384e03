"""The dashboard in a real browser, against the real service: what it shows, what it changes, and for whom it works."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from contextlib import contextmanager

import pytest
from chromium import Opened, launched
from openai import OpenAI
from playwright.sync_api import expect

MODELS = ("good", "fair", "steady")
CATEGORIES = ("math", "chat")


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def config(trial):
    pool = {
        "name": "auto",
        "models": list(MODELS),
        "objective": {"quality": 1.0, "cost": 0.2},
        "constraints": {"p95_latency_s": 5.0, "min_accuracy": 0.3, "accuracy_evidence": "feedback"},
        "budget": {"usd_per_request": 0.01},
    }
    return {
        "models": [trial.model(name) for name in MODELS],
        "pools": [pool, {"name": "other", "models": ["good"]}],
        "budgets": [{"scope": "all", "usd": 5, "per": "day"}],
        "log": {"flush_interval_s": 0.2},
    }


@pytest.fixture(scope="module")
def service(run_service, config, tmp_path_factory):
    with run_service(config, tmp_path_factory.mktemp("dashboard")) as service:
        call(service, 40)
        yield service


@pytest.fixture
def opened(browser, service):
    """The page of a service with traffic; whatever is said to its console as an error fails its test."""
    page = Opened(browser, service.url)
    page.live()
    yield page
    page.context.close()
    assert page.errors == []
    assert page.elsewhere == []


def call(service, times, **more):
    """Calls of the pool, each with feedback."""
    client = OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    grades = []
    for i in range(times):
        headers = {"x-pointsman-category": CATEGORIES[i % 2]}
        answer = client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": f"question {i}"}], extra_headers=headers, **more
        )
        grades.append({"decision_id": answer.id, "quality": float(i % 4 > 0)})
    api(service, "POST", "/reward", grades)


def api(service, method, path, body=None):
    """The answer of the API."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(service.url + path, data=data, method=method)  # noqa: S310 - on this machine
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        return json.load(response)


def text_of(service, path):
    with urllib.request.urlopen(service.url + path, timeout=30) as response:  # noqa: S310
        return response.read().decode()


def pool_of(service):
    return api(service, "GET", "/admin/pools/auto")


def usage_of(service, *by):
    rows = api(service, "GET", f"/admin/usage?by={','.join(('pool', *by))}")["rows"]
    return {tuple(row[name] for name in by): row for row in rows if row["pool"] == "auto"}


@contextmanager
def dialog(page, title):
    """The dialog that asks; it has to be gone afterwards."""
    box = page.locator("#dialog")
    expect(box.get_by_role("heading")).to_have_text(re.compile(title))
    yield box
    expect(box).to_be_hidden()


def confirm(page, title, action):
    with dialog(page, title) as box:
        box.get_by_role("button", name=action, exact=True).click()


# --- what it shows


def test_the_figures_are_those_of_the_api_while_traffic_flows(opened, service):
    """Calls, attempts and cost to the last digit, in all and by model, and each cell of the matrix."""
    traffic = threading.Thread(target=call, args=(service, 30))
    traffic.start()
    page = opened.page
    traffic.join()
    (total,) = usage_of(service).values()
    opened.figure("calls", str(total["calls"]))
    opened.figure("cost_usd", repr(total["cost_usd"]))
    for (model,), row in usage_of(service, "model").items():
        cells = page.locator(f"#models tr[data-model={model}] td")
        expect(cells.nth(3)).to_have_text(f"{row['calls']:,}")
    page.get_by_role("button", name="Reload").click()
    for row in api(service, "GET", "/admin/matrix?pool=auto&days=7")["models"]:
        shown = page.locator(f"#matrix tr[data-model={row['model']}] [data-figure=calls]")
        places = [row["overall"], *(cell for cell in row["categories"])]
        for i, cell in enumerate(place for place in places if place["calls"]):
            expect(shown.nth(i)).to_have_attribute("value", str(cell["calls"]))
    attempts = re.findall(
        r'^pointsman_calls_total\{.*pool="auto".*\} (\S+)$', text_of(service, "/metrics"), re.MULTILINE
    )
    assert sum(map(float, attempts)) == total["attempts"]
    spent = api(service, "GET", "/admin/budgets")["budgets"][0]["counters"][0]["spent"]
    assert spent == pytest.approx(total["cost_usd"], abs=1e-12)
    expect(page.locator("#budgets")).to_contain_text("everybody")


def test_every_chart_has_its_numbers_as_a_table(opened):
    page = opened.page
    charts = page.locator("#charts figure")
    assert charts.count() == 6
    for i in range(charts.count()):
        chart = charts.nth(i)
        expect(chart.locator("canvas")).to_have_count(1)
        chart.get_by_text("Numbers").click()
        expect(chart.locator("table tbody tr").first).to_be_visible()
    page.get_by_role("radio", name="6 hours").check()
    expect(charts.first.locator(".legend")).to_contain_text("good")


def test_a_decision_opens_to_why(opened, service):
    """Its probabilities are those of the log and sum to one; predicted stands beside realised."""
    page = opened.page
    page.locator("#follow").uncheck()
    opener = page.locator("#decisions .opener").first
    decision_id = opener.get_attribute("data-key")
    opener.click()
    detail = page.locator("#why-detail")
    expect(detail).to_contain_text("feasible models")
    expect(detail.locator("table").first.locator("tbody tr")).to_have_count(len(MODELS))
    why = api(service, "GET", f"/admin/decisions/{decision_id}")
    assert sum(model["probability"] for model in why["models"]) == pytest.approx(1.0)
    assert [m["model"] for m in why["models"]] == list(MODELS)
    expect(detail).to_contain_text(decision_id)
    expect(detail).to_contain_text("Predicted")
    page.locator("#decisions .opener[aria-expanded=true]").click()
    expect(detail).to_have_count(0)


def test_another_pool_can_be_looked_at(opened):
    opened.page.locator("#pool").select_option("other")
    opened.figure("calls", "0")
    expect(opened.page.locator("#models tbody tr")).to_have_count(1)


# --- what it changes


def test_a_model_is_switched_off_and_on_and_only_once_confirmed(opened, service):
    page = opened.page
    switch = page.get_by_role("switch", name="fair serves calls")
    switch.click()
    confirm(page, "Switch fair off", "Cancel")
    assert pool_of(service)["disabled"] == []
    switch.click()
    confirm(page, "Switch fair off", "Switch off")
    expect(switch).to_have_attribute("aria-checked", "false")
    assert pool_of(service)["disabled"] == ["fair"]
    expect(page.locator("#events li").first).to_contain_text("disabled changed")
    call(service, 1)
    (latest,) = api(service, "GET", "/admin/decisions?limit=1")["decisions"]
    models = api(service, "GET", f"/admin/decisions/{latest['decision_id']}")["models"]
    assert [m["left_out"] for m in models if m["model"] == "fair"] == ["switched off by an operator"]
    switch.click()
    confirm(page, "Switch fair on", "Switch on")
    expect(switch).to_have_attribute("aria-checked", "true")
    assert pool_of(service)["disabled"] == []


def test_learning_is_switched(opened, service):
    page = opened.page
    for mode in ("observe", "bypass", "apply"):
        page.get_by_role("radio", name=mode, exact=True).click()
        confirm(page, f"Set learning to {mode}", f"Set to {mode}")
        expect(page.locator(f"#learning input[value={mode}]")).to_be_checked()
        assert pool_of(service)["learning"] == mode


def test_weights_are_set_and_taken_back(opened, service):
    page = opened.page
    page.get_by_role("button", name="Weights").click()
    with dialog(page, "Weights of pool auto") as box:
        box.get_by_label("No weights").uncheck()
        box.get_by_role("button", name="Review").click()
        expect(box.get_by_role("alert")).to_contain_text("At least one model")
        box.get_by_label("good", exact=True).fill("3")
        box.get_by_label("steady", exact=True).fill("1")
        box.get_by_role("button", name="Review").click()
        expect(box).to_contain_text("good: 75.0% of the calls")
        box.get_by_role("button", name="Set weights").click()
    expect(page.locator("#models tr[data-model=good]")).to_contain_text("weight 3")
    assert pool_of(service)["weights"] == {"good": 3.0, "steady": 1.0}
    page.get_by_role("button", name="Weights").click()
    with dialog(page, "Weights of pool auto") as box:
        box.get_by_label("No weights").check()
        box.get_by_role("button", name="Review").click()
        box.get_by_role("button", name="Let it choose").click()
    expect(page.locator("#steering-note")).to_contain_text("The policy chooses")
    assert pool_of(service)["weights"] is None


def test_a_canary_starts_is_aborted_and_let_in_again(opened, service):
    page = opened.page
    page.get_by_role("button", name="Start canary").click()
    with dialog(page, "Canary in pool auto") as box:
        box.get_by_label("Model on trial").select_option("steady")
        box.get_by_label("First share").fill("20")
        box.get_by_role("button", name="Review").click()
        expect(box).to_contain_text("steady gets 20.0% of the calls")
        box.get_by_role("button", name="Start canary").click()
    expect(page.locator("#canary-card")).to_contain_text("running")
    assert pool_of(service)["canary"]["phase"] == "running"
    page.get_by_role("button", name="Abort canary").click()
    confirm(page, "Abort the canary of steady", "Abort canary")
    expect(page.locator("#canary-card")).to_contain_text("aborted")
    page.get_by_role("button", name="Let it in again").click()
    confirm(page, "Let steady in again", "Let it in")
    expect(page.locator("#canary-card")).to_contain_text("released")
    expect(page.locator("#events")).to_contain_text("canary is aborted")


def test_what_the_service_refuses_is_said_where_it_was_asked(opened, service):
    page = opened.page
    page.get_by_role("button", name="Start canary").click()
    api(service, "POST", "/admin/pools/auto/canary", {"model": "fair"})  # somebody else was quicker
    box = page.locator("#dialog")
    box.get_by_label("Model on trial").select_option("steady")
    box.get_by_role("button", name="Review").click()
    box.get_by_role("button", name="Start canary").click()
    expect(box.get_by_role("alert")).to_contain_text("has a canary already")
    box.get_by_role("button", name="Cancel").click()
    for _ in range(2):  # aborted, then let in
        api(service, "DELETE", "/admin/pools/auto/canary")
    assert [error for error in opened.errors if "409" not in error] == []
    opened.errors.clear()


def test_it_all_works_by_keyboard(opened, service):
    """Every control is reached by Tab, and a model is switched off and on without a mouse."""
    page = opened.page
    page.locator(".skip").focus()
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(e => e.dataset.key ?? e.id ?? '')(document.activeElement)"))
        if reached[-1] == "follow":
            break
    assert {"theme", "pool", "edit-weights", "edit-canary", "switch-good", "days", "reload-matrix", "follow"} <= set(
        reached
    )
    for action in ("Switch off", "Switch on"):
        page.get_by_role("switch", name="good serves calls").focus()
        page.keyboard.press("Space")
        expect(page.locator("#dialog")).to_be_visible()
        page.locator("#dialog").get_by_role("button", name=action).focus()
        page.keyboard.press("Enter")
        expect(page.locator("#dialog")).to_be_hidden()
        checked = str(action == "Switch on").lower()
        expect(page.get_by_role("switch", name="good serves calls")).to_have_attribute("aria-checked", checked)
    page.get_by_role("switch", name="good serves calls").focus()
    page.wait_for_timeout(2500)  # renewed meanwhile, the focus is where it was
    assert page.evaluate("document.activeElement.dataset.key") == "switch-good"
    assert pool_of(service)["disabled"] == []


# --- for whom it works


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_it_is_accessible_and_fits_the_screen(browser, service, width, scheme):
    """No finding of axe-core, whatever is open; nothing to scroll sideways; and it takes the system's colours."""
    opened = Opened(browser, service.url, width=width, scheme=scheme)
    page = opened.live()
    expect(page.locator("#matrix tbody tr")).to_have_count(len(MODELS))
    assert opened.problems() == []
    page.locator("#follow").uncheck()
    page.locator("#decisions .opener").first.click()
    expect(page.locator("#why-detail")).to_contain_text("Predicted")
    page.locator("#charts summary").first.click()
    assert opened.problems() == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.get_by_role("button", name="Weights").click()
    assert opened.problems() == []
    page.keyboard.press("Escape")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").select_option("light" if scheme == "dark" else "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    assert opened.problems("color-contrast") == []
    opened.context.close()
    assert opened.errors == []


# --- when there is nothing, or nobody there


def test_a_service_without_calls_says_so_and_how_to_make_one(browser, run_service, config, tmp_path):
    with run_service(config, tmp_path) as service:
        opened = Opened(browser, service.url)
        page = opened.live()
        expect(page.locator("#empty")).to_be_visible()
        expect(page.locator("#example")).to_contain_text(f"{service.url}/v1/chat/completions")
        assert opened.problems() == []
        call(service, 2)
        opened.figure("calls", "2")
        expect(page.locator("#empty")).to_be_hidden()
        assert opened.errors == []
        opened.context.close()


def test_it_comes_back_with_the_same_figures_after_a_restart(browser, run_service, config, tmp_path):
    """It says that the connection is lost, and since when; what was counted is counted still."""
    with run_service(config, tmp_path) as service:
        opened = Opened(browser, service.url)
        page = opened.live()
        call(service, 5)
        opened.figure("calls", "5")
        before = usage_of(service)[()]
        assert service.stop() == 0
        expect(page.locator("#link")).to_have_attribute("data-state", "lost")
        expect(page.locator("#banner")).to_contain_text("The connection is lost")
        assert opened.problems() == []
        port = service.url.rpartition(":")[2]
    with run_service(config, tmp_path, arguments=["--port", port]) as service:
        opened.live()
        expect(page.locator("#banner")).to_be_hidden()
        opened.figure("calls", "5")
        opened.figure("cost_usd", repr(before["cost_usd"]))
        expect(page.locator("#decisions .opener")).to_have_count(5)
        call(service, 2)
        opened.figure("calls", "7")
    refused = [error for error in opened.errors if "net::ERR" not in error]  # the browser's own word on a lost service
    opened.context.close()
    assert refused == []


def test_the_admin_key_opens_it_and_stays_out_of_addresses_and_cookies(browser, run_service, config, tmp_path):
    keys = {"admin_key": "the-admins-key", "keys": [{"key": "a-callers-key", "user": "ada"}]}
    with run_service(config | {"auth": keys}, tmp_path) as service:
        opened = Opened(browser, service.url)
        page = opened.page
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        expect(page.locator("#sign-in")).to_be_visible()
        assert opened.problems() == []
        assert opened.errors == []
        for key, said in (("wrong-key", "not known"), ("a-callers-key", "not the admin key")):
            page.get_by_label("Admin key").fill(key)
            page.keyboard.press("Enter")
            expect(page.locator("#sign-in-problem")).to_contain_text(said)
        page.get_by_label("Admin key").fill("the-admins-key")
        page.keyboard.press("Enter")
        opened.live()
        page.reload()
        opened.live()
        assert opened.context.cookies() == []
        assert not any("key" in url for url in asked)
        page.get_by_role("button", name="Sign out").click()
        expect(page.locator("#sign-in")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0
        assert "the-admins-key" not in page.content()
        opened.context.close()
