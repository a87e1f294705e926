"""Lesson 00 in a real JupyterLab: a sentence that is typed into its widget changes the picture."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from rislib.course.build import student_path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LESSON = "00_start_here"
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PATIENCE = 300  # seconds that any one thing may take: it starts a kernel and trains a network for a moment
CAPTION = 0.1  # of the picture's height: the caption repeats the sentence, so it would change in any case

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of the lesson in a JupyterLab of its own, which knows no settings but ours."""
    shutil.copy(student_path(NOTEBOOKS, LESSON), tmp_path)
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    every_cell = {"windowingMode": "none"}  # otherwise a cell out of sight is not in the page
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps(every_cell))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "RISLIB_"))} | {
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "RISLIB_PROFILE": "ci",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
    command += [f"--ServerApp.root_dir={tmp_path}", "--IdentityProvider.token=lesson"]
    command += ["--LabApp.expose_app_in_browser=True"]  # the page can run its commands
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)
    try:
        yield f"{_address(server, tmp_path)}lab/tree/{LESSON}.ipynb?token=lesson"
    finally:
        server.terminate()  # its kernels go with it
        server.wait(timeout=PATIENCE)


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(1000 * PATIENCE)
        expect.set_options(timeout=1000 * PATIENCE)
        yield page
        browser.close()


def test_a_typed_sentence_changes_the_picture(lab: str, page: Page):
    page.goto(lab)
    page.get_by_text("| Idle").wait_for()  # the kernel, in the status bar
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")

    sentence = page.get_by_label("Find", exact=True)
    picture = page.locator(".jp-CodeCell", has=sentence).locator("img")
    expect(picture).to_have_count(1)
    first = picture.get_attribute("src")
    sentence.fill("boy on the right")
    sentence.press("Enter")
    expect(picture).not_to_have_attribute("src", first)
    before, after = (_answer(source) for source in (first, picture.get_attribute("src")))
    assert before.shape == after.shape and (before != after).mean() > 0.01

    sentence.fill("the red balloon")  # as at first
    sentence.press("Enter")
    expect(picture).to_have_attribute("src", first)


def _answer(source: str) -> np.ndarray:
    """The pixels below the captions of a picture that a page holds as a data: address."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB"))
    return pixels[round(CAPTION * len(pixels)) :]


def _address(server: subprocess.Popen, folder: Path) -> str:
    """Where a server listens: it says so in a file, as soon as it does."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        for path in (folder / "runtime").glob("jpserver-*.json"):
            if path.stat().st_size:
                return json.loads(path.read_text())["url"]
        time.sleep(0.2)
    raise RuntimeError((folder / "log").read_text()[-2000:])
