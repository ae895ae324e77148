"""Check 25 for cards: 200 hostile strings in every field, one front matter, no live HTML, no broken table."""

from __future__ import annotations

import itertools
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from qwen_task_heads.publishing.cards import accuracy_rows, figure, metadata, plain, render

PIECES = (
    "---",
    "\n---\n",
    "```",
    "`",
    "|",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "{{ 7*7 }}",
    "{% raw %}",
    "![x](http://example.org/x.png)",
    "[a](javascript:alert(1))",
    "# head",
    "key: value",
    "'",
    '"',
    "\\",
    "\r\n",
    "\t",
    "\u2028",
    "\x85",
    "&lt;",
    "- item",
    "null",
    "yes",
    "1e3",
    "<!-- -->",
    "~~~",
    "休",
    "%s",
    "!!python/object:os.system",
)
HOSTILE = [f"{a}{b}" for a, b in itertools.islice(itertools.product(PIECES, PIECES), 0, None, 5)][:180] + [
    f"before {piece} after" for piece in PIECES[:20]
]
FIELDS = {
    "plots": {"Training": "training.png"},
    "attribution": "",
    "picked": True,
    "kind": "A full model",
    "revision": None,
    "reported_on": "On the test set:",
    "adapter": False,
    "provenance": "3 pairs.",
    "dev_was_cut": False,
    "length_bias": "0.1",
    "embedded": False,
    "repo": "a-model",
    "versions": {"qwen-task-heads": "0.1.0"},
}
ENTRY = {"value": 0.61234, "low": 0.55, "high": None, "n": 1841, "n_groups": 220}


def front_matter(*, name: str = "a", base: str | None = None, dataset: str = "d") -> str:
    return metadata(
        name=name,
        base=base,
        relation="adapter",
        task="text-ranking",
        tags=["title-scorer"],
        dataset=dataset,
        dataset_type="pairs",
        split="test",
        figures=[("accuracy", "pair accuracy", 0.61234)],
    )


def card(text: str) -> str:
    return render(
        "title_scorer",
        metadata=front_matter(name=text, dataset=text).strip(),
        title=plain(text),
        base=plain(text),
        table=accuracy_rows({"this model": ENTRY}),
        figures={plain(text): plain(text)},
        data_lines=[plain(text)],
        settings={plain(text): plain(text)},
        **FIELDS,
    )


def test_hostile_strings_stay_text():
    assert len(HOSTILE) == 200
    calm = card("calm").splitlines()
    lines = len(card("calm").split("---", 2)[2].splitlines())
    for text in HOSTILE:
        page = card(text)
        assert page.splitlines()[0] == "---"
        _, front, body = re.split(r"^---$", page, maxsplit=2, flags=re.MULTILINE)
        read = yaml.safe_load(front)
        assert read["model-index"][0]["name"] == " ".join(text.split())
        assert read["model-index"][0]["results"][0]["dataset"]["name"] == " ".join(text.split())
        assert (
            yaml.safe_load(ModelCard(page, ignore_metadata_errors=False).data.to_yaml())["tags"]
            == read["tags"]
        )
        # nothing opens a tag, an image, a link, a code block or a second front matter, outside our own lines
        assert len(body.splitlines()) == lines, text
        for line in body.splitlines():
            if line in calm or "](https://pypi.org" in line:
                continue
            assert not re.search(r"<[a-zA-Z/!?]", line), line
            assert not re.search(r"(?<!\\)[\[\]`|#]", re.sub(r"^\| | \|$| \| |^# |^## ", " ", line)), line
            assert not line.startswith(("---", "```", "~~~")), line
        rows = [line for line in body.splitlines() if line.startswith("| ") and line not in calm]
        assert len(rows) == 2
        assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows), rows


def test_figures_have_their_digits_and_a_dash_where_there_is_none():
    assert figure(0.61234) == "0.612"
    assert figure(0.6, digits=1) == "0.6"
    assert figure(None) == "–"
    (row,) = accuracy_rows({"x": ENTRY})
    assert row == {
        "name": "x",
        "value": "0.612",
        "low": "0.550",
        "high": "–",
        "n": "1,841",
        "n_groups": "220",
    }


def test_a_missing_field_is_an_error():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render("title_scorer", metadata="")


def test_the_base_stands_in_the_metadata_of_a_hub_model():
    front = yaml.safe_load(front_matter(base="Qwen/Qwen2.5-7B"))
    assert front["base_model"] == "Qwen/Qwen2.5-7B"
    assert front["base_model_relation"] == "adapter"
    assert "base_model" not in front_matter()
