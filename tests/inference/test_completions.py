"""Tests of the extraction of a title from a completion."""

from __future__ import annotations

import pytest
from work import at_most

from qwen_task_heads.inference.completions import title_of


@pytest.mark.parametrize(
    ("completion", "title"),
    [
        ("Ten ways to rest", "Ten ways to rest"),
        ("  Ten\n ways ", "Ten ways"),
        ("<think>Short or long?</think>\n\nTen ways", "Ten ways"),
        ("so it should be short</think>Ten ways", "Ten ways"),  # opened in the prompt
        ("<think>a</think>b<think>c</think>Ten ways", "Ten ways"),
        ("<think>It should be short", ""),
        ("Ten ways<think>or eleven", "Ten ways"),
        ("<THINK>x</THINK><Title>Ten ways</TITLE>", "Ten ways"),
        ("Here it is: <title>Ten ways</title> I hope you like it.", "Ten ways"),
        ("<title>Ten ways", "Ten ways"),
        ("Ten ways</title> and more", "Ten ways"),
        ("<title>One</title><title>Two</title>", "One"),
        ("<title><title>One", "One"),
        ("<title></title> Ten ways", ""),
        ("<title> \u200b </title>", ""),
        ("\u200b\u2060", ""),
        *((title, title) for title in ("休む", "ﾔｽﾑ", "한", "7", "٣", "Ⅳ", "½", "é", "Ж!", "🎉 7")),
        *((title, "") for title in ("!?", "…", "—", "🎉🎉", "👩\u200d🚀", "1\ufe0f\u20e3", "#\u20e3")),
        *(
            (title, "")
            for title in ("。、", "「」", "ーー", "\u3164", "\u0301", "$ € +", "<title>***</title>")
        ),
        ("Ten ways<|im_end|>", "Ten ways"),
        ("<|im_end|>", ""),
        ("", ""),
        ([{"role": "assistant", "content": "<title>Ten ways</title>"}], "Ten ways"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "Ten ways"}]}], "Ten ways"),
        ([{"role": "tool", "content": "no"}, {"role": "assistant", "content": "Ten"}], "Ten"),
        ([{"role": "assistant", "content": None}], ""),
        ([], ""),
    ],
)
def test_thinking_tags_and_control_tokens_are_removed(completion, title):
    assert title_of(completion) == title


def test_a_long_completion_takes_linear_time():
    with at_most(1_000_000):
        for piece in ("<title>", "</title>", "<think>", "</think>", "<|im_end|>", "<", "x <title>"):
            title_of(piece * 100_000)
