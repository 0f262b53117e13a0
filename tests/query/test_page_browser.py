"""The search page in a real browser: Debian's Chromium, driven by selenium."""

from __future__ import annotations

import hashlib
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from query.query_role import run_query
from tests.query.conftest import wait_until
from tests.query.writer import Writer, engines_for_test, unit, writer

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=\"document.title='owned'\">/../a b"


@pytest.fixture
def address() -> Iterator[str]:
    made = writer(engines_for_test(), attributes={"colour": "keyword"})
    fill(made)
    stop, ports = threading.Event(), []
    thread = threading.Thread(target=run_query, args=(made.engines, stop, ports.append))
    thread.start()
    wait_until(lambda: bool(ports))
    yield f"http://127.0.0.1:{ports[0]}/"
    stop.set()
    thread.join(10)


def fill(made: Writer) -> None:
    import io

    from PIL import Image

    producer = made.engines.log.producer()
    for number, (name, colour) in enumerate((("teal square", "teal"), ("red square", "red"), (HOSTILE, "blue"))):
        sink = io.BytesIO()
        Image.new("RGB", (400, 300), colour).save(sink, "JPEG")
        digest = hashlib.sha256(sink.getvalue()).digest()
        producer.send(made.record.source_topic, partition=0, key=b"k", value=sink.getvalue(), headers=[("content-type", b"image/jpeg")]).result()
        vector = unit(1, number / 3, 0, 0)
        made.put(name, vector, text=f"a {colour} square", attributes={"colour": colour}, media_type="image/jpeg", media_sha256=digest)
    made.commit()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[object]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # selenium leaves its own sockets to the collector
        opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        yield opened
        opened.quit()


def test_someone_types_a_query_and_sees_hits_thumbnails_and_how_fresh_they_are(address: str, browser) -> None:  # type: ignore[no-untyped-def]
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def hits() -> list[str]:
        return browser.execute_script("return [...document.querySelectorAll('#hits .caption')].map((found) => found.textContent)")

    browser.get(address)
    wait_until(lambda: len(hits()) == 3, 10)
    box = browser.find_element(By.ID, "text")
    assert browser.switch_to.active_element == box
    box.send_keys("id:teal square", Keys.ENTER)
    wait_until(lambda: hits() == ["a red square", "a blue square"], 10)
    assert "searched 3 rows" in browser.find_element(By.ID, "freshness").text
    assert "headwater.things.media/0/1" in browser.find_element(By.CSS_SELECTOR, "#hits .lineage").text
    loaded = "return [...document.querySelectorAll('#hits img')].filter((i) => i.complete && i.naturalWidth > 0).length"
    wait_until(lambda: browser.execute_script(loaded) == 2, 10)

    like = browser.find_elements(By.CSS_SELECTOR, "#hits .like")[1]
    like.send_keys(Keys.ENTER)  # by keyboard, on the hit whose id is hostile
    wait_until(lambda: hits() == ["a red square", "a teal square"], 10)
    assert browser.title == "Headwater search" and box.get_attribute("value") == f"id:{HOSTILE}"

    narrow = browser.find_element(By.ID, "filter")
    narrow.send_keys("colour=teal", Keys.ENTER)
    wait_until(lambda: hits() == ["a teal square"], 10)
    box.clear()
    box.send_keys("a dog", Keys.ENTER)
    wait_until(lambda: "vector or an id" in browser.find_element(By.ID, "message").text, 10)

    for width in (400, 1400):
        browser.set_window_size(width, 900)
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), f"scrolls sideways at {width} px"
    serious = [
        entry["message"] for entry in browser.get_log("browser") if "400 (Bad Request)" not in entry["message"] and "favicon" not in entry["message"]
    ]
    assert serious == []
