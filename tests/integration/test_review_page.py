"""Experts' review in a real browser, by keyboard alone, on a server that is a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from echoray.data.instruct.decisions import DecisionLog
from echoray.data.instruct.review import read_sample, sample_name
from echoray.storage import Store, open_store
from echoray.types import ArtifactRef
from tests.instruct_case import item, sample_of, studies_of, study_rows

CHROMIUM = Path(sys.prefix) / "chromium"
SCRIPT = "<script>document.title = 'broken'</script> & <b>bold</b>"
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not (CHROMIUM / "version").is_file(), reason="no Chromium (make chromium)"),
]


@dataclass
class Server:
    """A running ``echoray data review serve``."""

    workspace: Path
    port: int = 0
    process: subprocess.Popen[str] | None = None
    url: str = ""

    def start(self) -> None:
        """Start it, on the port of the last time where it ran before."""
        command = [sys.executable, "-m", "echoray", "data", "review", "serve", "-w", str(self.workspace)]
        options = ["--port", str(self.port), "--token-ref", "env:REVIEW_TOKEN"]
        environment = {**os.environ, "REVIEW_TOKEN": "the-token"}
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.port = int(self.url.split("/#")[0].rpartition(":")[2])

    def kill(self) -> None:
        """End it without a chance to save anything."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@dataclass
class Case:
    """The server, the store behind it, and what the browser complained of."""

    server: Server
    store: Store
    sample: ArtifactRef
    page: Any
    complaints: list[str] = field(default_factory=list)

    def keys(self, *names: str) -> None:
        """Press keys one after the other."""
        for name in names:
            self.page.keyboard.press(name)

    def wait_for(self, selector: str, text: str) -> None:
        """Wait until an element shows a text."""
        self.page.wait_for_function(
            "([selector, text]) => document.querySelector(selector).textContent.includes(text)",
            arg=[selector, text],
        )

    def said(self) -> dict[str, tuple[str, str | None]]:
        """What is in the store, by the item's number in the sample."""
        log = DecisionLog(self.store, sample_name(self.sample))
        return {one.item_id.rpartition("-")[2]: (one.choice, one.reason) for one in log.current()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    environment = {**os.environ, "LD_LIBRARY_PATH": (CHROMIUM / "libraries").read_text().strip()}
    executable = CHROMIUM / "root/usr/lib/chromium/chromium"
    with sync_playwright() as driver:
        found = driver.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-gpu"], env=environment
        )
        yield found
        found.close()


@pytest.fixture
def case(tmp_path: Path, browser: Any) -> Iterator[Case]:
    store = open_store(str(tmp_path))
    rows = study_rows(["liver"])
    studies = studies_of(store, rows)
    items = [item(number, row["study_hash"]) for number, row in enumerate(rows[:5])]
    items[0] = item(0, rows[0]["study_hash"], answer=SCRIPT)
    sample = sample_of(store, studies, items)
    server = Server(tmp_path)
    server.start()
    page = browser.new_context().new_page()
    made = Case(server, store, sample, page)
    page.on("console", lambda message: message.type == "error" and made.complaints.append(message.text))
    page.on("pageerror", lambda error: made.complaints.append(str(error)))
    yield made
    page.context.close()
    server.kill()


def begin(case: Case, name: str = "reader-1") -> list[str]:
    """Open the page and say who one is; the numbers of the items in the order of the sample."""
    case.page.goto(case.server.url)
    case.page.keyboard.type(name)
    case.page.keyboard.press("Enter")
    case.wait_for("#progress", "reviewed by you")
    case.page.wait_for_selector("#main:not([hidden])")
    return [one.item.item_id.rpartition("-")[2] for one in read_sample(case.store, case.sample)]


def test_an_expert_reviews_by_keyboard_and_a_killed_server_loses_nothing(case: Case) -> None:
    order = begin(case)
    case.keys("a")
    case.wait_for("#progress", "1 of 5")
    case.keys("r")
    case.page.wait_for_selector("#reasons:not([hidden])")
    case.keys("2")
    case.wait_for("#progress", "2 of 5")
    case.keys("e")
    case.page.fill("#new-answer", "A simple cyst, as the report says.")
    case.keys("Control+Enter")
    case.wait_for("#progress", "3 of 5")
    assert case.said() == {
        order[0]: ("accept", None),
        order[1]: ("reject", "not_supported"),
        order[2]: ("edit", None),
    }
    case.keys("u")  # nothing is said of this one: the one before is withdrawn
    case.wait_for("#progress", "2 of 5")
    case.server.kill()
    case.keys("a")
    case.wait_for("#message", "nothing was saved")
    assert set(case.said()) == set(order[:2])
    case.complaints.clear()  # the browser's own lines about the refused connection
    case.server.start()
    case.page.reload()
    case.page.wait_for_selector("#main:not([hidden])")
    case.wait_for("#progress", "2 of 5")
    case.keys("k")
    case.wait_for("#said", "reject (not supported)")
    assert case.complaints == []


def test_what_a_model_wrote_is_text_and_its_name_is_not_shown(case: Case) -> None:
    order = begin(case)
    for _ in range(order.index("0")):
        before = case.page.text_content("#kind")
        case.keys("ArrowRight")
        case.page.wait_for_function(
            "(old) => document.querySelector('#kind').textContent !== old", arg=before
        )
    assert case.page.text_content("#answer") == SCRIPT
    assert case.page.title() == "EchoRay review"
    case.page.wait_for_selector("#pictures img")
    assert case.page.evaluate("document.querySelector('#pictures img').naturalWidth") == 56
    assert "a-model" not in case.page.content()
    assert case.complaints == []


def test_an_edit_that_may_identify_somebody_is_refused_with_what_to_do(case: Case) -> None:
    begin(case)
    case.keys("e")
    case.page.fill("#new-answer", "Call Dr. Smith on 13800138000 about the cyst.")
    case.keys("Control+Enter")
    case.wait_for("#message", "may identify somebody")
    assert case.said() == {}
    case.keys("Escape")
    case.page.wait_for_selector("#editor", state="hidden")


def test_without_the_token_there_is_nothing_and_bad_requests_say_why(case: Case) -> None:
    base = case.server.url.split("/#")[0]
    case.page.goto(base)
    case.page.keyboard.type("reader-2")
    case.keys("Enter")
    case.wait_for("#message", "open the address that the server printed")
    with httpx.Client(base_url=base, headers={"Authorization": "Bearer the-token"}, trust_env=False) as http:
        known = read_sample(case.store, case.sample)[0].item.item_id
        good = {"item_id": known, "reviewer": "reader-2", "choice": "accept"}
        for changes, status in (
            ({"choice": "maybe"}, 422),
            ({"reviewer": "../root"}, 422),
            ({"choice": "reject"}, 422),
            ({"item_id": "someone-else"}, 404),
            ({"prompt": "x" * 100_000}, 413),
        ):
            answer = http.post("/api/decisions", json={**good, **changes})
            assert (answer.status_code, set(answer.json())) == (status, {"error", "hint"})
        assert http.post("/api/decisions", content=b"[]").status_code == 422
        assert http.get("/api/items/99?reviewer=a").status_code == 404
        assert http.get("/api/items/0?reviewer=").status_code == 422
        assert http.get("/").headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert case.said() == {}
