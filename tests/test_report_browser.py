"""report.html in headless Chromium: it fits every width, in light and dark, and no text in it becomes a script."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from reports import REPORTS

from exporter.report.render import render_html

WIDTHS = (360, 390, 1280)
# Chromium's own window cannot be narrower than 500 px, so a frame of the wanted width holds the page, and a script
# in the copy (which the page's own policy would stop) tells what it measured.
PROBE = """<script>
  addEventListener("load", () => parent.postMessage({name, measured: {
    scroll: document.documentElement.scrollWidth, inner: innerWidth,
    sideways: [...document.querySelectorAll(".scroll")].filter(one => one.scrollWidth > one.clientWidth + 1).length,
    told: [...document.querySelectorAll(".sideways")].filter(one => one.offsetHeight > 0).length,
    dark: matchMedia("(prefers-color-scheme: dark)").matches, alerts: window.alerts || 0,
    background: getComputedStyle(document.body).backgroundColor}}, "*"));
  window.alert = () => { window.alerts = 1 };
</script>"""
COLLECT = """<script>
  const all = {};
  addEventListener("message", told => {
    all[told.data.name] = told.data.measured;
    document.title = JSON.stringify(all);
  });
</script>"""


def pages(folder: Path) -> Path:
    """One page with every report in a frame of every width, and once as it is, with its own policy."""
    frames = ['<!doctype html><meta name="color-scheme" content="light dark">', COLLECT]
    for kind, make in REPORTS.items():
        page = render_html(make())
        probed = re.sub(r"<meta http-equiv=[^>]*>", lambda _: PROBE, page, count=1)
        assert probed != page
        (folder / f"{kind}.html").write_text(page, encoding="utf-8")
        (folder / f"{kind}-probed.html").write_text(probed, encoding="utf-8")
        frames += [
            f'<iframe name="{kind} {width}" src="{kind}-probed.html" width="{width}" height="900" style="border:0">'
            "</iframe>"
            for width in WIDTHS
        ]
        frames.append(f'<iframe src="{kind}.html"></iframe>')
    (folder / "frames.html").write_text("\n".join(frames), encoding="utf-8")
    return folder / "frames.html"


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_in_a_browser(scheme: str, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr"
    if scheme == "dark":
        flags += " --blink-settings=preferredColorScheme=0"
    flags += f" --user-data-dir={tmp_path / 'profile'} --window-size=1400,1000 --virtual-time-budget=9000 --dump-dom"
    done = subprocess.run(
        [chromium, *flags.split(), pages(tmp_path).as_uri()],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    found = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert found, done.stdout[-2000:]
    told = json.loads(html.unescape(found[1]))
    assert told.keys() == {f"{kind} {width}" for kind in REPORTS for width in WIDTHS}
    for name, measured in told.items():
        kind, width = name.split()[0], int(name.split()[1])
        assert measured["inner"] == width, name
        assert measured["scroll"] <= width, name
        assert measured["told"] >= measured["sideways"] if width < 600 else measured["told"] == 0, name
        assert measured["sideways"] >= 1 or width > 600 or kind == "nothing", name
        assert measured["alerts"] == 0, name
        assert measured["dark"] == (scheme == "dark"), name
        assert measured["background"] == ("rgb(14, 18, 23)" if scheme == "dark" else "rgb(255, 255, 255)"), name
