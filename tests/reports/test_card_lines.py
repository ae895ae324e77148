"""The loading code of cards runs as written, without warnings."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from clean_process import CleanProcess
from peft import LoraConfig

from qwen_task_heads import (
    LabelMap,
    LabelScorer,
    adapter_config,
    bind_template,
    build,
    load_tokenizer,
    merge,
    save,
)
from qwen_task_heads.adapters import with_adapter
from qwen_task_heads.generators import base_of, load_generator
from qwen_task_heads.pretrained import locate
from qwen_task_heads.reports.model_card import load_fields, render
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts
from qwen_task_heads.tokenization.templates import Template, compile_template

QUIET = "from transformers.utils import logging\nlogging.disable_progress_bar()\n"
KINDS = [("titles", "full"), ("titles", "adapter"), ("classifier", "full"), ("classifier", "adapter")]


@pytest.fixture(scope="module")
def saved(bases: Any, shake: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Return a model of each kind, saved as by a run."""
    root, found = tmp_path_factory.mktemp("cards"), {}
    for task, form in KINDS:
        tokenizer = load_tokenizer(bases["qwen2"])
        if task == "titles":
            model: Any = build(bases["qwen2"], head="mlp", head_sizes=[8])
            compile_template(tokenizer, template=Template(), model_type="qwen2", max_length=40)
        else:
            model = build(bases["qwen2"], task="pooled_classifier", labels=["a", "体育"], max_seq_length=40)
            bind_template(tokenizer, model.config, template=Template())
        if form == "adapter":
            model = with_adapter(model, adapter_config(model, r=4))
        found[task, form] = save(shake(model), tokenizer=tokenizer, folder=root / f"{task}-{form}")
    return found


def lines_of(task: str, form: str, *, repo: Path) -> str:
    """Return the Python code of the card's section on loading."""
    fields = load_fields(
        str(repo),
        hub="huggingface",
        revision=None,
        form="saved",
        is_adapter=form == "adapter",
        is_generative=False,
        ranking=task == "titles",
        has_pairs=False,
    )
    [lines] = re.findall(r"```python\n(.*?)```", render("load", **fields), re.DOTALL)
    return lines


@pytest.mark.parametrize(("task", "form"), KINDS)
def test_without_the_package_nothing_is_printed(
    saved: Any, clean: CleanProcess, task: str, form: str
) -> None:
    """An example is "You are using a model of type `title_scorer` to instantiate a model of type ``"."""
    folder = saved[task, form]
    lines = lines_of(task, form, repo=folder)
    assert "tokenizer = " in lines
    check = "ids = tokenizer(['A text'], return_tensors='pt')\nprint(model(**ids).logits.tolist())\n"
    printed = clean.run(f"{QUIET}{lines}{check}", folder=folder.parent)
    assert printed.startswith("[[")
    assert clean.logs[1].read_text() == ""


@pytest.mark.parametrize(("task", "form"), KINDS)
def test_with_the_package_nothing_is_printed(
    saved: Any, caplog: pytest.LogCaptureFixture, task: str, form: str
) -> None:
    for name in ("transformers", "peft", "qwen_task_heads"):
        logging.getLogger(name).addHandler(caplog.handler)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            exec(lines_of(task, form, repo=saved[task, form]), {})
            if form == "adapter":
                merge(str(saved[task, form]))
    finally:
        for name in ("transformers", "peft", "qwen_task_heads"):
            logging.getLogger(name).removeHandler(caplog.handler)
    assert [str(one.message) for one in warned] == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_generative_classifier_loads_without_a_warning(tmp_path: Path) -> None:
    model: Any = load_generator("embedded")
    tokenizer = load_tokenizer("embedded")
    prompts = AnswerPrompts(tokenizer, LabelMap(("sport", "trade")), model_type="qwen2")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        model = with_adapter(model, config)
        model.peft_config["default"].base_model_name_or_path = locate("embedded")
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        prompts.save(tmp_path, base=base_of("embedded").as_dict(), dtype="float32")
        LabelScorer.from_pretrained(str(tmp_path)).predict(["A match"])
    assert [str(one.message) for one in warned] == []
