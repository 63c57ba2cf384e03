"""Pictures of the dashboard over simulated traffic: `make screenshots`, or `python -m benchmarks.screenshots FOLDER`.

Light and dark, wide and narrow; with nothing yet, with traffic, with a decision open, and without the service. Starts
the upstreams and the service as processes of their own, and Debian's chromium.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import yaml
from playwright.async_api import Browser, Page, async_playwright

from evaluation.child_process import ChildProcess
from evaluation.demo_pool import simulated_pool
from evaluation.traffic import Traffic

__all__ = ["main"]

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
HEIGHTS = {1280: 920, 400: 860}
SCENES = ((1280, "light"), (1280, "dark"), (400, "light"), (400, "dark"))


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("screenshots"))
    parser.add_argument("--seconds", type=float, default=90.0, help="of traffic before the pictures with traffic")
    parser.add_argument("--rate", type=float, default=25.0, help="calls a second")
    parser.add_argument("--picture", type=Path, help="where to write the README's picture")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(_pictures(given.folder, given.seconds, given.rate, given.picture))


async def _pictures(folder: Path, seconds: float, rate: float, picture: Path | None) -> None:
    stop = asyncio.Event()
    with tempfile.TemporaryDirectory(prefix="pointsman-pictures-") as place, ExitStack() as children:
        config, data = Path(place, "pointsman.yaml"), str(Path(place, "data"))
        upstreams = ["upstreams", "--demo", "--port", "0", "--seed", "7", "--write-config", str(config)]
        await children.enter_context(ChildProcess("upstreams", upstreams, Path(place, "upstreams.log"))).url(stop)
        _adapt(config)
        serve = ["serve", "-c", str(config), "--port", "0", "--data-dir", data]
        service = ChildProcess("service", serve, Path(place, "service.log"))
        url = await children.enter_context(service).url(stop)
        assert url is not None  # noqa: S101 - nobody sets `stop` before
        async with _chromium() as browser:
            await _each(browser, url, folder, "empty")
            traffic = Traffic(url, simulated_pool().sample, lambda _: None, rng=np.random.default_rng(7), rate=rate)
            calls = asyncio.create_task(traffic.run(stop))
            await asyncio.sleep(seconds)
            await _each(browser, url, folder, "traffic")
            if picture is not None:
                page = await _page(browser, url, 1280, "light")
                await page.screenshot(path=picture)
                await page.context.close()
            await _each(browser, url, folder, "why")
            pages = [(name, await _page(browser, url, *scene)) for scene, name in _names("disconnected")]
            stop.set()
            await calls
            service.__exit__(None, None, None)
            for name, page in pages:
                await page.wait_for_selector('#link[data-state="lost"]')
                await page.screenshot(path=folder / f"{name}.png")


def _adapt(config: Path) -> None:
    """A limit that a busy machine keeps, and budgets to be seen."""
    settings = yaml.safe_load(config.read_text())
    settings["pools"][0]["constraints"]["p95_latency_s"] = 0.6
    settings["pools"][0]["budget"] = {"usd_per_request": 0.004}
    settings["budgets"] = [{"scope": "all", "usd": 40, "per": "day"}, {"scope": "team", "tokens": 5_000_000}]
    config.write_text(yaml.safe_dump(settings))


def _names(what: str) -> list[tuple[tuple[int, str], str]]:
    return [((width, scheme), f"{what}-{width}-{scheme}") for width, scheme in SCENES]


async def _each(browser: Browser, url: str, folder: Path, what: str) -> None:
    """The whole page in every scene."""
    for scene, name in _names(what):
        page = await _page(browser, url, *scene)
        if what == "why":
            await page.locator("#follow").uncheck()
            await page.locator("#decisions .opener").nth(40).click()
            await page.wait_for_selector("#why-detail .why")
            await page.locator("#decisions-title").evaluate("e => scrollBy(0, e.getBoundingClientRect().top - 70)")
            place = "e => (e.closest('.scroll').scrollTop = e.closest('tr').offsetTop - 36)"
            await page.locator("#decisions .opener[aria-expanded=true]").evaluate(place)
        await page.screenshot(path=folder / f"{name}.png", full_page=what != "why")
        await page.context.close()


async def _page(browser: Browser, url: str, width: int, scheme: str) -> Page:
    dark = scheme == "dark"
    context = await browser.new_context(
        viewport={"width": width, "height": HEIGHTS[width]}, color_scheme="dark" if dark else "light"
    )
    page = await context.new_page()
    await page.goto(f"{url}/dashboard")
    await page.wait_for_selector('#link[data-state="live"]')
    await page.wait_for_selector("#matrix tbody")
    await page.wait_for_timeout(1500)  # the list of decisions, too
    return page


@asynccontextmanager
async def _chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            await browser.close()


if __name__ == "__main__":
    main()
