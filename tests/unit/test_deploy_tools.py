"""What stands in deploy/ as the tools of its worlds see it, where they are installed: `pip install '.[deploy]'`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = ("configmap", "poddisruptionbudget", "secret.example", "service", "statefulset")
OLDEST, EXTRA = "1.29", "pip install '.[deploy]'"  # ReadWriteOncePod is stable since 1.29


def passes(tool, *arguments, cwd=DEPLOY):
    """The tool, or a skipped test where it is not; in .venv it may be without .venv being the shell's."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = shutil.which(tool, path=places)
    if found is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([found, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_hadolint_finds_nothing_in_the_dockerfile():
    assert passes("hadolint", "docker/Dockerfile") == ""


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_manifests_follow_the_schemas_of_kubernetes(name):
    """Strictly: no key that is not known. The ServiceMonitor has a schema of its own, which is not there."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason=EXTRA)
    manifest = yaml.safe_load((DEPLOY / "kubernetes" / f"{name}.yaml").read_text())
    for version in (OLDEST, kubernetes_validate.latest_version()):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_compose_follows_its_specification():
    compose_spec = pytest.importorskip("compose_spec", reason=EXTRA)
    parsed = compose_spec.PyCompose.from_yaml((DEPLOY / "docker" / "compose.yaml").read_text())
    assert parsed.get_service("pointsman") is not None


def test_systemd_takes_the_unit(tmp_path):
    """With another program in the place of ours, which is not installed here."""
    text = (DEPLOY / "systemd" / "pointsman.service").read_text()
    path = tmp_path / "pointsman.service"
    path.write_text(text.replace("/opt/pointsman/bin/pointsman", "/bin/true"))
    said = passes("systemd-analyze", "verify", str(path))
    assert "pointsman.service" not in said
    passes("systemd-analyze", "security", "--offline=true", "--threshold=20", str(path))  # 2.0 of 10: "OK"


def test_prometheus_takes_its_configuration_as_compose_mounts_it(tmp_path):
    shutil.copy(DEPLOY / "docker" / "prometheus.yml", tmp_path)
    shutil.copy(DEPLOY / "prometheus" / "pointsman.rules.yml", tmp_path)
    assert "SUCCESS" in passes("promtool", "check", "config", "prometheus.yml", cwd=tmp_path)
