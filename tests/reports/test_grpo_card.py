"""Card of a title generator: sections, front matter, values of the run, escaping."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendered_card import Rendered

from qwen_task_heads.reports.grpo_card import GeneratorRun, generator_card

RUN = GeneratorRun(
    base="Qwen/Qwen2.5-0.5B-Instruct",
    reward_model="me/title-scorer",
    dataset="articles.jsonl",
    column="text",
    instruction="Write one title.\n\n{text}",
    rows=1234,
    sha256="0123456789abcdef" * 4,
    chat=True,
    max_tokens=64,
    settings={"learning_rate": 1e-06, "num_generations": 8},
)
LOG = [
    {"loss": 0.1, "step": 0},
    {"reward": -0.16, "without_title": 0.25, "title_characters": 22.0, "step": 5},
    {"reward": 1.0, "step": 10},
    {"reward": 2.49, "without_title": 0.0, "title_characters": 16.5, "step": 200},
]
SECTIONS = ["Model details", "Intended use", "Training data", "Evaluation", "Limitations"]
HOSTILE = 'a | b <script>x</script> `c` "\n---\nlicense: evil'


def card_of(run: GeneratorRun = RUN, **changes: Any) -> str:
    return generator_card(run, **{"name": "titles", "log_history": LOG, "steps": 200, **changes})


def front_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n", 2)[1])


def rows_of(card: str, title: str) -> dict[str, str]:
    return dict(row for table in Rendered(card).titles[title] for row in table)


def test_sections_and_front_matter_are_those_of_the_hub() -> None:
    card = card_of()
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == SECTIONS
    front = front_of(card)
    assert front["base_model"] == RUN.base
    assert front["base_model_relation"] == "finetune"
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-generation"
    assert {"title-generator", "grpo", "qwen-task-heads"} <= {*front["tags"]}
    assert "model-index" not in front
    assert Rendered(card).heading == "titles"
    adapter = front_of(card_of(replace(RUN, adapter=True)))
    assert (adapter["library_name"], adapter["base_model_relation"]) == ("peft", "adapter")


def test_values_are_those_of_the_run() -> None:
    card = card_of()
    assert rows_of(card, "Evaluation") | {} == {
        "metric": "value",
        "mean reward": "-0.160 at step 5, 2.490 at step 200",
        "mean length of a title, in characters": "22.000 at step 5, 16.500 at step 200",
        "share of completions without a title": "0.250 at step 5, 0.000 at step 200",
        "reward on texts outside of training": "not evaluated",
        "preference of readers": "not evaluated",
    }
    training = rows_of(card, "Training data")
    assert (training["steps"], training["learning_rate"]) == ("200", "1e-06")
    details = rows_of(card, "Model details")
    assert (details["base model"], details["reward model"]) == (RUN.base, RUN.reward_model)
    assert "1,234 texts" in card
    once = rows_of(card_of(log_history=LOG[:2]), "Evaluation")
    assert once["mean reward"] == "-0.160 at step 5"
    never = rows_of(card_of(log_history=[]), "Evaluation")
    assert {value for name, value in never.items() if name != "metric"} == {"not evaluated"}


def test_the_card_has_no_placeholder_and_no_local_folder(tmp_path: Path) -> None:
    for name in ("base", "scorer", "articles.jsonl"):
        (tmp_path / name).mkdir()
    run = replace(
        RUN,
        base=str(tmp_path / "base"),
        reward_model=str(tmp_path / "scorer"),
        dataset=str(tmp_path / "articles.jsonl"),
    )
    card = card_of(run)
    assert str(tmp_path) not in card
    assert "base_model" not in front_of(card)
    for other in (run, RUN, replace(RUN, base="embedded", chat=False)):
        card = card_of(other)
        assert not re.search(
            r"more information needed|path/to|TODO|your[-_ ]|\bNone\b|\[\[|\{\{", card, re.IGNORECASE
        )


def test_the_code_of_the_card_is_valid_python() -> None:
    for chat in (True, False):
        (block,) = re.findall(
            r"```python\n(.*?)```", card_of(replace(RUN, chat=chat), name='a "b" \\'), re.DOTALL
        )
        compile(block, "card", "exec")


@pytest.mark.parametrize("option", ["base", "reward_model", "dataset", "column", "instruction"])
def test_hostile_names_are_escaped(option: str) -> None:
    calm, card = card_of(), card_of(replace(RUN, **{option: HOSTILE}), name=HOSTILE)
    assert set(front_of(card)) == set(front_of(calm))
    assert {tag for tag, _ in Rendered(card).tags} == {tag for tag, _ in Rendered(calm).tags}
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == SECTIONS
