"""The page: what it says in both languages, and what it does in a browser."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jmedlite.serve.guard import PAGE
from tests.support.serving import END, FakeRunner, listening

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MARKUP = "<img src=x onerror=alert(1)> **x**"
THINKING = ({"event": "thought", "text": "考え中"}, {"event": "token", "text": f" ロサルタン {MARKUP}"}, END)
QUESTION = "高血圧の第一選択薬は何ですか。"
VERDICT = "no measurable loss against F16"


def texts() -> dict[str, dict[str, str]]:
    """What texts.js says, by language."""
    found: dict[str, dict[str, str]] = {}
    for line in PAGE["/texts.js"].read_text(encoding="utf-8").splitlines():
        if begun := re.fullmatch(r"  (\w+): \{", line):
            found[begun[1]] = {}
        elif said := re.fullmatch(r'    (\w+): "(.+)",', line):
            assert said[1] not in found[list(found)[-1]]
            found[list(found)[-1]][said[1]] = said[2]
        else:
            assert re.fullmatch(r"//.*|export const TEXTS = \{|  \},|\};", line), line
    return found


def test_both_languages_say_the_same() -> None:
    ja, en = texts()["ja"], texts()["en"]
    assert list(texts()) == ["ja", "en"]
    assert list(ja) == list(en) == sorted(ja)
    used = set(re.findall(r'data-(?:text|placeholder)="(\w+)"', PAGE["/"].read_text(encoding="utf-8")))
    code = PAGE["/page.js"].read_text(encoding="utf-8")
    named = {word for word in re.findall(r'"(\w+)"', code) if word in ja}
    assert used <= ja.keys()
    assert used | named == ja.keys()
    assert set(re.findall(r'say\("(\w+)"\)', code)) <= ja.keys()
    assert not [text for text in ja.values() if not re.search("[ぁ-んァ-ン一-龥]", text)]
    assert not [text for text in en.values() if re.search("[ぁ-んァ-ン一-龥]", text)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra [browser]")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Looked:
    """A page that is looked at, and whatever the browser complained of."""

    def __init__(self, browser: Any, address: str, width: int = 1440, lang: str = "ja", scheme: str = "light") -> None:
        context = browser.new_context(viewport={"width": width, "height": 844}, locale=lang, color_scheme=scheme)
        self.page = context.new_page()
        self.page.set_default_timeout(15_000)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.said.append(request.url) if address not in request.url else None)
        self.page.goto(f"{address}/")

    def text(self, selector: str) -> str:
        found: str = self.page.locator(selector).last.inner_text()
        return found

    def until(self, true: Callable[[], object]) -> None:
        """Wait; the page's policy lets no text be run, which is how Playwright would."""
        deadline = time.monotonic() + 15
        while not true():
            assert time.monotonic() < deadline
            self.page.wait_for_timeout(20)

    def ask(self, question: str = QUESTION) -> None:
        self.page.locator("#question").fill(question)
        self.page.keyboard.press("Enter")

    @property
    def focused(self) -> str:
        found: str = self.page.evaluate("document.activeElement.id")
        return found


def test_asked_stopped_and_reloaded_in_japanese(browser: Any, tmp_path: Path) -> None:
    ja, runner = texts()["ja"], FakeRunner(*THINKING)
    with listening(runner, license="llama2", verdict=VERDICT) as address:
        seen = Looked(browser, address)
        page = seen.page
        page.locator("#about").wait_for()
        assert page.locator("html").get_attribute("lang") == "ja"
        assert seen.focused == "question"
        seen.ask()
        seen.until(lambda: seen.text("#status") == ja["done"])
        assert seen.text(".assistant .text") == f"ロサルタン {MARKUP}"
        assert page.locator("main img").count() == 0
        assert not page.locator(".thought .text").is_visible()
        assert (seen.text(".thought summary"), seen.focused) == (ja["thought"], "question")
        for text in ("M · Q4_K_M", "研究用の出力です。", "llama2", VERDICT):
            assert page.get_by_text(text).first.is_visible()
        sent = runner.requests[0]
        assert "日本語" in sent["system"]
        assert sent["messages"] == [{"role": "user", "content": QUESTION}]
        # the next turn has the one before, without its thought; it is stopped, with the keyboard
        runner.go_on.clear()
        seen.ask("続けて\n")
        seen.until(lambda: len(runner.requests) == 2)
        assert [m["role"] for m in runner.requests[1]["messages"]] == ["user", "assistant", "user"]
        assert "考え中" not in str(runner.requests[1])
        page.keyboard.press("Escape")
        seen.until(lambda: runner.n_stopped == 1)
        assert seen.text(".said") == ja["stopped"]
        runner.go_on.set()
        with page.expect_download() as saving:
            page.locator("#save").click()
        saved = tmp_path / "saved.txt"
        saving.value.save_as(saved)
        text = saved.read_text(encoding="utf-8")
        assert QUESTION in text
        assert ja["notice"] in text
        # an answer that a new conversation has left behind is no part of it
        runner.go_on.clear()
        seen.ask("古い質問")
        page.locator("#new").click()
        runner.go_on.set()
        seen.ask("新しい質問")
        seen.until(lambda: page.locator(".assistant").count() == 1 and MARKUP in seen.text(".assistant .text"))
        assert runner.requests[-1]["messages"] == [{"role": "user", "content": "新しい質問"}]
        page.reload()
        page.locator("#empty").wait_for()
        assert page.locator(".turn").count() == 0
        assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 0]
        assert seen.said == []


def test_a_key_is_asked_for_and_refused(browser: Any) -> None:
    ja, key = texts()["ja"], "k" * 20
    with listening(FakeRunner(), key=key) as address:
        seen = Looked(browser, address)
        page = seen.page
        page.locator("#keys").wait_for()
        assert seen.focused == "key"
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.get_by_text(ja["keyrefused"]).wait_for()
        page.keyboard.type(key)
        page.keyboard.press("Enter")
        page.locator("#about").wait_for()
        assert not page.locator("#keys").is_visible()
        page.reload()  # the tab keeps it
        page.locator("#about").wait_for()
        seen.ask()
        seen.until(lambda: seen.text("#status") == ja["done"])
        assert all("401" in text for text in seen.said)


def test_faults_are_told_and_the_question_comes_back(browser: Any) -> None:
    ja = texts()["ja"]
    runner = FakeRunner(lanes=1)
    runner.go_on.clear()
    with listening(runner, queue=0) as address:
        first, second = Looked(browser, address), Looked(browser, address)
        first.ask()
        first.until(lambda: runner.requests)
        second.ask("二人目")
        second.page.locator("#error").get_by_text(ja["busy"]).wait_for()
        assert second.page.locator("#question").input_value() == "二人目"
        runner.go_on.set()
        first.until(lambda: first.text("#status") == ja["done"])
        runner.events = ({"event": "token", "text": "途中"},
                         {"event": "error", "kind": "NativeError", "code": 70, "message": "it was killed"})  # fmt: skip
        second.ask("三つ目")
        second.page.locator("#error").get_by_text("it was killed").wait_for()
        assert second.text(".assistant .text") == "途中"
        runner.events = ({"event": "error", "kind": "ContextFull", "code": 65, "message": "too long"},)
        second.ask("四つ目")
        second.page.locator("#error").get_by_text(ja["full"]).wait_for()
    first.ask("誰かいますか")
    first.page.locator("#error").get_by_text(ja["lost"]).wait_for()
    assert first.page.locator("#question").input_value() == "誰かいますか"


def test_on_a_phone_in_english_with_the_keyboard(browser: Any) -> None:
    en = texts()["en"]
    with listening(FakeRunner(), verdict=VERDICT * 9, title="A very long name of a model " * 4) as address:
        seen = Looked(browser, address, 390, "en", "dark")
        page = seen.page
        page.locator("#about").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
        assert page.get_by_text(en["notice"]).is_visible()
        page.locator("#question").press_sequentially("one")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("two")
        assert page.locator("#question").input_value() == "one\ntwo"
        page.keyboard.press("Tab")
        assert seen.focused == "send"
        page.keyboard.press("Enter")
        seen.until(lambda: seen.text("#status") == en["done"])
        assert seen.text(".assistant .text") == "hello"
        reached = []
        for _ in range(9):
            page.keyboard.press("Shift+Tab")
            reached.append(seen.focused)
        assert {"new", "copy", "save", "lang"} <= set(reached)
        page.locator("#lang").select_option("ja")
        assert page.get_by_text(texts()["ja"]["notice"]).is_visible()
        assert seen.text(".assistant h2") == texts()["ja"]["answer"]
        unnamed = "[...document.querySelectorAll('button,input,textarea,select')].filter(e => !e.textContent.trim() && "
        assert page.evaluate(f"{unnamed}!e.labels?.length).length") == 0
        assert seen.said == []
