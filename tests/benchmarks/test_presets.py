"""Tests of the table of presets and their sources."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import presets  # noqa: E402

SOURCES = yaml.safe_load(presets.SOURCES.read_text(encoding="utf-8"))
PUBLISHED = [name for name in SOURCES if name != "own"]


def test_the_page_equals_the_generated_table() -> None:
    assert presets.RESULT.read_text(encoding="utf-8") == presets.table(), "run python benchmarks/presets.py"


@pytest.mark.parametrize("preset", PUBLISHED)
def test_every_option_is_equal_or_explained(preset: str) -> None:
    rows = presets.rows(preset, SOURCES[preset])
    given = yaml.safe_load((presets.CONFIGS / f"{preset}.yaml").read_text(encoding="utf-8"))
    assert {*given, *presets.COMMON} <= {row[0] for row in rows}
    assert SOURCES[preset]["sources"]
    for option, theirs, ours, reason in rows:
        assert reason, option
        assert (reason == "equal") == (theirs == ours and theirs != "not stated"), option


def test_a_difference_without_a_reason_and_a_missing_option_raise_errors() -> None:
    entry = SOURCES["sentiment_3b_r64"]
    for values, named in (
        (entry["values"] | {"lora_r": {"theirs": 8}}, "lora_r"),
        (entry["values"] | {"lora_r": {}}, "lora_r"),
        ({name: value for name, value in entry["values"].items() if name != "pooling"}, "pooling"),
        (entry["values"] | {"lora_r": {"theirs": 64, "fused": None}}, "lora_r"),
    ):
        with pytest.raises(ValueError, match=named):
            presets.rows("sentiment_3b_r64", entry | {"values": values})


def test_presets_name_the_instruct_bases_of_their_sources() -> None:
    bases = {name: presets.in_force(name)["model_name_or_path"] for name in PUBLISHED}
    assert {name: base for name, base in bases.items() if "Qwen2.5-" in base} == {
        "n24news_7b_lora": "Qwen/Qwen2.5-7B-Instruct",
        "ad_titles_7b": "Qwen/Qwen2.5-7B-Instruct",
        "longnews_05b_full": "Qwen/Qwen2.5-0.5B-Instruct",
        "sentiment_3b_r64": "Qwen/Qwen2.5-3B-Instruct",
        "transcripts_3b_r96": "Qwen/Qwen2.5-3B-Instruct",
    }
