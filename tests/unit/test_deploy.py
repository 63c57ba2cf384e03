"""What stands in deploy/ agrees with the program: its ports, paths, options, variables, routes, signals and times."""

from __future__ import annotations

import re
import shlex
import signal
import tomllib
from configparser import RawConfigParser
from pathlib import Path

import click
import pytest
import typer
import yaml

from serving.cli import main
from serving.handlers import Handlers
from serving.settings import ServerSettings, load_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKER, KUBERNETES = DEPLOY / "docker", DEPLOY / "kubernetes"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
PORT = ServerSettings().port
DATA_DIR, CONFIG = "/var/lib/pointsman", "/etc/pointsman/pointsman.yaml"
LAST_STEPS_S = 10  # what the README asks for beside drain_s and shutdown_grace_s: a snapshot, the log, the last spans
VARIABLE = re.compile(r"\$\{(\w+)")


def manifest(name):
    return yaml.safe_load((KUBERNETES / f"{name}.yaml").read_text())


def of_dockerfile(word):
    """What the last instruction of this name says."""
    return re.findall(rf"^{word} (.+)$", re.sub(r"\\\n\s*", "", DOCKERFILE), re.MULTILINE)[-1]


def parsed_serve(words):
    """The arguments of `pointsman serve` as its own parser reads them."""
    group = typer.main.get_command(main)
    assert words[0] == "serve"
    command = group.get_command(click.Context(group), "serve")
    return command.make_context("serve", [*words[1:]], resilient_parsing=False).params


def in_force(text, tmp_path, **server):
    """Settings of a configuration, every variable it names being set."""
    path = tmp_path / "pointsman.yaml"
    path.write_text(text)
    return load_settings(path, {name: f"a-key-of-{name}" for name in VARIABLE.findall(text)}, server)


@pytest.fixture(scope="module")
def routes():
    return {route.path for route in Handlers.routes(Handlers.__new__(Handlers)) if route.method == "GET"}


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]


@pytest.fixture(scope="module")
def unit():
    """The unit's last value of each setting, by section."""
    parser = RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read(DEPLOY / "systemd" / "pointsman.service")
    return parser


@pytest.fixture(scope="module")
def pod():
    return manifest("statefulset")["spec"]["template"]["spec"]


def test_the_readme_names_every_file():
    readme = (ROOT / "README.md").read_text()
    files = sorted(str(path.relative_to(ROOT)) for path in DEPLOY.rglob("*") if path.is_file())
    assert len(files) > 15
    assert [name for name in files if name not in readme] == []


def test_every_package_and_every_file_of_one_is_declared():
    """pyproject.toml lists them by hand; what it leaves out is in the checkout and not in the wheel."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in ("bandit", "evaluation", "serving")
        for path in (ROOT / name).rglob("__init__.py")
    }
    assert sorted(setuptools["packages"]) == sorted(found)


# --- the image


def test_the_image_starts_what_the_program_takes():
    params = parsed_serve(yaml.safe_load(of_dockerfile("CMD")))
    assert yaml.safe_load(of_dockerfile("ENTRYPOINT")) == ["pointsman"]
    assert (params["host"], params["port"]) == ("0.0.0.0", PORT)  # noqa: S104
    assert (str(params["config"]), str(params["data_dir"])) == (CONFIG, DATA_DIR)
    assert of_dockerfile("EXPOSE") == str(PORT)
    assert of_dockerfile("WORKDIR") == of_dockerfile("VOLUME") == DATA_DIR


def test_the_image_is_asked_as_the_service_answers(routes):
    (path,) = re.findall(rf"http://127\.0\.0\.1:{PORT}(/\w+)", of_dockerfile("HEALTHCHECK"))
    assert path == "/healthz"
    assert path in routes
    assert signal.Signals[of_dockerfile("STOPSIGNAL")] is signal.SIGTERM
    assert int(of_dockerfile("USER").split(":")[0]) > 0


def test_the_image_has_extras_and_a_python_that_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.search(r"^ARG EXTRAS=(\S+)$", DOCKERFILE, re.MULTILINE)[1]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    version = re.search(r"^ARG PYTHON=3\.(\d+)-", DOCKERFILE, re.MULTILINE)[1]
    assert int(version) >= int(project["requires-python"].removeprefix(">=3."))


def test_the_build_sees_what_it_copies_and_nothing_else():
    copied = {name for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().split("\n")
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


# --- compose


def test_what_compose_mounts_is_there(compose):
    mounts = [volume.split(":") for service in compose.values() for volume in service["volumes"]]
    files = [source for source, *_ in mounts if source.startswith(".")]
    assert len(files) > 4
    assert [name for name in files if not (DOCKER / name).exists()] == []
    ours = {target: source for source, target, *_ in (volume.split(":") for volume in compose["pointsman"]["volumes"])}
    assert (DOCKER / ours[str(Path(CONFIG).parent)] / Path(CONFIG).name).is_file()
    assert DATA_DIR in ours
    build = compose["pointsman"]["build"]
    assert (DOCKER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()


def test_compose_serves_a_configuration_that_holds(compose, tmp_path):
    text = (DOCKER / "config" / "pointsman.yaml").read_text()
    settings = in_force(text, tmp_path, host="0.0.0.0")  # noqa: S104
    service = compose["pointsman"]
    assert set(VARIABLE.findall(text)) == set(service["environment"])
    assert settings.server.metrics_public
    assert float(service["stop_grace_period"].removesuffix("s")) > longest_end_s(settings.server)
    assert service["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]


def test_prometheus_and_grafana_find_what_they_look_for(compose, routes):
    scraped = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"pointsman:{PORT}"]}]
    assert job.get("metrics_path", "/metrics") in routes
    assert scraped["rule_files"] == ["pointsman.rules.yml"]  # beside it, as mounted
    (source,) = yaml.safe_load((DOCKER / "grafana" / "datasource.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((DOCKER / "grafana" / "dashboards.yml").read_text())["providers"]
    targets = [volume.split(":")[1] for volume in compose["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/pointsman.json" in targets


# --- systemd


def test_the_unit_starts_what_the_program_takes(unit):
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    params = parsed_serve(words)
    assert program.endswith("/bin/pointsman")
    assert (str(params["config"]), str(params["data_dir"])) == (CONFIG, DATA_DIR)
    assert f"/var/lib/{unit['Service']['StateDirectory']}" == unit["Service"]["WorkingDirectory"] == DATA_DIR


def test_the_unit_sends_the_signals_that_are_heard(unit):
    heard = re.findall(r"signal\.(SIG[A-Z]+)", (ROOT / "serving" / "app.py").read_text())
    assert unit["Service"]["KillSignal"] in heard
    assert unit["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert "SIGHUP" in heard
    assert float(unit["Service"]["TimeoutStopSec"]) > longest_end_s(ServerSettings())
    assert unit["Service"]["RestartPreventExitStatus"] == "2"  # what `serve` ends with where the configuration is bad


# --- Kubernetes


def test_the_pod_serves_a_configuration_that_holds(pod, tmp_path):
    (text,) = manifest("configmap")["data"].values()
    settings = in_force(text, tmp_path, host="0.0.0.0")  # noqa: S104
    assert settings.server.metrics_public
    assert pod["terminationGracePeriodSeconds"] > longest_end_s(settings.server)
    assert settings.server.drain_s > pod["containers"][0]["readinessProbe"]["periodSeconds"]
    secret = manifest("secret.example")
    assert set(VARIABLE.findall(text)) == set(secret["stringData"])
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
    assert pod["enableServiceLinks"] is False  # the Service's POINTSMAN_PORT is no port


def test_the_pod_is_asked_what_is_served(pod, routes):
    (container,) = pod["containers"]
    asked = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: get["path"] for name, get in asked.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert {get["path"] for get in asked.values()} <= routes
    assert {get["port"] for get in asked.values()} == {"http"}
    assert container["ports"] == [{"name": "http", "containerPort": PORT}]


def test_the_pod_has_the_paths_and_the_user_of_the_image(pod):
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    claims = [claim["metadata"]["name"] for claim in manifest("statefulset")["spec"]["volumeClaimTemplates"]]
    assert mounts[DATA_DIR] in claims
    assert mounts[str(Path(CONFIG).parent)] == "config"
    assert Path(CONFIG).name in manifest("configmap")["data"]
    context = pod["securityContext"]
    user, group = map(int, of_dockerfile("USER").split(":"))
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (user, group, group)
    assert f"--uid {user}" in DOCKERFILE
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_the_manifests_select_the_one_pod():
    """Two would share neither what they learn nor the volume."""
    spec = manifest("statefulset")["spec"]
    labels = spec["template"]["metadata"]["labels"]
    service, budget, monitor = (manifest(name) for name in ("service", "poddisruptionbudget", "servicemonitor"))
    assert spec["replicas"] == 1
    assert spec["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert monitor["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert spec["serviceName"] == service["metadata"]["name"]
    for name in manifest("kustomization")["resources"]:
        assert (KUBERNETES / name).is_file()


def longest_end_s(server):
    return server.drain_s + server.shutdown_grace_s + LAST_STEPS_S
