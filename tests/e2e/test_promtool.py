"""Metrics, rules and the Grafana dashboard as Prometheus's own tool sees them, over a service with some traffic."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import orjson
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "pointsman.rules.yml"
PROMTOOL = shutil.which("promtool")
CALLS = 25
NAMES = re.compile(r"(?<![\w:])(?:pointsman_\w+|process_\w+|pool\w*:[\w:]+)")
ONLY_WHEN_IT_HAPPENS = {  # a service that nothing went wrong in has no sample of these, but their family
    "pointsman_canary_share_ratio",
    "pointsman_canary_phase",
    "pointsman_canary_held",
    "pointsman_benchmark_results_total",
    "pointsman_benchmark_runs_total",
    "pointsman_gate_shed_total",
    "pointsman_faults_injected_total",
    "pointsman_batching_spared_calls_total",
    "pointsman_trace_spans_total",
    "pointsman_reloads_total",
}
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is in Debian's package prometheus; CI installs it"
)


def promtool(*arguments, text=None, folder=DEPLOY / "prometheus"):
    done = subprocess.run(
        [PROMTOOL, *arguments], input=text, capture_output=True, text=True, cwd=folder, timeout=300, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    config = {
        "models": [trial.model("good"), trial.model("f500")],
        "pools": [
            {
                "name": "auto",
                "models": ["good", "f500"],
                "budget": {"usd_per_request": 0.01},
                "cache": {},
                "slo": {"availability": 0.999, "latency_s": 20, "latency_share": 0.95, "success_quality": 0.7},
            }
        ],
        "budgets": [
            {"name": "all", "scope": "all", "usd": 5},
            {"name": "each", "scope": "user", "tokens": 10**9},
        ],
        "benchmarks": [],
    }
    with run_service(config, tmp_path_factory.mktemp("metrics")) as service:
        yield service


async def test_there_is_some_traffic(service, http):
    for i in range(CALLS):
        body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], "stream": i % 5 == 0}
        async with http.post(f"{service.url}/v1/chat/completions", json=body) as response:
            assert response.status == 200
            await response.read()
            decision_id = response.headers["x-pointsman-decision-id"]
        async with http.post(f"{service.url}/reward", json={"decision_id": decision_id, "quality": i % 2}) as response:
            assert response.status == 200
    async with http.post(f"{service.url}/v1/chat/completions", json={"model": "auto"}) as response:
        assert response.status == 400


@pytest.fixture
async def shown(service, http):
    async with http.get(f"{service.url}/metrics") as response:
        return await response.text()


@pytest.fixture
def samples(shown):
    return {sample.name for family in text_string_to_metric_families(shown) for sample in family.samples}


@needs_promtool
async def test_the_metrics_have_the_form_that_prometheus_wants(shown):
    """Names, units, types and help: promtool has nothing to say about them."""
    assert promtool("check", "metrics", text=shown).strip() == ""


@needs_promtool
def test_the_rules_and_the_example_configuration_are_valid():
    promtool("check", "config", "prometheus.yml")
    assert "SUCCESS" in promtool("check", "rules", RULES.name)


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then():
    assert "SUCCESS" in promtool("test", "rules", "pointsman.test.yml")


def test_every_alert_is_tested_both_ways():
    tested = yaml.safe_load((DEPLOY / "prometheus" / "pointsman.test.yml").read_text())
    cases = [case for test in tested["tests"] for case in test.get("alert_rule_test", ())]
    alerts = {rule["alert"] for rule in _rules() if "alert" in rule}
    assert len(alerts) > 10
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    always = {"PointsmanLearningStarved"}  # its test has pools that it must leave alone
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} | always == alerts


def test_every_alert_says_how_urgent_it_is_and_what_to_do():
    for rule in _rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert {"summary", "description"} == set(rule["annotations"])


async def test_rules_and_panels_ask_for_metrics_that_there_are(samples):
    """Every name in a query is one that a service with some traffic shows, or that a rule records."""
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    queries = [rule["expr"] for rule in _rules()] + _queries()
    assert len(queries) > 60
    for query in queries:
        names = set(NAMES.findall(query)) or {query}
        unknown = names - samples - recorded - ONLY_WHEN_IT_HAPPENS - {'up{job="pointsman"} == 0'}
        assert not unknown, query


async def test_what_a_panel_shows_only_when_it_happens_is_a_family_of_the_service(shown):
    families = {family.name for family in text_string_to_metric_families(shown)}
    assert {name.removesuffix("_total") for name in ONLY_WHEN_IT_HAPPENS} <= families


async def test_every_metric_is_on_the_dashboard(shown):
    asked = " ".join([*_queries(), *(rule["expr"] for rule in _rules())])
    families = {f.name for f in text_string_to_metric_families(shown) if f.name.startswith("pointsman_")}
    assert {name for name in families if name not in asked} == set()


@needs_promtool
def test_the_panels_queries_are_valid(tmp_path):
    values = {"$pool": "auto", "$__rate_interval": "5m"}
    rules = []
    for i, query in enumerate(_queries()):
        for variable, value in values.items():
            query = query.replace(variable, value)  # noqa: PLW2901 - step by step
        assert "$" not in query
        rules.append({"record": f"query_{i}", "expr": query})
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(path))


def _rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def _queries():
    dashboard = orjson.loads((DEPLOY / "grafana" / "pointsman.json").read_bytes())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 20
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
