"""Headless Chromium for tests of the report's page, and what they ask it."""

import os
import re
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-dev-shm-usage"
).split()


def start(profile: str) -> Iterator[WebDriver]:
    """A browser with a profile of its own; skips the test without Chromium, or fails it if one is required."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        words = "no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)"
        if os.environ.get("DGEMMA_REQUIRE_BROWSER"):
            pytest.fail(words)
        pytest.skip(words)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    browser = webdriver.Chrome(options=options, service=Service(driver, env=environment))
    try:
        yield browser
    finally:
        browser.quit()


class Page:
    """An open report."""

    def __init__(self, browser: WebDriver):
        self.browser = browser

    def run(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def one(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def tokens(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('.token')].map((token) => token.textContent)")

    def classes(self, name: str) -> list[int]:
        """Positions of the tokens of a class."""
        script = f"return [...document.querySelectorAll('.token.{name}')].map((token) => token.dataset.position)"
        return [int(position) for position in self.run(script)]

    def step(self) -> int:
        return int(self.one("#step").get_property("value"))

    def slide(self, step: int) -> None:
        """Moves the slider, as a hand does: its value changes, and it says so."""
        self.run(
            "const s = document.getElementById('step'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))",
            step,
        )

    def colours(self, selector: str) -> list[list[int]]:
        """Red, green and blue of the text and of the background of every element there."""
        script = """return [...document.querySelectorAll(arguments[0])].map(getComputedStyle)
            .map((style) => [style.color, style.backgroundColor])"""
        return [[int(n) for n in re.findall(r"\d+", " ".join(pair))] for pair in self.run(script, selector)]

    def choose(self, name: str, value: str) -> None:
        self.one(f"input[name={name}][value={value}]").click()

    def readout(self) -> dict[str, str]:
        pairs = (
            "return [...document.querySelectorAll('#readout div')].map((d) => [...d.children].map((c) => c.innerText))"
        )
        return dict(self.run(pairs))

    def heat(self) -> str:
        """The heat map's pixels."""
        return self.run("return document.getElementById('heat').toDataURL()")

    def tooltip(self) -> str:
        return self.one("#tooltip").text

    def wait(self, condition, seconds: float = 10) -> None:
        WebDriverWait(self.browser, seconds, poll_frequency=0.02).until(lambda _: condition())

    def media(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def complaints(self) -> list[str]:
        """What the console says, as of warnings; reading empties it."""
        return [
            entry["message"] for entry in self.browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")
        ]


def short(value: float) -> str:
    """A figure as the page writes it."""
    if value < 1e-3:
        return re.sub(r"e-0?", "e−", f"{value:.1e}")
    return f"{float(f'{value:.3g}'):g}"


def contrast(ink: list[int], paper: list[int]) -> float:
    """The contrast ratio of WCAG 2, 1 … 21."""
    parts = (np.array([ink, paper]) / 255).astype(float)
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (high + 0.05) / (low + 0.05)
