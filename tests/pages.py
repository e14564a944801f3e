"""Pages: inference.py serving its demo page, and a browser that looks at it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.page import uploads_in
from tests.conftest import ROOT

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
WAIT_S = 60
# The same text once more changes nothing that could be seen.
COUNT = """if (window.shown === undefined) {
    window.shown = 0;
    const show = window.recordings.show;
    window.recordings.show = () => { show(); window.shown += 1; };
}"""


@dataclass(frozen=True)
class Page:
    """A page that is served.

    Attributes:
        address: its URL, with a slash at its end.
        folder: for the temporary files of the process, and nothing else.
        process: that serves it.
    """

    address: str
    folder: Path
    process: subprocess.Popen[str]

    @property
    def uploads(self) -> list[Path]:
        """Recordings that lie there, the samples left out."""
        return uploads_in(self.folder)


@contextmanager
def served_page(folder: Path, *flags: object, prefix: tuple[str, ...] = ()) -> Iterator[Page]:
    """Serve a page with temporary files in `folder`, and stop it as Ctrl-C does."""
    process = subprocess.Popen(
        [*prefix, sys.executable, str(ROOT / "inference.py"), *map(str, flags), "--port", "0"],
        stderr=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
    )  # fmt: skip
    told = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            told.append(line)
            if found := re.search(r"https?://[\d.]+:\d+/", line):
                yield Page(found[0], folder, process)
                break
        else:
            raise AssertionError("".join(told))
    finally:
        os.killpg(process.pid, signal.SIGKILL if prefix else signal.SIGINT)
        process.wait(WAIT_S)


@contextmanager
def browser(folder: Path, language: str = "ko", size: tuple[int, int] = (1280, 900), voice: Path | None = None):
    """Give a headless Chromium.

    Args:
        folder: for downloads and its profile.
        language: that it asks for.
        size: of its window.
        voice: a wav file that its microphone hears again and again.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    flags = ["headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"]
    flags += ["disable-component-update", "disable-sync", "mute-audio", "autoplay-policy=no-user-gesture-required"]
    flags += [f"lang={language}", f"window-size={size[0]},{size[1]}", f"user-data-dir={folder / 'profile'}"]
    if voice:
        flags += ["use-fake-ui-for-media-stream", "use-fake-device-for-media-stream"]
        flags += [f"use-file-for-fake-audio-capture={voice}"]
    for flag in flags:
        options.add_argument(f"--{flag}")
    wishes = {"intl.accept_languages": language, "download.default_directory": str(folder)}
    options.add_experimental_option("prefs", wishes)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield Visitor(driver)
    finally:
        driver.quit()


class Visitor:
    """Somebody who uses the page in a browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Page) -> None:
        """Open the page, and wait until all of it is there."""
        self.driver.get(page.address)
        self.until(lambda: self.all(".head h1") and self.all("input[type=file]"))

    def until(self, sign: Any, seconds: float = WAIT_S) -> Any:
        """Wait for a sign and return it."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(lambda _: sign())

    def all(self, selector: str) -> list[Any]:
        """Return what a CSS selector finds."""
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """Return the texts of what a CSS selector finds."""
        return [element.text for element in self.all(selector)]

    def run(self, script: str) -> Any:
        """Return what a line of JavaScript does."""
        return self.driver.execute_script(f"return {script}")

    def upload(self, file: Path) -> None:
        """Choose a file, and wait until the server has it."""
        self.all("input[type=file]")[0].send_keys(str(file))
        self.until(lambda: self.all("[data-testid=waveform-controls], .waveform-container, audio:not(.player)"))

    def transcribe(self) -> None:
        """Press the button, and wait for a new result."""
        self.driver.execute_script(COUNT)
        before = self.run("window.shown")
        self.press()
        self.until(lambda: self.run("window.shown") > before)

    def press(self) -> None:
        """Press the button."""
        self.all("#transcribe")[0].click()

    def toast(self) -> str:
        """Wait for a message and return it."""
        return self.until(lambda: " ".join(self.texts(".toast-body")))

    def asked(self) -> set[str]:
        """Return every address that the page asked for."""
        import json

        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return {url for url in sent if url.startswith(("http", "ws"))}
