"""The wheel, built from what the Dockerfile copies, serves where no checkout is: nothing that is needed is left out."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import aiohttp
import pytest
import yaml
from conftest import first_line

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
TIMEOUT_S = 300
BUILT = ("*.c", "*.so", "*.pyd")  # of the compiled modules: left where they were built
SOURCES = (".pyx", ".pxd")  # of them: in the sdist, not in a wheel


def run(*command, cwd, env=None, code=0):
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built as in the image, from its COPY lines alone."""
    folder = tmp_path_factory.mktemp("build")
    for sources, _ in re.findall(r"^COPY (?!--)(.+) (\S+)$", DOCKERFILE, re.MULTILINE):
        for name in sources.split():
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", *BUILT))
            else:
                shutil.copy(ROOT / name, folder)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder / "dist", ".", cwd=folder)
    (made,) = (folder / "dist").glob("pointsman-*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The command `pointsman` of a venv that has this wheel; what it depends on is this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, wheel, cwd=folder)
    # Not as a .pth file, which would bring the editable install of the checkout with it.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"PYTHONPATH": f"{packages}{os.pathsep}{sysconfig.get_path('purelib')}", "PYTHONDONTWRITEBYTECODE": "1"}
    python = folder / "venv" / "bin" / "python"
    found = run(python, "-c", "import serving; print(serving.__file__)", cwd=folder, env=env)
    assert Path(found.strip()).is_relative_to(packages)
    return [str(python), str(packages / "bin" / "pointsman")], env, folder


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    files = [
        path.relative_to(ROOT)
        for package in ("bandit", "evaluation", "serving")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not any(map(path.match, BUILT))
    ]
    there = {str(path) for path in files if path.suffix not in SOURCES}
    compiled = {
        str(path.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))) for path in files if path.suffix == ".pyx"
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {"bandit/py.typed", "serving/dashboard/page/dashboard.html", "serving/api/document.py"} <= there
    assert len(compiled) > 2
    assert held == there | compiled


def test_the_command_tells_what_it_does(installed):
    command, env, folder = installed
    said = run(*command, "--help", cwd=folder, env=env)
    assert all(word in said for word in ("serve", "check", "replay", "demo"))


def test_the_example_is_checked_by_it(installed):
    command, env, folder = installed
    example = (ROOT / "deploy" / "pointsman.example.yaml").read_text()
    (folder / "pointsman.yaml").write_text(example)
    names = set(re.findall(r"\$\{(\w+)\}", re.sub(r"#.*", "", example)))
    keys = {name: f"a-key-of-{name}" for name in names}
    said = run(*command, "check", "-c", "pointsman.yaml", cwd=folder, env=env | keys)
    assert "local-llama" in said
    assert not any(value in said for value in keys.values())


@contextlib.contextmanager
def served(installed, arguments):
    """The installed command while it serves, and where."""
    command, env, folder = installed
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen([*command, *arguments], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=log)
    try:
        line = first_line(process)
        assert " at http://" in line, (folder / "service.log").read_text()
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


async def test_it_serves_with_the_dockerfiles_arguments(installed, http):
    """The image's own command, on a free port and in a folder of the test's; it ends with 0."""
    _, _, folder = installed
    config = {
        "server": {"metrics_public": True},
        "auth": {"admin_key": "the-admin-key", "keys": [{"key": "the-callers-key", "user": "app"}]},
        "models": [{"name": "one", "endpoint": "http://127.0.0.1:9/v1"}],
        "pools": [{"name": "auto", "models": ["one"]}],
    }
    (folder / "served.yaml").write_text(yaml.safe_dump(config))
    words = yaml.safe_load(re.search(r"^CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)[1])
    ours = {"-c": "served.yaml", "--host": "127.0.0.1", "--port": "0", "--data-dir": "data"}
    words = [ours.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    with served(installed, words) as (process, url):
        for path in ("/healthz", "/readyz", "/metrics"):
            assert await text_of(http, url + path)
        files = re.findall(r'(?:src|href)="(/dashboard/[^"]+)"', await text_of(http, f"{url}/dashboard"))
        assert len(files) > 2
        for path in files:
            assert await text_of(http, url + path)
        assert "/v1/chat/completions" in await text_of(http, f"{url}/openapi.json")
        process.terminate()
        assert process.wait(30) == 0
    assert (folder / "data" / "log.duckdb").exists()


async def text_of(http: aiohttp.ClientSession, url: str) -> str:
    async with http.get(url) as response:
        text = await response.text()
        assert response.status == 200, (url, text)
        return text
