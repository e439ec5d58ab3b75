"""The web page in a real browser, every part of it; the service and `shoal ui` are real."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import transformers
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from shoal.server.client import Client

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SLOW_MS = 60_000  # a limit for machines that do much else; nothing waits as long
EVIL = "![x](http://evil.example/a.png) <img src='http://evil.example/b.png'> www.evil.example"
# What a bubble has shown so far, one entry for every change.
WATCH = """element => {
  window.seen = [];
  const look = () => window.seen.push(element.innerText.length);
  new MutationObserver(look).observe(element, {childList: true, subtree: true, characterData: true});
}"""
BUBBLES = "[data-testid=stChatMessage] [data-testid=stText]"
COMPARED = "[data-testid=stColumn] [data-testid=stText]"
MIXED = "[data-testid=stColumn] [data-testid=stColumn] [data-testid=stText]"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium here: apt-get install chromium"),
]


@dataclass(frozen=True)
class Site:
    """The page on a port, the service behind it, and what `shoal ui` has said."""

    url: str
    port: int
    service: Any
    log: Path


@dataclass
class Tab:
    """A page of the browser that is connected, and every address that it asked."""

    page: Page
    addresses: list[str] = field(default_factory=list)

    def go(self, name: str) -> None:
        self.page.get_by_role("link", name=name).click()
        expect(self.page.get_by_role("heading", level=1)).to_be_visible()
        self.idle()

    def idle(self) -> None:
        self.page.wait_for_function(
            "document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'"
        )

    def write(self, label: str, text: str) -> None:
        """Fill a box and leave it, as far as the page has taken it in."""
        box = self.page.get_by_label(label, exact=True).and_(self.page.locator("input, textarea"))
        box.fill(text)
        box.press("Tab")
        self.settle()

    def press(self, name: str) -> None:
        self.settle()
        self.page.get_by_role("button", name=name, exact=True).click()

    def settle(self) -> None:
        """Wait until what is shown is what the last change made: a click on what goes away would be lost."""
        self.page.wait_for_timeout(200)
        self.idle()

    def choose(self, *names: str) -> None:
        box = self.page.get_by_role("combobox").first
        for name in names:
            box.click()
            self.page.get_by_role("option", name=name, exact=True).click()
            self.idle()
        self.page.keyboard.press("Escape")


def ui(service: str, port: int) -> list[str]:
    """The command that serves the page."""
    return [sys.executable, "-m", "shoal.apps.cli.main", "ui", "--service", service, "--port", str(port)]


@pytest.fixture(scope="module")
def site(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, start_service: Any) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("ui")
    limits = {"requests_per_minute": 100_000, "tokens_per_minute": 10**8}
    with start_service(tiny_llama, folder / "registry", **limits) as service, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        environment = {k: v for k, v in os.environ.items() if k != "OPENAI_API_KEY"}
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(ui(service.url, port), stdout=log, stderr=log, env=environment)
        try:
            yield _started(Site(f"http://127.0.0.1:{port}", port, service, folder / "log.txt"), process)
        finally:
            process.terminate()
            assert process.wait(30) == 0


def _started(site: Site, process: subprocess.Popen[bytes]) -> Site:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"{site.url}/_stcore/health") as answer:
                assert answer.status == 200
                return site
        except OSError:
            time.sleep(0.1)
    raise AssertionError(site.log.read_text())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def tab(site: Site, browser: Browser) -> Iterator[Tab]:
    """A page on which ada has typed her key; nobody else is talked to and nothing is said of the key."""
    expect.set_options(timeout=SLOW_MS)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(SLOW_MS)
    tab = Tab(page)
    page.on("request", lambda request: tab.addresses.append(request.url))
    page.goto(site.url)
    expect(page.get_by_role("alert")).to_contain_text("401")
    key = page.get_by_label("API key", exact=True)
    assert key.get_attribute("type") == "password"
    key.fill(site.service.ada)
    key.press("Enter")
    expect(page.get_by_text("Connected to")).to_be_visible()
    yield tab
    assert page.get_by_text("Traceback").count() == 0
    hosts = {re.sub(r"^\w+://([^/:]+).*$", r"\1", url, flags=re.S) for url in tab.addresses if "://" in url}
    assert hosts <= {"127.0.0.1"}, hosts
    assert not any(site.service.ada in url for url in tab.addresses)
    assert site.service.ada not in site.log.read_text() and "Traceback" not in site.log.read_text()
    page.close()


def talkative(service: Any) -> str:
    """A request to which the model has much to say, so that one can watch its answer."""
    with Client(service.url, service.ada) as client:
        requests = [f"Tell me about number {number}." for number in range(20)]
        lengths = {
            request: len(
                list(client.chat(service.model, [{"role": "user", "content": request}], max_tokens=96))
            )
            for request in requests
        }
    return max(requests, key=lengths.__getitem__)


def grew(tab: Tab, bubble: Locator) -> None:
    """The text of a bubble was longer and longer while one looked."""
    tab.page.wait_for_function("window.seen.length > 2")
    tab.idle()
    seen = tab.page.evaluate("window.seen")
    lengths = sorted(set(seen))
    assert len(lengths) >= 3 and lengths[0] < lengths[-1], seen
    expect(bubble).not_to_be_empty()


def answer(site: Site, model: str, *contents: str, adapter: Mapping[str, Any] | None = None) -> str:
    """What the API answers to a chat of the user and the model in turns, as it is shown, whole."""
    roles = itertools.cycle(("user", "assistant"))
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    with Client(site.service.url, site.service.ada) as client:
        return "".join(client.chat(model, messages, adapter=adapter, max_tokens=96))


def is_shown(tab: Tab, selector: str, index: int, right: str, *others: str) -> None:
    """A place shows one answer and not others: rounding in a batch may change the end of a long one."""
    tab.idle()
    text = tab.page.locator(selector).nth(index).text_content() or ""
    alike = [len(os.path.commonprefix([text, other])) for other in (right, *others)]
    assert alike[0] > max(alike[1:]), (text, right, others)


def test_describe_generate_see_and_chat(site: Site, tab: Tab) -> None:
    page = tab.page
    tab.write("Task", "Solve equations of mathematics.")
    expect(page.locator(".shoal-chip", has_text="mathematics")).to_be_visible()
    tab.write("Name", "chat-maths")
    tab.press("Generate adapter")
    expect(page.get_by_text("chat-maths · version 1")).to_be_visible()
    expect(page.locator(".js-plotly-plot .heatmaplayer image").first).to_be_attached()
    expect(page.get_by_text("This adapter changes nothing")).to_be_visible()  # no network for this tiny model
    box = page.get_by_placeholder("Ask both models")
    for turn, question in enumerate((talkative(site.service), "And what else?")):
        page.locator("[data-testid=stMain]").evaluate(WATCH)
        box.fill(question)
        box.press("Enter")
        bubbles = page.locator("[data-testid=stChatMessage]")
        expect(bubbles).to_have_count(4 * (turn + 1))  # a question and an answer on both sides
        expect(page.get_by_text(question, exact=True)).to_have_count(2)
        grew(tab, bubbles.last)
    with Client(site.service.url, site.service.ada) as client:
        assert client.adapter("chat-maths").description == "Solve equations of mathematics."


def test_before_is_the_base_model_and_after_the_adapter(
    site: Site, tab: Tab, make_loud: Callable[[int], bytes]
) -> None:
    with Client(site.service.url, site.service.ada) as client:
        client.upload("chat-loud", make_loud(5))
    tab.go("Adapters")
    tab.write("Search", "chat-loud")
    expect(tab.page.locator("code", has_text="chat-loud")).to_be_visible()
    tab.press("Chat with it")
    expect(tab.page.get_by_text("chat-loud · version 1")).to_be_visible()
    question = talkative(site.service)
    box = tab.page.get_by_placeholder("Ask both models")
    box.fill(question)
    box.press("Enter")
    expect(tab.page.locator("[data-testid=stChatMessage]")).to_have_count(4)
    before = answer(site, site.service.model, f"Loud.\n\n{question}")  # the base model is told the task
    after = answer(site, "chat-loud", question)
    is_shown(tab, BUBBLES, 1, before, after)
    is_shown(tab, BUBBLES, 3, after, before)


def test_compare_and_mix(site: Site, tab: Tab, make_loud: Callable[[int], bytes]) -> None:
    page, names = tab.page, ("mix-one", "mix-two")
    with Client(site.service.url, site.service.ada) as client:
        for seed, name in enumerate(names):
            client.upload(name, make_loud(seed))
    tab.go("Compare")
    tab.choose(*names)
    expect(page.locator(".js-plotly-plot")).to_have_count(3)  # lines, and a picture each
    request = talkative(site.service)
    tab.write("Request", request)
    page.locator("[data-testid=stMain]").evaluate(WATCH)
    tab.press("Ask all")
    expect(page.locator(COMPARED)).to_have_count(3)
    grew(tab, page.locator(COMPARED).last)
    answers = [answer(site, site.service.model, f"Loud.\n\n{request}")]  # the base model is told the task
    answers += [answer(site, name, request) for name in names]
    for index, right in enumerate(answers):
        is_shown(tab, COMPARED, index, right, *answers[:index], *answers[index + 1 :])

    tab.go("Mix")
    tab.choose(*names)
    sliders = page.get_by_role("slider")
    expect(sliders.first).to_have_attribute("aria-valuetext", "0.50")
    sliders.first.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    expect(sliders.first).to_have_attribute("aria-valuetext", "0.70")
    tab.idle()
    tab.write("Request", request)
    page.locator("[data-testid=stMain]").evaluate(WATCH)
    tab.press("Ask the mixture")
    expect(page.get_by_text("Earlier mixtures")).to_be_visible()
    grew(tab, page.locator(MIXED).last)
    weights = [(0.7, 0.5), (0.5, 0.7), (0.5, 0.5)]
    mixes = [{"mix": [{"name": n, "weight": w} for n, w in zip(names, ws, strict=True)]} for ws in weights]
    mixed = [answer(site, site.service.model, request, adapter=mix) for mix in mixes]
    is_shown(tab, MIXED, 0, answers[0], *mixed)
    is_shown(tab, MIXED, 1, mixed[0], *mixed[1:], *answers)  # so the sliders' weights were asked for


def test_a_merge_is_started_and_shows_what_it_keeps(
    site: Site, tab: Tab, make_loud: Callable[[int], bytes], tmp_path: Path
) -> None:
    page, names = tab.page, ("merge-one", "merge-two")
    with Client(site.service.url, site.service.ada) as client:
        for seed, name in enumerate(names):
            client.upload(name, make_loud(seed))
    files = []
    for task in ("letters", "digits"):
        lines = [json.dumps({"input": f"{task} {i}", "output": f"{i}"}) for i in range(10)]
        files.append(tmp_path / f"{task}.jsonl")
        files[-1].write_text("\n".join(lines))
    tab.go("Merge")
    tab.choose(*names)
    page.locator("input[type=file]").set_input_files(files)
    expect(page.get_by_text("digits.jsonl")).to_be_visible()
    tab.write("Name of the merge", "merge-both")
    tab.idle()
    tab.press("Merge")
    expect(page.get_by_text("The merge merge-both is queued")).to_be_visible()
    expect(page.get_by_text("succeeded")).to_be_visible()
    expect(page.get_by_text("Parents: merge-one, merge-two")).to_be_visible()
    expect(page.get_by_text(re.compile("^(Merge: one file|Mix them|Keep them apart)"))).to_be_visible()
    expect(page.locator(".js-plotly-plot .bars path")).to_have_count(2)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_registry(site: Site, tab: Tab, tmp_path: Path, tiny_llama: Path) -> None:
    page = tab.page
    with Client(site.service.url, site.service.ada) as client:
        for number in range(12):
            client.create(f"book-{number:02}", EVIL if number == 0 else f"Answer {number}.")
    tab.go("Adapters")
    tab.write("Search", "book-")
    expect(page.locator("code", has_text="book-00")).to_be_visible()
    expect(page.locator("[data-testid=stText]", has_text=EVIL)).to_be_visible()  # as it is written
    assert page.locator("a[href*=evil], img[src*=evil]").count() == 0
    tab.press("Next")
    expect(page.locator("code", has_text="book-10")).to_be_visible()
    page.locator(".dvn-scroller").first.click(position={"x": 16, "y": 52 + 35})
    expect(page.locator("code", has_text="book-11")).to_be_visible()
    tab.settle()
    page.get_by_text("Others may use it").last.click()
    expect(page.get_by_text("book-11 is public now")).to_be_visible()
    expect(page.locator("code", has_text="book-11")).to_be_visible()

    with page.expect_download() as download:
        tab.press("Download ZIP")
    archive = tmp_path / download.value.suggested_filename
    download.value.save_as(archive)
    assert archive.name == "book-11.zip"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "adapter")
    folder = next((tmp_path / "adapter").rglob("adapter_config.json")).parent
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert peft.PeftModel.from_pretrained(model, folder).active_adapter == "default"

    page.get_by_text("Import an adapter").click()
    page.locator("input[type=file]").set_input_files(archive)
    expect(page.get_by_text("book-11.zip")).to_be_visible()
    tab.write("Name", "imported-back")
    tab.press("Import")
    expect(page.get_by_text("imported-back is kept as version 1")).to_be_visible()
    tab.write("Search", "imported")
    expect(page.locator("code", has_text="imported-back")).to_be_visible()
    with Client(site.service.url, site.service.ada) as client:
        assert client.norms("imported-back") == client.norms("book-11") and client.adapter("book-11").public
        tab.press("Delete…")
        tab.press("Keep it")
        expect(page.get_by_role("dialog")).to_have_count(0)
        assert client.adapter("imported-back")
        tab.press("Delete…")
        tab.press("Delete it")
        expect(page.get_by_text("imported-back is deleted")).to_be_visible()
        assert client.page(search="imported-back").adapters == ()
    tab.write("Search", "book-02")
    expect(page.locator("code", has_text="book-02")).to_be_visible()
    tab.press("Chat with it")
    expect(page.get_by_text("book-02 · version 1")).to_be_visible()


def test_a_training_is_started_and_cancelled_and_the_dashboard_counts(
    site: Site, tab: Tab, tmp_path: Path
) -> None:
    page = tab.page
    examples = tmp_path / "examples.jsonl"
    lines = [json.dumps({"input": f"letter {c}", "output": c}) for c in "abcdefgh"]
    examples.write_text("\n".join(lines))
    tab.go("Training")
    page.locator("input[type=file]").set_input_files(examples)
    expect(page.get_by_text("examples.jsonl")).to_be_visible()
    tab.write("Instruction that the examples follow", "Say the letter.")
    tab.write("Name of the adapter", "letters")
    tab.write("Steps", "2000")
    tab.idle()
    tab.press("Start training")
    expect(page.get_by_text("The training of letters is queued")).to_be_visible()
    expect(page.get_by_text(re.compile(r"step [1-9]\d* of 2000 · loss"))).to_be_visible()  # progress
    tab.press("Cancel")
    expect(page.get_by_text("cancelled")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_have_count(0)
    with Client(site.service.url, site.service.ada) as client:
        assert client.jobs()[0].state == "cancelled"
        tab.go("Monitoring")
        for label in ("Requests", "Successful", "Mean response", "Mean memory", "Skill detection"):
            expect(page.locator("[data-testid=stMetric]", has_text=label)).to_be_visible()
        first = page.locator("[data-testid=stMetricValue]").first
        before = first.inner_text()
        expect(first).not_to_have_text(before)  # it refreshes itself, and its own questions count
        for chart in ("Tokens per second", "Queue time", "Batch size", "Adapter cache", "Memory"):
            expect(page.get_by_text(chart, exact=True)).to_be_visible()
        # The others say that no answer was generated while the page was open.
        expect(page.locator("[data-testid=stVegaLiteChart]:has(canvas, svg)")).to_have_count(3)
        expect(page.get_by_text("Nothing yet")).to_have_count(3)


def test_a_page_of_another_name_is_not_answered(site: Site) -> None:
    statuses = {}
    for host in (f"127.0.0.1:{site.port}", "evil.example"):
        connection = http.client.HTTPConnection("127.0.0.1", site.port)
        headers = {
            "Host": host,
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        connection.request("GET", "/_stcore/stream", headers=headers)
        statuses[host] = connection.getresponse().status
        connection.close()
    assert list(statuses.values()) == [101, 403], statuses


def test_a_service_that_went_away_is_one_line(
    site: Site, browser: Browser, tiny_llama: Path, tmp_path: Path
) -> None:
    assert site.url
    page = browser.new_page()
    environment = {**os.environ, "OPENAI_API_KEY": "sk-shoal-none"}
    port = site.port + 1
    command = ui("http://127.0.0.1:1", port)
    log = tmp_path / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        other = _started(Site(f"http://127.0.0.1:{port}", port, None, log), process)
        page.goto(other.url)
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached", timeout=SLOW_MS)
        assert page.get_by_text("Traceback").count() == 0 and "Traceback" not in log.read_text()
    finally:
        process.terminate()
        process.wait(30)
        page.close()
