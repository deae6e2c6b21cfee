"""Headless Chromium for tests: a page → its document after the scripts ran, its console, a screenshot."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "Chromium is not installed; on Debian: apt-get install chromium"
# figure → its pictures: width, height, shapes, shapes that are seen, texts
MEASURE = """
const result = Object.fromEntries([...document.querySelectorAll("figure[data-plot]")].map((figure) => [
  figure.dataset.plot,
  [...figure.querySelectorAll("svg")].map((svg) => {
    const shapes = [...svg.querySelectorAll("rect,circle,path,line,polygon")];
    const seen = shapes.filter((shape) => {
      const box = shape.getBoundingClientRect(), style = getComputedStyle(shape);
      const painted = style.fill !== "none" || style.stroke !== "none";
      return painted && Math.max(box.width, box.height) > 0;
    });
    const texts = [...svg.querySelectorAll("text")].filter((text) => text.getBoundingClientRect().width > 0);
    const frame = svg.getBoundingClientRect();
    return [frame.width, frame.height, shapes.length, seen.length, texts.length];
  }),
]))
"""


def run(page: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """Loads a page; returns what the browser printed and the lines of its console."""
    command = [
        str(BROWSER),
        "--headless",
        # the sandbox needs rights that containers lack; the page is our own
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--virtual-time-budget=2000",
        "--window-size=1200,1600",
        f"--user-data-dir={profile}",
        *options,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def probe(page: Path, profile: Path, script: str, *options: str) -> tuple[Any, list[str]]:
    """Runs JavaScript, which may await, at the end of a copy of the page; the value of its `result` and the console."""
    copy = profile.with_name(f"{profile.name}-{page.parent.name}.html")
    # within a function, so that its names do not meet the page's own
    answer = f"<script>(async () => {{{script};"
    answer += "document.body.insertAdjacentHTML('beforeend','<pre id=answer></pre>');"
    answer += "document.getElementById('answer').textContent=JSON.stringify(result);})();</script></body>"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", answer), encoding="utf-8")
    document, console = run(copy, profile, "--dump-dom", *options)
    found = re.search(r'<pre id="answer">(.*?)</pre>', document, re.DOTALL)
    assert found, f"the script did not end: {console}"
    return json.loads(unescape(found[1])), console


def assert_drawn(figures, expected):
    assert set(figures) == expected
    for name, pictures in figures.items():
        assert pictures, name
        for width, height, num_shapes, num_seen, num_texts in pictures:
            assert width > 150, name
            assert height > 100, name
            assert num_seen == num_shapes > 3, name
            assert (num_texts > 3) is (name != "maps"), name
