"""The page in a real browser."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.report.chromium import CHROMIUM, Browser
from tests.report.conftest import report

if TYPE_CHECKING:
    from pathlib import Path

    from tests.report.conftest import Chain

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

# Elements that reach beyond the right edge, other than in a part that scrolls by itself.
OVERFLOW = """[...document.querySelectorAll("body *")].filter(
    each => each.getBoundingClientRect().right > innerWidth + 1 && !each.closest(".scroll, pre, svg, .skip")
).map(each => each.outerHTML.slice(0, 80))"""
# Text that is drawn smaller than nine pixels.
TINY = """[...document.querySelectorAll("svg text")].filter(
    each => parseFloat(getComputedStyle(each).fontSize) * each.getScreenCTM().a < 9
).length"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def page(shared_chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(shared_chain.runs, output=tmp_path_factory.mktemp("page") / "report.html")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440], ids=["phone", "desktop"])
def test_page_loads_without_a_complaint_and_fits(browser: Browser, page: Path, width: int, dark: bool) -> None:
    visit = browser.visit(page.as_uri(), width=width, dark=dark)
    assert visit.console == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [page.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.evaluate(OVERFLOW) == []
    assert browser.evaluate(TINY) == 0
    assert browser.evaluate("document.querySelectorAll('figure svg').length") == 12
    assert browser.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
    shot = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("L"))
    assert (np.median(shot) < 64) == dark


def test_the_script_shows_the_copy_button(browser: Browser, page: Path) -> None:
    browser.visit(page.as_uri(), width=1440, dark=False)
    assert browser.evaluate("document.querySelector('button[data-copy]').hidden") is False  # so its hash is right


def test_everything_is_reached_by_the_keyboard(browser: Browser, page: Path) -> None:
    browser.visit(page.as_uri(), width=390, dark=False)
    browser.send("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert browser.evaluate("document.activeElement.className") == "skip"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    clipped = """[...document.querySelectorAll("details")].forEach(each => each.open = true),
        [...document.querySelectorAll("*")].filter(each => each.scrollWidth > each.clientWidth + 1
            && ["auto", "scroll"].includes(getComputedStyle(each).overflowX) && each.tabIndex < 0).length"""
    assert browser.evaluate(clipped) == 0


def test_policy_stops_whatever_is_smuggled_in(browser: Browser, shared_chain: Chain, tmp_path: Path) -> None:
    page = report([shared_chain.full], output=tmp_path / "report.html")
    smuggled = '<img src="file:///etc/hostname" alt=""><script>document.title = "taken over"</script></main>'
    page.write_text(page.read_text().replace("</main>", smuggled))
    visit = browser.visit(page.as_uri(), width=1440, dark=False)
    assert browser.evaluate("document.title") != "taken over"
    assert sum("Content Security Policy" in message for message in visit.console) >= 2
