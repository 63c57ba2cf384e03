"""`pointsman simulate`: what it prints and writes, what-ifs that act, a log that reads like the service's."""

from __future__ import annotations

import json
import subprocess
import sys

import duckdb
import numpy as np
import pytest
from recorded_folders import write_folder
from small_pools import bits
from typer.testing import CliRunner

from evaluation.recorded_calls import read_calls
from evaluation.simulation import simulate as run_simulation
from serving.cli import main
from serving.commands.simulation_job import Job, notes_of, run_job, settings_of
from serving.learner import Learner
from serving.metrics import Metrics
from serving.pools import build_pool
from serving.simulated_log import SimulatedLog
from serving.store import Event

CONFIG = """
server: {data_dir: DATA}
models:
  - name: small
    endpoint: ${NOBODYS_URL}
    api_key: ${NOBODYS_KEY}
    price: {input_per_million: 10, output_per_million: 20}
  - name: large
    endpoint: https://large.test/v1
    upstream_model: big
    price: {input_per_million: 100, output_per_million: 200}
pools:
  - name: auto
    models: [small, large]
    constraints: {p95_latency_s: 4.0}
"""
SMALL_USD, LARGE_USD = 2.2e-3, 2.2e-2  # of a call with 20 tokens in and 100 out


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "pointsman.yaml"
    path.write_text(CONFIG.replace("DATA", str(tmp_path / "data")))
    return path


@pytest.fixture
def folder(tmp_path):
    """30 prompts, half of them in split warm: small is right half the time on average, big nearly always."""
    return write_folder(tmp_path / "set", {"small": 0.5, "big": 0.9})


@pytest.fixture
def simulate(folder, config):
    def simulate(*arguments):
        return CliRunner().invoke(main, ["simulate", str(folder), "-c", str(config), "--cold", *arguments])

    return simulate


def figures(tmp_path, simulate, *arguments):
    """The JSON of a run."""
    path = tmp_path / "out.json"
    result = simulate(*arguments, "--json", str(path))
    assert result.exit_code == 0, result.output
    return json.loads(path.read_text())


def test_a_run_is_told_in_figures(tmp_path, simulate):
    """Always the large one: quality 0.9 and 22 USD per 1,000 calls of 0.5 s; beside it every model and the uniform."""
    data = figures(tmp_path, simulate, "--set", "pool.auto.policy={kind: fixed, model: large}", "--calls", "40")
    (variant,) = data["variants"]
    mean = {name: value["mean"] for name, value in variant["figures"].items()}
    assert mean["quality"] == pytest.approx(0.9)
    assert mean["usd_per_1000"] == pytest.approx(1000 * LARGE_USD)
    assert (mean["p50_latency_s"], mean["p95_latency_s"], mean["slow_share"]) == (0.5, 0.5, 0.0)
    assert variant["shares"] == {"small": 0.0, "large": 1.0}
    assert variant["beside"]["small"]["usd_per_1000"] == pytest.approx(1000 * SMALL_USD)
    assert variant["beside"]["(uniform)"]["quality"] == pytest.approx(0.7)
    assert variant["beside"]["(oracle)"]["quality"] == pytest.approx(0.9)
    assert variant["seeds"][0]["calls"] == 40


def test_a_price_what_if_acts_on_the_cost(tmp_path, simulate):
    fixed = ("--set", "pool.auto.policy={kind: fixed, model: small}")
    before, after = (
        figures(tmp_path, simulate, *fixed, *more)["variants"][0]["figures"]["usd_per_1000"]["mean"]
        for more in (
            (),
            ("--set", "model.small.price.input_per_million=20", "--set", "model.small.price.output_per_million=40"),
        )
    )
    assert after == pytest.approx(2 * before)


def test_a_budget_is_held_and_told(tmp_path, simulate):
    """The budget buys the small one with a tenth of the large ones' cost to spare: a tenth of the calls at most."""
    usd = 0.9 * SMALL_USD + 0.1 * LARGE_USD
    budget = ("--set", f"pool.auto.budget.usd_per_request={usd}", "--calls", "2000")
    (variant,) = figures(tmp_path, simulate, *budget)["variants"]
    assert 0.5 < variant["seeds"][0]["budget_use"] <= 1.01
    assert variant["shares"]["large"] < 0.12


def test_repetitions_have_a_standard_error(tmp_path, simulate):
    uniform = ("--set", "pool.auto.policy.kind=uniform", "--seeds", "3", "--workers", "1")
    (variant,) = figures(tmp_path, simulate, *uniform)["variants"]
    qualities = [seed["figures"]["quality"] for seed in variant["seeds"]]
    assert len(set(qualities)) > 1
    assert variant["figures"]["quality"]["mean"] == pytest.approx(np.mean(qualities))
    assert variant["figures"]["quality"]["se"] == pytest.approx(np.std(qualities, ddof=1) / 3**0.5)


def test_a_run_can_be_repeated(tmp_path, simulate):
    first, second = (figures(tmp_path, simulate, "--seed", "7", "--calls", "100")["variants"][0] for _ in range(2))
    assert first["shares"] == second["shares"]
    assert first["figures"] == second["figures"]


def test_a_sweep_runs_each_value_and_marks_the_frontier(tmp_path, simulate):
    """Shares of the dear, better model: all are on the frontier. A dearer price for the same is not."""
    sweep = "pool.auto.policy={kind: fixed, model: small},{kind: fixed, model: large}"
    data = figures(tmp_path, simulate, "--sweep", sweep, "--workers", "1")
    assert [v["value"] for v in data["variants"]] == ["{kind: fixed, model: small}", "{kind: fixed, model: large}"]
    assert [v["figures"]["quality"]["mean"] for v in data["variants"]] == pytest.approx([0.5, 0.9])
    assert [v["pareto_efficient"] for v in data["variants"]] == [True, True]
    fixed = ("--set", "pool.auto.policy={kind: fixed, model: large}", "--workers", "1")
    data = figures(tmp_path, simulate, *fixed, "--sweep", "model.large.price.output_per_million=100:300:3")
    assert [v["pareto_efficient"] for v in data["variants"]] == [True, False, False]


def test_processes_share_a_sweep(folder, config, tmp_path):
    """The real program, with a plot where matplotlib is there."""
    pytest.importorskip("matplotlib")
    plot = tmp_path / "frontier.svg"
    command = [sys.executable, "-m", "serving", "simulate", str(folder), "-c", str(config), "--plot", str(plot)]
    done = subprocess.run(
        [*command, "--sweep", "pool.auto.policy.kind=uniform,thompson,ucb1", "--seeds", "2"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "pool.auto.policy.kind=ucb1: quality" in done.stdout
    assert plot.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "pool.auto.constraints.p95=1"), "did you mean p95_latency_s?"),
        (("--set", "pool.outo.models=[small]"), "did you mean pool.auto?"),
        (("--sweep", "pool.auto.policy.kind=uniform,uniphorm"), "did you mean uniform?"),
        (("--sweep", "pool.auto.policy.kind=uniform,,"), "empty value"),
        (("--pool", "other"), "no pool is called 'other'; there are auto"),
        (("--run", "r9"), "'r9' was not recorded; there are r1"),
        (("--split", "nono"), "no prompt is in 'nono'"),
        (("--run", "r1", "--runs", "r1"), "give one"),
        (("--log", "x.duckdb", "--seeds", "2"), "holds one run"),
        (("--plot", "x.pdf"), "must end in .svg or .png"),
        (("--json", "no/such/folder/x.json"), "its folder does not exist"),
        (("--set", "pool.auto.models=[nobody]"), "no model is called 'nobody'"),
    ],
)
def test_mistakes_are_told_before_anything_is_run(simulate, arguments, message):
    result = simulate(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "decisions," not in result.output


def test_a_model_that_a_fixed_policy_needs_must_be_recorded(tmp_path, config):
    folder = write_folder(tmp_path / "other", {"small": 0.5})
    arguments = ["simulate", str(folder), "-c", str(config), "--set", "pool.auto.policy={kind: fixed, model: large}"]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, "'large' is not recorded" in result.output) == (2, True)


def job(folder, config, *overrides, **more):
    return Job(folder, config, overrides, 0, **more)


def test_notes_say_what_is_not_simulated(folder, config):
    missing = job(folder, config, "pool.auto.feedback.missing=0.5", feedback_share=0.5)
    assert any("feedback.missing is 0.5, which is not simulated" in note for note in notes_of(missing))
    limits = "pool.auto.constraints={p95_time_to_first_token_s: 1, min_accuracy: 0.8}"
    notes = notes_of(job(folder, config, limits))
    assert any("constraints.p95_time_to_first_token_s" in note for note in notes)
    assert any("nothing tests constraints.min_accuracy" in note for note in notes)


def test_a_pool_starts_as_the_service_would(folder, config):
    """Cold, from its warm start once there is one, or from split warm, which is the same and knows the better one."""

    def large_share(**more):
        return run_job(job(folder, config, "pool.auto.constraints=null", calls=15, **more)).shares["large"]

    assert "the pool starts cold" in notes_of(job(folder, config))
    env = {"NOBODYS_URL": "https://small.test/v1", "NOBODYS_KEY": "abcdefgh"}
    made = CliRunner().invoke(main, ["warmstart", "-c", str(config), "--from", str(folder)], env=env)
    assert made.exit_code == 0, made.output
    assert any("from its warm start" in note for note in notes_of(job(folder, config)))
    assert "the pool starts cold" in notes_of(job(folder, config, warm=False))
    assert any("warm, from" in note for note in notes_of(job(folder, config, warm=True)))
    assert large_share(warm=None) == large_share(warm=True) > large_share(warm=False)


def test_the_log_is_the_services_own(tmp_path, folder, config):
    """Every decision's propensity is its model's probability; outcomes and rewards come when they should."""
    path = tmp_path / "run.duckdb"
    slow = "pool.auto.constraints={p95_latency_s: 0.4}"  # every call is slower, so states change
    asked = job(folder, config, slow, calls=300, log=path, feedback_delay_s=3.0, feedback_share=0.5)
    result = run_job(asked)
    with duckdb.connect(str(path), read_only=True) as log:

        def one(query):
            return log.execute(query).fetchone()

        assert one("SELECT count(*), count(DISTINCT decision_id), min(pool), min(mode) FROM decisions") == (
            300,
            300,
            "auto",
            "bandit",
        )
        assert one(
            "SELECT max(abs(propensity - probabilities[list_position(arms, chosen)])),"
            " max(abs(list_sum(probabilities) - 1)) FROM decisions"
        ) == (0.0, pytest.approx(0.0, abs=1e-12))
        assert one(
            "SELECT count(*), min(o.ts - d.ts), max(o.ts - d.ts) FROM outcomes o JOIN decisions d USING (decision_id)"
            " WHERE o.model = d.chosen AND o.status = 'ok'"
        ) == (300, pytest.approx(0.5), pytest.approx(0.5))
        graded, least, most = one(
            "SELECT count(*), min(r.ts - o.ts), max(r.ts - o.ts) FROM rewards r JOIN outcomes o USING (decision_id)"
            " WHERE r.reward = r.quality"  # the objective weighs quality alone
        )
        assert (graded, least, most) == (one("SELECT count(*) FROM rewards")[0], pytest.approx(3), pytest.approx(3))
        assert 100 < graded < 200
        changes = log.execute("SELECT model, to_state, ts FROM filter_events ORDER BY seq").fetchall()
        assert [(c["model"], c["to"]) for c in result.changes] == [(model, state) for model, state, _ in changes]
        assert changes
        first, last = one("SELECT min(ts), max(ts) FROM decisions")
        assert all(first <= ts <= last + 4 for *_, ts in changes)
        assert one("SELECT count(*) FROM rejected") == (0,)
        shares = dict(log.execute("SELECT chosen, count(*) / 300 FROM decisions GROUP BY chosen").fetchall())
        assert shares == pytest.approx({name: share for name, share in result.shares.items() if share > 0})


def test_a_log_that_is_there_is_not_written_over(tmp_path, simulate):
    path = tmp_path / "run.duckdb"
    path.write_bytes(b"something")
    result = simulate("--log", str(path))
    assert (result.exit_code, "is there already" in result.output) == (2, True)
    assert path.read_bytes() == b"something"


def test_a_log_that_cannot_be_written_is_an_error(tmp_path, simulate):
    result = simulate("--log", str(tmp_path / "no" / "such" / "run.duckdb"))
    assert result.exit_code == 2
    assert "run.duckdb" in result.output


class LoggedEvents:
    """A store that holds what a log's file does, as JSON again."""

    def __init__(self, path):
        self.events = []
        tables = {
            "decision": "decisions",
            "outcome": "outcomes",
            "feedback": "rewards",
            "filter_event": "filter_events",
        }
        with duckdb.connect(str(path), read_only=True) as log:
            for kind, table in tables.items():
                query = f"SELECT to_json(t) FROM {table} t"  # noqa: S608  of our own words
                rows = [json.loads(text) for (text,) in log.execute(query).fetchall()]
                self.events += [self._event(kind, row) for row in rows]
        self.events.sort(key=lambda event: event.seq)
        self.position = len(self.events)

    @staticmethod
    def _event(kind, row):
        seq = row.pop("seq")
        return Event(kind, row.get("decision_id", ""), row["ts"], json.dumps(row).encode(), seq)

    def latest_snapshot(self):
        return None

    def read(self, after_seq, limit):
        return [event for event in self.events if event.seq > after_seq][:limit]

    def find(self, decision_id):
        return [event for event in self.events if event.decision_id == decision_id]


def test_the_logs_events_rebuild_what_the_run_learned(tmp_path, folder, config):
    """A service's learner, fed with the log's rows, ends in the state of the simulated pool, bit by bit."""
    path = tmp_path / "run.duckdb"
    settings, pool_settings = settings_of(job(folder, config, "pool.auto.constraints={p95_latency_s: 0.4}"))
    pool, fresh = build_pool(pool_settings, settings), build_pool(pool_settings, settings)
    names = {"small": ("small",), "large": ("big",)}
    recorded = read_calls(folder, names, {arm.name: arm.price for arm in pool.arms})
    contexts = tuple(pool.features.extract(prompt) for prompt in recorded.prompts)
    workload, _ = recorded.workload(contexts, np.random.default_rng(0), calls=200)
    log = SimulatedLog(path, pool)
    trace = run_simulation(pool, workload, rng=np.random.default_rng(1), feedback_delay_s=3.0, observer=log)
    log.close()
    assert trace.changes
    learner = Learner(
        {"auto": fresh},
        {"auto": np.random.default_rng(0)},
        LoggedEvents(path),
        Metrics(),
        cache_decisions=2000,
        snapshot_every_events=10**9,
    )
    learner.recover()
    assert fresh.step == 200
    assert bits(fresh) == bits(pool)
