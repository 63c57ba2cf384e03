"""Debian's Chromium for tests of pages: headless, and without a word to anybody but the service that is tested."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

EXECUTABLE = "/usr/bin/chromium"
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
PATIENCE_MS = 30_000  # another process has to do something first, on a machine that may be busy


@contextlib.contextmanager
def launched():
    """A browser. While it is there no test may use asyncio in this thread: it runs a loop of its own."""
    if not Path(EXECUTABLE).exists() and not os.environ.get("CI"):  # there its absence is a failure
        pytest.skip(f"{EXECUTABLE} is not there: apt-get install chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=EXECUTABLE, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


class Opened:
    """A page in a context of its own, and all that went wrong in it: errors, and requests to anywhere else."""

    def __init__(self, browser, url, *, width=1280, scheme="light"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page = self.context.new_page()
        self.url, self.errors, self.elsewhere = url, [], []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._requested)
        self.page.goto(f"{url}/dashboard")

    def _requested(self, request):
        if not request.url.startswith((self.url, "data:")):
            self.elsewhere.append(request.url)

    def live(self):
        """Once it is connected."""
        expect(self.page.locator("#link")).to_have_attribute("data-state", "live")
        return self.page

    def figure(self, name, value):
        """Once a figure at the top is exactly `value`."""
        expect(self.page.locator(f"#tiles [data-figure={name}]")).to_have_attribute("value", value)

    def problems(self, *rules):
        """What WCAG 2 at level AA, or only these rules, have against the page as it is, by axe-core: rule and place."""
        from axe_playwright_python.sync_playwright import Axe

        options = {"runOnly": list(rules or ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"))}
        found = Axe().run(self.page, options=options).response["violations"]
        return [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found]
