"""The page in headless Chromium, served by `qth demo`: answers, texts that stay text, no other hosts."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import browser
import pytest
from demo_models import scorer_of

from qwen_task_heads import save

ROOT = Path(__file__).resolve().parents[2]
ATTACK = "<img src=x onerror=window.attacked=1>"
MARKDOWN = "**bold** [link](javascript:window.attacked=1)"
TITLES = ["A plain title", f"{ATTACK}<b>bold</b>", MARKDOWN, "10 ways to make tea"]
TEXT = f"Why was my {ATTACK} transfer declined? {MARKDOWN}"
FIELDS = """[...document.querySelectorAll('label')].filter(one => one.innerText.startsWith({!r}))
    .map(one => one.querySelector('textarea, input'))"""
BUTTON = "[...document.querySelectorAll('button')].find(one => one.innerText.trim() == {!r})"
HOSTILE = "document.querySelectorAll('img[src=x], b, strong, a[href^=javascript]').length"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium is installed"),
]


@contextmanager
def demo_of(*words: object, log: Path) -> Iterator[str]:
    """Start `qth demo`; yield its address, and end it by a signal."""
    with socket.create_server(("127.0.0.1", 0)) as outside, log.open("w") as output:
        asked = []  # connections to other hosts, which the proxy of the environment gets
        threading.Thread(target=lambda: asked.append(outside.accept()), daemon=True).start()
        proxy = f"http://127.0.0.1:{outside.getsockname()[1]}"
        environment = {**os.environ, "HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "NO_PROXY": "127.0.0.1"}
        environment["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, str(ROOT / "qth.py"), "demo", *map(str, words), "--port", "0"]
        # A background job ignores SIGINT, and its children would inherit that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        signal.signal(signal.SIGINT, before)
        try:
            while not (started := re.search(r"is at (http://\S+);", log.read_text())):
                assert process.poll() is None, log.read_text()
                try:
                    process.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
            yield started[1]
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
    assert asked == []
    assert "Traceback" not in log.read_text()
    assert code in (130, -signal.SIGINT), log.read_text()


def saved(kind: str, folder: Path, *, seed: int = 0) -> Path:
    scorer = scorer_of(kind, seed=seed)
    return save(scorer.model, tokenizer=scorer.tokenizer, folder=folder)


def checked(page: browser.Page, address: str) -> None:
    """Assert that texts stayed texts, that no script failed, and that no other host was asked."""
    assert page.run("window.attacked") is None
    assert page.run(HOSTILE) == 0
    assert page.errors == []
    assert {urlsplit(url).netloc for url in page.requests} - {""} == {urlsplit(address).netloc}
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")


def test_titles_are_ranked_on_a_narrow_page(tmp_path: Path) -> None:
    folder = saved("titles", tmp_path / "titles")
    expected = [row.title for row in scorer_of("titles").rank(TITLES)]
    with (
        demo_of(folder, log=tmp_path / "log") as address,
        browser.opened(tmp_path / "profile") as page,
    ):
        page.open(address, width=390)
        page.wait(f"!!{BUTTON.format('Rank')}")
        page.write(f"{FIELDS.format('Titles')}[0]", "\n".join(TITLES))
        page.run(f"{BUTTON.format('Rank')}.click()")
        page.wait(f"document.body.innerText.includes({expected[-1]!r})")
        text = page.run("document.querySelector('table').closest('.block, div[class*=table]').innerText")
        places = [text.index(title) for title in expected]
        assert places == sorted(places)
        checked(page, address)

        page.write(f"{FIELDS.format('Titles')}[0]", f"a{ATTACK}\n" * 101)
        page.run(f"{BUTTON.format('Rank')}.click()")
        page.wait("document.body.innerText.includes('found 101 titles')")
        page.write(f"{FIELDS.format('Prompt')}[0]", ATTACK)
        checked(page, address)


def test_texts_are_labelled_side_by_side(tmp_path: Path) -> None:
    folders = [saved("single", tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    answers = [scorer_of("single", seed=seed).predict([TEXT])[0] for seed in (0, 1)]
    shown = f"{FIELDS.format('Answer')}.map(one => one.value)"
    with (
        demo_of(folders[0], "--compare", folders[1], log=tmp_path / "log") as address,
        browser.opened(tmp_path / "profile") as page,
    ):
        page.open(address, width=1280)
        page.wait(f"!!{BUTTON.format('Predict')}")
        assert str(tmp_path) not in page.run("document.documentElement.outerHTML")
        page.write(f"{FIELDS.format('Text')}[0]", TEXT)
        page.run(f"{BUTTON.format('Predict')}.click()")
        page.wait(f"{shown}.every(one => one)")
        assert page.run(shown) == [answer.label for answer in answers]
        percents = page.run("[...document.querySelectorAll('.confidence')].map(one => one.innerText)")
        assert percents[:3] == [f"{value:.0%}" for _, value in answers[0].ranked]

        # The slider of the first model changes its answer only, and reads the stored curve.
        number = "document.querySelector('input[type=number]')"
        page.write(number, "0.99")
        page.run(f"{number}.dispatchEvent(new Event('change', {{bubbles: true}})); {number}.blur()")
        page.wait(f"{shown}[0].startsWith('(no label')")
        assert page.run(shown)[1] == answers[1].label
        assert "5%" in page.run(f"{FIELDS.format('At this threshold')}[0].value")

        page.run(f"{BUTTON.format('Attribute words')}.click()")
        page.wait(f"{FIELDS.format('Attribution')}.every(one => one.value)")
        words = page.run("[...document.querySelectorAll('.textfield')].map(one => one.innerText)")
        assert all(word in text for text in words for word in TEXT.split())
        checked(page, address)
