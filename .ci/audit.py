"""Asks an advisory service about every version in constraints.txt, by pip-audit: what `make audit` and CI run.

A known vulnerability fails it; a service that cannot be reached is said and fails nothing, since that says nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import urllib.request

__all__ = ["main"]

_SERVICE = "https://api.osv.dev/v1/query"
_TIMEOUT_S = 15


def main() -> int:
    """The exit code: 0 nothing known, or nobody to ask; else pip-audit's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("requirements", nargs="?", default="constraints.txt", help="a file of pinned versions")
    parser.add_argument("--url", default=_SERVICE, help="where OSV's protocol is spoken")
    given = parser.parse_args()
    if why := _unreachable(given.url):
        print(f"NOT AUDITED: the advisory service at {given.url} cannot be asked ({why})", flush=True)
        return 0
    command = [sys.executable, "-m", "pip_audit", "--requirement", given.requirements, "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", "osv", "--osv-url", given.url, "--timeout", str(_TIMEOUT_S)]
    return subprocess.run([*command, "--progress-spinner", "off"], check=False).returncode


def _unreachable(url: str) -> str | None:
    """Why the service does not answer a question of the kind that follows; None: it does."""
    question = json.dumps({"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "1.0"}).encode()
    request = urllib.request.Request(url, question, {"Content-Type": "application/json"})  # noqa: S310 - the operator's
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310 - likewise
            json.load(response)
    except (OSError, ValueError) as error:  # also urllib's own, and answers that are no JSON
        return type(error).__name__
    return None


if __name__ == "__main__":
    sys.exit(main())
