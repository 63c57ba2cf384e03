"""The rules of the tree that no other tool checks: who imports whom, how long a file is, what the README must name."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "bandit",
    "serving",
    "serving/access",
    "serving/api",
    "serving/commands",
    "serving/dashboard",
    "serving/providers",
    "serving/telemetry",
    "serving/traffic",
    "serving/workers",
    "evaluation",
    "evaluation/estimators",
)
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).glob("*.py"))
BANDIT = [path for path in SOURCES if path.parent.name == "bandit"]
MAX_LINES = 400
MAX_PUBLIC_NAMES = 24  # `__all__`: the house asks for about six; a tree of errors or a module of values has more
BANDIT_MAY_IMPORT = {"bandit", "numpy", "scipy", "river", "safetensors", "tokenizers"}  # the last two: an extra's
BANDIT_MUST_NOT_USE = {"asyncio", "socket", "http", "urllib", "random", "time", "sqlite3", "subprocess", "threading"}


def imports_of(path: Path) -> Iterator[tuple[str, str]]:
    """(module, what is taken from it) of every import, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_packages_are_those_of_the_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["tool"]["setuptools"]["packages"]) == {package.replace("/", ".") for package in PACKAGES}


@pytest.mark.parametrize("path", BANDIT, ids=short)
def test_bandit_is_a_library_of_arithmetic(path):
    """It imports numpy, scipy, river and the standard library, and nothing there that waits, draws or tells time."""
    for module, _ in imports_of(path):
        top = module.partition(".")[0]
        assert top in BANDIT_MAY_IMPORT or top in sys.stdlib_module_names, f"imports {module}"
        assert top not in BANDIT_MUST_NOT_USE, f"imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_serving_and_evaluation_never_meet_but_in_the_command_line(path):
    package, names = path.relative_to(ROOT).parts[0], {module.partition(".")[0] for module, _ in imports_of(path)}
    if package == "evaluation":
        assert "serving" not in names
    elif path.name != "cli.py" and path.parent.name != "commands":
        assert "evaluation" not in names
    assert "benchmarks" not in names
    assert "tests" not in names


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_a_file_is_short_and_opens_by_saying_what_it_owns(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, "no module docstring"
    if path.name != "__init__.py":
        exported = re.search(r"^__all__ = \[(.*?)\]", text, re.DOTALL | re.MULTILINE)
        assert exported or path.name == "__main__.py", "no __all__"
        assert exported is None or exported[1].count('"') // 2 <= MAX_PUBLIC_NAMES


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_a_function_fits_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 70, f"{node.name} is too long"


@pytest.mark.parametrize("path", BANDIT, ids=short)
def test_randomness_is_an_argument(path):
    """The one generator made inside has a fixed seed: it is part of the features' definition."""
    text = path.read_text()
    assert "default_rng" not in text
    assert "np.random.seed" not in text
    assert re.findall(r"np\.random\.(?:PCG64|Generator|SFC64|MT19937|Philox)\(\)", text) == []


def test_one_place_constructs_what_lives_long():
    """Only `serving.app` makes learners, desks, handlers and such, and `serving.opening` the stores; tests may, too."""
    made = re.compile(
        r"(?<![\w.])(SqliteStore|ValkeyStore|AnalyticalLog|Learner|FeedbackDesk|AdminDesk|BenchmarkDesk|Matrix|LogExport|Schedule|Handlers|Routing|Upstreams"
        r"|Admission)\("
    )
    makers = {
        short(path) for path in SOURCES if path.relative_to(ROOT).parts[0] == "serving" and made.search(_code(path))
    }
    # serving.simulated_log writes a simulated run as a log: no service runs there
    assert makers <= {"serving/app.py", "serving/opening.py", "serving/simulated_log.py"}


def _code(path: Path) -> str:
    """A file without its strings and class lines."""
    tree = ast.parse(path.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return "\n".join(ast.unparse(call.func) + "(" for call in calls)


# --- what a reader of the README must find there


@pytest.fixture(scope="module")
def readme():
    path = ROOT / "README.md"
    return path.read_text() if path.exists() else ""


def missing(readme: str, names: list[str]) -> list[str]:
    return [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", readme)]


def settings_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The path of every setting, as a problem in the configuration names it: `pools[].policy.kind`."""
    for name, field in model.model_fields.items():
        inner, many = _section(field.annotation)
        path = f"{prefix}{name}" + ("[]" if many else "")
        if inner is None:
            yield f"{prefix}{name}"
        else:
            yield from settings_paths(inner, f"{path}.")


def _section(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section in `PoolSettings`, `PoolSettings | None`, `tuple[PoolSettings, ...]`, and whether there are many."""
    if isinstance(annotation, type) and not get_args(annotation):
        return (annotation, False) if issubclass(annotation, BaseModel) else (None, False)
    for argument in get_args(annotation):
        if isinstance(argument, type | types.UnionType) or get_args(argument):
            found, many = _section(argument)
            if found is not None:
                return found, many or get_origin(annotation) is tuple
    return None, False


def test_the_settings_are_found_wherever_they_are():
    from serving.settings import Settings

    paths = list(settings_paths(Settings))
    expected = {"server.port", "auth.keys[].tier", "models[].price.input_per_million", "pools[].budget.usd_per_request"}
    assert expected <= set(paths)
    assert len(paths) == len(set(paths)) > 50


def test_the_readme_names_every_setting(readme):
    from serving.settings import Settings

    assert missing(readme, list(settings_paths(Settings))) == []


def test_the_readme_names_every_route(readme):
    from serving.handlers import Handlers

    routes = Handlers.routes(Handlers.__new__(Handlers))
    paths = {re.sub(r":[^}]+}", "}", route.path) for route in routes}  # without what a name may look like
    assert missing(readme, sorted(paths)) == []


def test_the_readme_names_every_metric(readme):
    """Counters by the name a query uses, with `_total`."""
    from serving.metrics import Metrics

    collected = Metrics().registry.collect()
    names = [metric.name + ("_total" if metric.type == "counter" else "") for metric in collected]
    assert len(names) > 10
    assert missing(readme, names) == []


def test_the_readme_names_every_command(readme):
    from serving.cli import main

    names = [f"pointsman {command.name or command.callback.__name__}" for command in main.registered_commands]
    assert {"pointsman serve", "pointsman check", "pointsman upstreams"} <= set(names)
    assert missing(readme, names) == []


def test_the_readme_names_every_header(readme):
    """Those read and those written."""
    text = "".join(path.read_text() for path in SOURCES if path.parent.name == "serving")
    headers = sorted(set(re.findall(r"x-pointsman-[a-z-]+", text)))
    assert len(headers) >= 8
    assert missing(readme, headers) == []


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md"])
def test_results_that_are_cited_are_there(page):
    cited = set(re.findall(r"results/[a-z0-9_]+\.(?:json|png|svg)", (ROOT / page).read_text()))
    assert cited
    assert not [name for name in cited if not (ROOT / "benchmarks" / name).is_file()]
