"""The page in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.report.conftest import report

if TYPE_CHECKING:
    from pathlib import Path

    from tests.report.conftest import Chain

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
]


def browse(url: str, profile: Path) -> tuple[str, str]:
    """The document after its scripts ran, and what the page wrote to the console."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_page_loads_without_a_complaint(shared_chain: Chain, tmp_path: Path) -> None:
    page = report(shared_chain.runs, output=tmp_path / "report.html")
    document, console = browse(page.as_uri(), tmp_path / "profile")
    assert console == ""
    assert '<button type="button" data-copy="command-lines">' in document  # the script ran, so its hash is right


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_policy_stops_whatever_is_smuggled_in(shared_chain: Chain, tmp_path: Path) -> None:
    page = report([shared_chain.full], output=tmp_path / "report.html")
    smuggled = '<img src="file:///etc/hostname" alt=""><script>document.title = "taken over"</script></main>'
    page.write_text(page.read_text().replace("</main>", smuggled))
    document, console = browse(page.as_uri(), tmp_path / "profile")
    assert "<title>taken over</title>" not in document
    assert console.count("Content Security Policy") >= 2
