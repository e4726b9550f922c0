"""Dagster's UI in a real browser, opened with the README's commands: click, wait, look.

The screenshots go into the folder that SCREENSHOTS names, or into the test's own.
"""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import element_to_be_clickable, text_to_be_present_in_element
from selenium.webdriver.support.wait import WebDriverWait

from vidurai_pipeline_tests.support.processes import answer, free_port, running

pytestmark = pytest.mark.browser

PATIENCE = 120
_CALM = 2.0


class Page:
    """A browser on Dagster's UI."""

    def __init__(self, browser: Chrome, url: str, screenshots: Path) -> None:
        self.browser = browser
        self.url = url
        self._screenshots = screenshots
        screenshots.mkdir(parents=True, exist_ok=True)

    def open(self, path: str) -> None:
        self.browser.get(self.url + path)

    def see(self, text: str) -> None:
        """Wait for a text."""
        self._wait(text_to_be_present_in_element((By.TAG_NAME, "body"), text), f"{text!r} is not to be seen")

    def click(self, text: str) -> None:
        place = (By.XPATH, f"//*[self::a or self::button][normalize-space()={text!r}]")
        self._wait(element_to_be_clickable(place), f"{text!r} can't be clicked").click()

    def shoot(self, name: str) -> None:
        """Save a picture of the page, once it has stopped loading."""
        text, calm_since, end = "", time.monotonic(), time.monotonic() + _CALM * 10
        while time.monotonic() < min(calm_since + _CALM, end):
            time.sleep(0.2)
            # Clocks on the page never stop.
            now = re.sub(r"\d", "", self.browser.find_element(By.TAG_NAME, "body").text)
            if now != text:
                text, calm_since = now, time.monotonic()
        self.browser.save_screenshot(str(self._screenshots / f"{name}.png"))

    def _wait(self, condition: Any, otherwise: str) -> Any:
        return WebDriverWait(self.browser, PATIENCE).until(condition, f"{self.browser.current_url}: {otherwise}")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no browser is installed: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "window-size=1600,1100",
        f"user-data-dir={tmp_path / 'browser'}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
    browser = Chrome(options, ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture
def page(browser: Chrome, tmp_path: Path) -> Iterator[Page]:
    """The UI on a sample store, as a stranger opens it."""
    tool = [sys.executable, "-m", "vidurai_pipeline"]
    store = tmp_path / "sample"
    subprocess.run([*tool, "demo", str(store)], check=True, capture_output=True)
    port = free_port()
    environment = {**os.environ, "VIDURAI_HOME": str(store)}
    with running([*tool, "ui", "--port", str(port)], environment, tmp_path / "ui.log"):
        answer(f"http://127.0.0.1:{port}/server_info")
        folder = os.environ.get("SCREENSHOTS")
        yield Page(browser, f"http://127.0.0.1:{port}", Path(folder) if folder else tmp_path / "screenshots")


def test_a_stranger_materializes_all_and_sees_the_green_check(page: Page, tmp_path: Path) -> None:
    page.open("/")
    page.click("Jobs")
    page.click("maintenance")
    page.see("archived_rows")
    page.shoot("1-lineage-before")
    page.click("Materialize all")
    page.see("Launched run")
    page.open("/runs")
    page.see("Success")
    page.shoot("2-runs")

    page.open("/assets/parquet_archive?view=checks")
    page.see("archive_equals_hot_store")
    page.see("Passed")
    page.shoot("3-checks")
    with closing(sqlite3.connect(tmp_path / "sample/vidurai.db")) as con:
        assert con.execute("SELECT count(*) FROM memories WHERE status = 'ARCHIVED'").fetchone() == (0,)

    page.browser.set_window_size(2600, 1100)  # in a narrower one the nodes show their names only
    page.open("/locations/vidurai_pipeline/asset-groups/memory_lifecycle/lineage")
    page.see("Passed")
    page.shoot("4-lineage-after")
    page.browser.set_window_size(1600, 2600)
    for name in ("archived_rows", "parquet_archive", "purged_rows", "q_table"):
        page.open(f"/assets/{name}?view=overview")
        page.see("Row count")
        page.shoot(f"5-{name}")
    page.browser.set_window_size(1600, 1100)
    page.open("/automation")
    page.see("nightly")
    page.see("weekly_prune")
    page.shoot("6-automation")
    page.open("/jobs")
    page.see("maintenance")
    page.shoot("7-jobs")
    errors = [entry for entry in page.browser.get_log("browser") if "favicon" not in entry["message"]]  # type: ignore[no-untyped-call]
    assert errors == []
