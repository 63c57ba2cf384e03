"""What `serve --workers N` checks and takes before it starts anybody: a store in common, one port, room for sockets."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serving.settings import Settings
from serving.workers.start import _folder, _port
from tests.conftest import ROOT
from tests.unit.small_settings import good


def settings(port):
    return Settings.parse(good() | {"server": {"port": port}})


def listen(port, *, shared):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def test_a_free_port_is_held_for_workers_alone():
    """Two of them can listen on it, and get all connections; who does not want to share it cannot."""
    with _port(settings(0)) as port, listen(port, shared=True) as one, listen(port, shared=True) as other:
        with pytest.raises(OSError, match="in use"):
            listen(port, shared=False)
        accepted = 0
        one.setblocking(False)
        other.setblocking(False)
        callers = [socket.create_connection(("127.0.0.1", port)) for _ in range(32)]
        for listener in (one, other):
            while True:
                try:
                    listener.accept()[0].close()
                except BlockingIOError:
                    break
                accepted += 1
        for caller in callers:
            caller.close()
        assert accepted == len(callers)


@pytest.mark.parametrize("shared", [False, True])
def test_the_port_of_a_service_that_runs_is_refused(shared):
    with listen(0, shared=shared) as running:
        port = running.getsockname()[1]
        with pytest.raises(OSError, match="in use"), _port(settings(port)):
            pass


def test_sockets_are_in_the_data_folder_unless_its_path_is_too_long(tmp_path):
    with _folder(Path("/srv/data"), 64) as folder:
        assert folder == Path("/srv/data")
    with _folder(tmp_path / ("a" * 100), 64) as folder:
        assert len(os.fsencode(folder)) < 60
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def test_several_workers_without_a_store_in_common_are_refused(tmp_path):
    path = tmp_path / "pointsman.yaml"
    path.write_text(yaml.safe_dump(good()))
    command = [sys.executable, "-m", "serving", "serve", "-c", str(path), "--workers", "2"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "several workers share their store: set store.url" in " ".join(ended.stderr.split())
    assert not (tmp_path / "pointsman-data").exists()
