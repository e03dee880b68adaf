"""A real browser for tests of pages: Debian's chromium, driven by Playwright, whose own browsers are not fetched."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP, PHONE = (1280, 900, "light"), (390, 844, "dark")
"""Width and height in pixels, and the colours that are asked for."""


@contextmanager
def chromium():
    """A started browser; the test is skipped where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api",
        reason="playwright is not installed: pip install playwright (its browsers are not needed)",
    )
    if not Path(CHROMIUM).is_file():
        pytest.skip("chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@contextmanager
def opened_page(browser, screen, allowed, **settings):
    """A page; at its end, that nothing went wrong in it and that it asked for nothing but the addresses allowed.

    Args:
        browser: from `chromium`.
        screen: DESKTOP or PHONE.
        allowed: a tuple of what an address may start with.
        settings: of the browser's context.
    """
    width, height, colours = screen
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=colours, **settings
    )
    page, wrong = context.new_page(), []
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda each: None if each.url.startswith(allowed) else wrong.append(each.url))
    yield page
    context.close()
    assert not wrong, wrong
