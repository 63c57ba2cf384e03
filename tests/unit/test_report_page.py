"""The page of a report: complete in itself, right for any name, and saying only what the data says."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from hand_made_log import START_TS, HandMadeLog

from evaluation.judgement import Standards
from evaluation.logs import opened
from evaluation.measures import Measures
from evaluation.report import report_data
from evaluation.report_page import replay_page, report_page
from evaluation.selection import Selection

NASTY = '<script>alert("x")</script> & $x_1$ 日本語 مرحبا'
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Tags with their attributes, the text, and whether every element is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.open, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def log(tmp_path):
    return HandMadeLog(tmp_path / "log.duckdb")


def data_of(log, *, pool="auto", limits=None, specs=()):
    from evaluation.candidates import named

    with opened([log.write()]) as source:
        return report_data(
            source,
            Selection(pool),
            limits=limits or {},
            measures_of=lambda _: Measures(latency_limit_s=2.0),
            others=lambda rounds, measures: [named(spec, rounds.arms, measures) for spec in specs],
            standards=Standards(min_effective_samples=20.0, replicates=20),
        )


def busy(log, models=("a", "b"), **more):
    """Sixty calls of everybody in turn, with feedback, failures, filter events, drift and benchmarks."""
    p = dict.fromkeys(models, 1 / len(models))
    pool = more.get("pool", "auto")
    change = {"pool": pool, "constraint_name": "p95_latency_s", "from_state": "unknown", "to_state": "filtered"}
    for i in range(60):
        chosen = models[i % len(models)]
        attempt = (chosen, "error", 1.0, 0.01, 500) if i % 11 == 10 else (chosen, "ok", 1.0 + 0.01 * i, 0.01)
        log.call(chosen, attempt, p=p, feedback=[(float(i % 2), {})] if i % 3 else (), ts=START_TS + 60 * i, **more)
    for i, name in enumerate(models):
        log.put("filter_event", ts=START_TS + 60 * (i + 1), model=name, reason="proved", **change)
        log.put("benchmark_result", suite="s", run="1", item_id="1", model=name, quality=0.5, ts=START_TS + 5)
    log.put("filter_event", ts=START_TS + 99, pool=pool, model=models[0], reason="drift", constraint_name="cost")
    return log


def test_the_page_needs_nothing_from_anywhere(log):
    data = data_of(busy(log), limits={"p95_latency_s": 2.0, "min_accuracy": 0.5}, specs=["uniform"])
    text = report_page(data)
    page = Page(text)
    assert re.findall(r"https?:|//[a-z]|@import|url\((?!#)", text) == []
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img", "object", "foreignobject"} == set()
    references = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("href", "src")]
    assert all(value.startswith("#") for value in references)
    assert {value[1:] for value in references} <= set(page.ids)
    assert [name for _, attributes in page.tags for name in attributes if name.startswith("on")] == []


def test_ids_are_unique_though_every_chart_names_its_own(log):
    page = Page(report_page(data_of(busy(log, [f"m{i}" for i in range(5)]), specs=["uniform", "fixed:m1"])))
    assert len(page.ids) == len(set(page.ids)) > 100


def test_every_chart_says_what_it_shows_and_every_table_has_a_caption_and_heads(log):
    page = Page(report_page(data_of(busy(log), specs=["uniform"])))
    charts = page.named("svg")
    assert len(charts) >= 8
    assert all(chart["role"] == "img" and len(chart["aria-label"]) > 10 for chart in charts)
    assert len(page.named("table")) == len(page.named("caption")) >= 10
    assert all(head.get("scope") in ("col", "row") for head in page.named("th"))


def test_names_are_text_whatever_they_contain(log):
    """In the page as in its charts: no element, no formula, and whole in the table."""
    models = (NASTY, "_hidden", "x" * 200, "a' OR 1=1; --", "new\nline\x00")
    data = data_of(busy(log, models, category=NASTY, pool=NASTY), pool=NASTY, specs=["uniform"])
    text = report_page(data)
    page = Page(text)
    assert page.named("script") == []
    assert NASTY in "".join(page.text)
    assert "x" * 200 in "".join(page.text)
    assert "mathdefault" not in text
    assert "\x00" not in text
    in_charts = re.sub(r".*?(<svg.*?</svg>)|.*", lambda found: found[1] or "", text, flags=re.DOTALL)
    assert "_hidden" in in_charts
    assert "<script" not in in_charts


def test_charts_take_their_colours_from_the_page(log):
    """So that light, dark and paper are one document: no colour is written into a chart."""
    text = report_page(data_of(busy(log)))
    charts = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert charts
    for chart in charts:
        assert re.findall(r"(?:fill|stroke)(?:: |=\")#[0-9a-f]{3,6}", chart) == []
        assert "var(--ink)" in chart
        assert "font-family" not in chart


EMPTY = {
    "one call and nothing else": lambda log: log.call("a", ("a", "ok", None, None)),
    "no outcome at all": lambda log: log.put(
        "decision", decision_id="d", mode="bandit", pool="auto", context=[], context_version="v", arms=["a"],
        feasible=[False], probabilities=[1.0], chosen="a", propensity=1.0, predicted_quality=[None],
        predicted_cost_usd=[None], predicted_latency_s=[None], input_tokens=0,
    ),
    "only failures": lambda log: log.call("a", ("a", "error", 0.1, None, 500)),
    "one model": lambda log: [log.call("a", p={"a": 1.0}, feedback=[(1.0, {})], ts=START_TS + i) for i in range(30)],
    "no feedback": lambda log: [log.call("ab"[i % 2], ts=START_TS + i) for i in range(30)],
    "no prices": lambda log: [log.call("ab"[i % 2], ("ab"[i % 2], "ok", 1.0, None)) for i in range(30)],
}  # fmt: skip


@pytest.mark.parametrize("kind", EMPTY)
def test_what_is_not_there_leaves_a_page_that_says_so(log, kind):
    EMPTY[kind](log)
    data = data_of(log)
    text = report_page(data)
    Page(text)
    json.dumps(data, allow_nan=False)
    assert re.findall(r"\bnan\b|\bNone\b|\binf\b", re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)) == []


def test_many_models_have_a_row_each_and_charts_stay_readable(log):
    models = [f"model-{i:02d}" for i in range(25)]
    data = data_of(busy(log, models))
    text = report_page(data)
    assert all(name in "".join(Page(text).text) for name in models)
    assert text.count("Latency of model-") == 8
    assert "18 others" in text


def test_the_page_says_the_numbers_of_the_data(log):
    """Changed in the data, changed on the page: nothing is computed twice."""
    data = data_of(busy(log))
    changed = copy.deepcopy(data)
    changed["spend"]["usd"] = 123.4
    changed["models"][0]["overall"]["quality"]["mean"] = 0.4321
    changed["single_models"]["models"][0]["predicted_quality"] = 0.9871
    changed["calibration"]["test"]["p_value"] = 0.0123
    changed["feedback"]["overall"]["missing"]["mean"] = 0.777
    for number in ("123.4", "0.432", "0.987", "0.012", "77.7 %"):
        assert number not in report_page(data)
        assert number in report_page(changed)


def test_a_replays_page_has_estimates_or_the_reason_why_not(log):
    data = data_of(busy(log), specs=["uniform", "fixed:a"])
    results = {"selection": data["selection"], "policies": data["policies"]}
    text = replay_page(results)
    Page(text)
    assert "cannot tell" not in text
    assert "bootstrap assumes" in text
    results["policies"][1]["metrics"]["quality"] |= {"cannot_tell": "there is < 1 sample", "estimates": []}
    results["policies"][1]["metrics"]["quality"] |= {"difference": None, "headline": None}
    assert "cannot tell, because there is &lt; 1 sample" in replay_page(results)


def test_without_matplotlib_there_is_one_clear_sentence(log, tmp_path):
    """And the figures alone need none."""
    path = busy(log).write()
    hidden = (
        "import sys; sys.modules['matplotlib'] = None; from serving.cli import main; sys.argv[0] = 'pointsman'; main()"
    )

    def run(*arguments):
        command = [sys.executable, "-c", hidden, "report", str(path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)

    refused = run("-o", str(tmp_path / "page.html"))
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "pip install 'pointsman[report]'" in refused.stderr
    assert run("--json", str(tmp_path / "figures.json")).returncode == 0
    assert json.loads((tmp_path / "figures.json").read_text())["form"] == 1
