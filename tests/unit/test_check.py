"""What `pointsman check` prints: on a terminal of any width and in a pipe, without secrets, markup or cuts."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from serving.check import render_check, render_problems
from serving.settings import ConfigError, Problem, Settings, load_settings

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "pointsman.example.yaml"
SECRETS = {
    "POINTSMAN_ADMIN_KEY": "s3cr3t-admin",
    "ACME_KEY": "s3cr3t-acme",
    "INTERN_KEY": "s3cr3t-intern",
    "OPENAI_API_KEY": "s3cr3t-openai",
}


def printed(settings: Settings, width: int = 80) -> str:
    out = io.StringIO()
    render_check(settings, Console(file=out, width=width))
    return out.getvalue()


def test_the_example_is_printed_in_full() -> None:
    """Every model, price, limit and policy of the example is on the screen, within 80 columns."""
    text = printed(load_settings(EXAMPLE, SECRETS))
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "…" not in text
    for part in (
        *("127.0.0.1:8080", "acme-bot, team search, tier paid, key set", "gpt-4o-mini", "0.15 / 0.6", "2.5 / 10"),
        *("https://api.openai.com/v1", "meta-llama/Llama-3.1-8B-Instruct", "x-team: set", "60 s"),
        *("p95 latency ≤ 2 s", "first token ≤ 0.8 s", "error rate ≤ 0.02", "accuracy ≥ 0.8, tested by both"),
        *("Pool auto", "Pool cheap", "quality 76.9%", "0.0005 USD per request", "thompson, floor 0.01"),
        *("epsilon_greedy, epsilon 0.05", "correct × 3, helpful × 1", "least_violation"),
    ):
        assert part in text


def test_secrets_are_set_or_missing_and_nothing_else() -> None:
    """No part of a secret is printed; a missing one is a dash."""
    settings = load_settings(EXAMPLE, SECRETS)
    text = printed(settings)
    assert "s3cr3t" not in text
    assert "****" not in text
    lines = text.splitlines()
    assert any("local-llama" in line and "—" in line for line in lines)
    assert any("gpt-4o-mini" in line and " set " in line for line in lines)


def small(name: str, **pool: object) -> Settings:
    return Settings.parse(
        {
            "models": [{"name": name, "endpoint": "https://one.test/v1"}],
            "pools": [{"name": "auto", "models": [name], **pool}],
        }
    )


def test_long_names_fold_and_are_not_cut() -> None:
    """Every character of a name of 150 characters is printed, at 80 columns and at 40."""
    name = "".join(chr(ord("a") + i % 26) for i in range(150))
    for width in (80, 40):
        text = printed(small(name), width)
        assert "…" not in text
        assert text.count("z") >= 3 * (150 // 26)  # as model, as upstream model, in its pool
        assert max(map(len, text.split("warnings")[0].splitlines()[:-1])) <= width


def test_names_are_no_markup() -> None:
    """A name that looks like rich's markup is printed as it is."""
    text = printed(small("[red]:tada:[/red]"))
    assert "[red]:tada:[/red]" in text


def test_warnings_come_last_with_their_paths() -> None:
    """What is allowed but probably not meant follows the tables."""
    text = printed(small("one", objective={"cost": 1}, constraints={"min_accuracy": 0.5}))
    tail = text[text.index("3 warnings") :]
    assert "pools[0].models: has one model" in tail
    assert "pools[0].models[0]: 'one' has no price" in tail
    assert "pools[0].constraints.min_accuracy: nothing can test" in tail


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ({"kind": "fixed", "model": "one"}, "fixed, model one, half-life"),
        ({"kind": "uniform", "half_life_requests": None, "seed": 7}, "uniform, never forgets, seed 7"),
        ({"kind": "thompson_context_free"}, "thompson_context_free, floor 0.01, scale 0.4, half-life"),
        ({"kind": "weighted", "weights": {"one": 90}}, "weighted, one 90, half-life"),
        ({"kind": "squarecb"}, "squarecb, gamma scale 10, exponent 0.5, floor 0.01"),
        ({"kind": "linucb", "alpha": 2.0}, "linucb, alpha 2, floor 0.01, slope precision 75, half-life"),
    ],
)
def test_a_policy_shows_only_what_it_uses(policy: dict[str, object], text: str) -> None:
    """A policy is printed with the settings of its kind."""
    assert text in printed(small("one", policy=policy))


def test_problems_are_printed_with_path_line_and_hint() -> None:
    """Each problem keeps one line of its own, however narrow the console, so that a pipe can be searched."""
    out = io.StringIO()
    long = "must be one of " + ", ".join("abcdefgh" for _ in range(20))
    error = ConfigError(
        (Problem("pools[0].modles", "unknown key", "did you mean models?", 12), Problem("", long)), "c.yaml"
    )
    render_problems(error, Console(file=out, width=40))
    assert out.getvalue().splitlines() == [
        "2 problems in c.yaml",
        "  pools[0].modles (line 12): unknown key",
        "    did you mean models?",
        f"  the file: {long}",
    ]


def test_rich_is_imported_only_when_something_is_printed() -> None:
    """The service does not pay for the tables."""
    code = "import sys, serving.check, serving.settings; sys.exit('rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_tiers_and_tokens_are_shown_without_what_is_secret() -> None:
    """Of a JWK set's URL only that it is set: it may hold a secret."""
    settings = Settings.parse(
        {
            "models": [{"name": "one", "endpoint": "https://one.test/v1"}],
            "pools": [{"name": "cheap", "models": ["one"]}],
            "auth": {
                "keys": [{"key": "sk-S3cr3t-99", "user": "ada", "allow": ["auto"]}],
                "jwt": {
                    "algorithms": ["RS256"],
                    "jwks_url": "https://x.test/k?token=S3cr3t",
                    "issuer": "https://x.test",
                },
            },
            "tiers": [{"name": "free", "pools": {"auto": "cheap"}, "allow": [], "default": True}],
        }
    )
    text = printed(settings)
    assert "auto is cheap, nothing else, priority 0, the default" in text
    assert "ada, only auto, key set" in text
    assert "RS256, jwks_url set, issuer https://x.test, user from sub" in text
    assert "S3cr3t" not in text + repr(settings.auth.keys if settings.auth else "")


def test_a_store_on_a_server_is_shown_without_its_password() -> None:
    settings = Settings.parse(
        {
            "models": [{"name": "one", "endpoint": "https://one.test/v1"}],
            "pools": [{"name": "auto", "models": ["one"]}],
            "store": {"url": "valkeys://ada:S3cr3t%40@store.test:6380/2?password=S3cr3t", "name": "blue"},
        }
    )
    text = printed(settings)
    assert "valkeys://store.test:6380/2, as blue, up to 10,000 events waiting" in " ".join(text.split())
    assert "S3cr3t" not in text
