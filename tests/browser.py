"""A headless Chromium for tests of pages; it may ask nobody anything."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900",
    "--force-prefers-reduced-motion",
)


@contextmanager
def chromium(folder: Path) -> Iterator[Any]:
    """Yield a driver with a profile of its own in `folder`; skips the test where there is no Chromium."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver here (apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    home = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    opened = webdriver.Chrome(options=options, service=Service(driver, env=home))
    try:
        opened.set_page_load_timeout(120)
        yield opened
    finally:
        opened.quit()


def requests(driver: Any) -> list[str]:
    """Return what the page has asked for since this was last called: every URL, its own included."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def complaints(driver: Any) -> list[str]:
    """Return what the page has written to the console, errors and violated policies among it."""
    return [entry["message"] for entry in driver.get_log("browser")]


def screen(driver: Any, width: int, height: int, *, mobile: bool = False, scheme: str = "light") -> None:
    """Make the page as large as a screen, with its preferred colours."""
    sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def click(driver: Any, element: Any) -> None:
    """Bring an element to the middle of the screen, as a reader does, and click it for real."""
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()
