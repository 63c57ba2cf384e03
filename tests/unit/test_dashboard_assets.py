"""The page's files: that what it names is there, and that the chart library is the one whose hash it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serving.dashboard import assets

FOLDER = Path(assets.__file__).parent / "page"
MAX_LINES = 400
MAX_COLUMNS = 220  # of markup and class lists; code is formatted to 120


def test_the_page_names_the_hash_of_the_chart_library():
    """It is uPlot 1.6.31 as its own package publishes it: a browser takes no other file under that name."""
    page = assets.page(asks_for_key=True).decode()
    named = dict(re.findall(r'"/dashboard/([^"]+)" integrity="([^"]+)"', page))
    assert named == {name: assets.integrity(name) for name in ("uplot.js", "uplot.css")}
    assert b"uPlot (v1.6.31)" in assets.asset("uplot.js").body[:80]
    assert 'data-key="required"' in page


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_a_file_is_short_and_asks_nobody_else(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert max(len(line) for line in text.splitlines()) <= MAX_COLUMNS
    assert [url for url in re.findall(r"https?://[^\s\"'`]+", text) if "w3.org" not in url] == []
    assert re.findall(r"\binnerHTML\s*=|\beval\(|new Function|document\.write|\.cookie", text) == []
    if path.suffix == ".js":
        assert text.startswith("// "), "says first what it is"
        for name in re.findall(r'from "\./([^"]+)"', text):
            assert (FOLDER / name).exists()


@pytest.mark.parametrize("name", ["", "dashboard.html", "../assets.py", "nothing.js", "__init__.py"])
def test_no_other_file_is_given(name):
    assert assets.asset(name) is None
