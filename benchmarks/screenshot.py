"""The picture of the web page in docs/service.md, and one of every other page: a real service in Chromium.

`python benchmarks/screenshot.py` writes docs/ui.png; `--pages DIRECTORY` also writes the others there. What
the models answer is what they answered.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from shoal.server.client import Client

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
STARTING_SECONDS, ANSWER_MS = 180, 900_000
SOLVED = """A joy from the first scene to the last. => positive
Two hours of my life that I want back. => negative
The cast is wonderful and the story moved me. => positive
Dull, noisy and far too long. => negative
I want to see it again with my whole family. => positive
Not one joke worked. => negative"""
OTHERS = {
    "places": "Extract the name of the place from the sentence.",
    "party-size": "Say how many people a table is booked for.",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "ui.png")
    parser.add_argument("--pages", type=Path, help="directory for pictures of the other pages")
    args = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder)) as (service, url),
        sync_playwright() as p,
    ):
        with Client(service) as client:
            for name, description in OTHERS.items():
                client.create(name, description)
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 1180})
        page.set_default_timeout(ANSWER_MS)
        page.goto(url)
        page.get_by_text("Detected skills").wait_for()
        chat(page)
        page.screenshot(path=args.out)
        print(f"{args.out}: {args.out.stat().st_size} bytes")
        if args.pages:
            page.set_viewport_size({"width": 1280, "height": 900})
            args.pages.mkdir(parents=True, exist_ok=True)
            others(page, args.pages)
        browser.close()


def chat(page: Page) -> None:
    """An adapter for reviews, refined on solved examples, and one question to both models."""
    settle(page)
    page.get_by_text("Examples and inputs").click()
    page.get_by_role("textbox", name="Solved examples").fill(SOLVED)
    page.get_by_role("textbox", name="Solved examples").press("Control+Enter")
    settle(page)
    page.get_by_role("button", name="Generate adapter").click()
    page.locator(".js-plotly-plot").first.wait_for()
    settle(page)
    page.get_by_role("button", name="I laughed").click()
    page.locator("[data-testid=stChatMessage]").nth(3).wait_for()
    settle(page)
    page.get_by_role("heading", level=1).click()  # nothing is marked or pointed at
    page.mouse.move(5, 5)
    page.locator("[data-testid=stMain]").evaluate("main => main.scrollTo(0, 0)")
    page.wait_for_timeout(1000)


def others(page: Page, folder: Path) -> None:
    """One picture of each other page, in use."""
    for title, button in (("Compare", "Ask all"), ("Mix", "Ask the mixture")):
        page.get_by_role("link", name=title).click()
        settle(page)
        box = page.get_by_role("combobox").first
        for name in ("decide-movie-review-positive", "places"):
            box.click()
            page.get_by_role("option", name=name, exact=True).click()
            settle(page)
        page.keyboard.press("Escape")
        page.get_by_role("button", name=button).click()
        page.wait_for_timeout(500)
        settle(page)
        snap(page, folder / f"{title.lower()}.png")
    examples = folder / "examples.jsonl"
    examples.write_text(
        '{"input": "A joy.", "output": "positive"}\n{"input": "A bore.", "output": "negative"}\n'
    )
    for title in ("Adapters", "Training", "Monitoring"):
        page.get_by_role("link", name=title).click()
        settle(page)
        if title == "Training":
            page.get_by_label("Instruction that the examples follow").fill("Positive or negative?")
            page.get_by_label("Name of the adapter").fill("my-reviews")
            page.get_by_label("Name of the adapter").press("Enter")
            page.locator("input[type=file]").set_input_files(examples)
            page.get_by_text("examples.jsonl").wait_for()
            settle(page)
            page.get_by_role("button", name="Start training").click()
            page.get_by_text("step 0 of 100").wait_for()
        page.wait_for_timeout(8000)
        snap(page, folder / f"{title.lower()}.png")


def settle(page: Page) -> None:
    """Wait until the page has run."""
    page.wait_for_timeout(300)
    page.wait_for_function(
        "document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'"
    )


def snap(page: Page, path: Path) -> None:
    page.mouse.move(5, 5)
    page.wait_for_timeout(1500)
    page.screenshot(path=path)
    print(path)


@contextmanager
def running(folder: Path) -> Iterator[tuple[str, str]]:
    """Addresses of a service with an empty registry, and of its page."""
    ports = [free_port() for _ in range(2)]
    service, page = (f"http://127.0.0.1:{port}" for port in ports)
    shoal = [sys.executable, "-m", "shoal.apps.cli.main"]
    commands = [
        [*shoal, "serve", "--open", "--port", str(ports[0]), "--registry", str(folder / "registry")],
        [*shoal, "ui", "--service", service, "--port", str(ports[1])],
    ]
    environment = {key: value for key, value in os.environ.items() if key != "OPENAI_API_KEY"}
    with (folder / "log.txt").open("wb") as log:
        started = [subprocess.Popen(c, stdout=log, stderr=log, env=environment, cwd=ROOT) for c in commands]
        try:
            wait_for(f"{service}/ready", folder / "log.txt")
            wait_for(f"{page}/_stcore/health", folder / "log.txt")
            yield service, page
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, log: Path) -> None:
    end = time.monotonic() + STARTING_SECONDS
    while time.monotonic() < end:
        with suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise SystemExit(f"{url} does not answer after {STARTING_SECONDS} s:\n{log.read_text()[-2000:]}")


if __name__ == "__main__":
    main()
