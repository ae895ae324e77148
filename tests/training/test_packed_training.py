"""Test that 20 packed steps give the losses, gradient norms and weights of padded batches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from qwen_task_heads import adapter_config, build
from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.models import load_tokenizer
from qwen_task_heads.tokenization.collators import group_dataset, pair_dataset, text_dataset
from qwen_task_heads.tokenization.templates import Template, bind_template, compile_template
from qwen_task_heads.training.classifier_arguments import ClassifierConfig
from qwen_task_heads.training.classifier_trainer import ClassifierTrainer
from qwen_task_heads.training.title_arguments import TitleConfig
from qwen_task_heads.training.title_trainer import TitleTrainer

NOUNS = ("rest", "work", "bread", "music", "rain", "trains", "dogs", "money", "sleep", "books", "tea", "maps")
BRIEF = "Which of the titles do readers open? "
STEPS = 20
TITLES = [
    f"{what} {noun} {'again and again ' * (n % 4)}"
    for n, noun in enumerate(NOUNS)
    for what in ("Good", "Bad")
]


def data_of(kind: str, *, base: str, config: Any) -> tuple[Any, Any]:
    """Return a data set of rows with a shared prefix, and its tokenizer."""
    tokenizer = load_tokenizer(base)
    prompts = [f"An article of many words about {noun}, written for those who know of it." for noun in NOUNS]
    if kind == "texts":
        bind_template(tokenizer, config, template=Template(before=BRIEF))
        texts = [TextExample(text=title, target=n % 2) for n, title in enumerate(TITLES)]
        return text_dataset(texts, tokenizer=tokenizer, config=config, num_labels=2)[0], tokenizer
    compile_template(tokenizer, template=Template(before=BRIEF), model_type="qwen2", max_length=120)
    encode = {"tokenizer": tokenizer, "max_length": 120}
    if kind == "pairs":
        pairs = [
            PairExample(prompt=prompt, chosen=good, rejected=bad)
            for prompt, good, bad in zip(prompts, TITLES[::2], TITLES[1::2], strict=True)
        ]
        return pair_dataset(pairs, **encode)[0], tokenizer
    groups = [
        GroupExample(
            titles=tuple(TITLES[2 * n : 2 * n + 2 + n % 3]),
            clicks=(9, 5, 3, 1)[: 2 + n % 3],
            impressions=(100,) * (2 + n % 3),
            prompt=prompt,
            group=f"g{n}",
        )
        for n, prompt in enumerate(prompts[:-1])
    ]
    return group_dataset(groups, **encode)[0], tokenizer


def run_of(kind: str, model: Any, *, data: Any, tokenizer: Any, folder: Path, lora: bool) -> Any:
    options = {
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "eval_strategy": "no",
        "seed": 1,
        "save_strategy": "no",
        "lr_scheduler_type": "constant",
        "dataloader_pin_memory": False,
    }
    adapter = (
        adapter_config(model, r=4, dropout=0.0) if lora else None
    )  # random draws depend on the shape of a batch
    known = {"train_dataset": data, "processing_class": tokenizer, "peft_config": adapter}
    if kind == "texts":
        trainer: Any = ClassifierTrainer(model, args=TrainingArguments(str(folder), **options), **known)
    else:
        args = TitleConfig(str(folder), **options, load_best_model_at_end=False)
        trainer = TitleTrainer(
            model, args=args, loss="plackett_luce" if kind == "groups" else "bradley_terry", **known
        )
    trainer.train()
    return trainer


def logged(trainer: Any, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


FAMILIES = ("qwen2", "qwen3", "llama")
DEFAULT = [
    ("texts", "qwen2", False),
    ("texts", "qwen3", True),
    ("pairs", "qwen3", False),
    ("pairs", "llama", True),
    ("groups", "llama", False),
    ("groups", "qwen2", True),
]
ALL = [
    (kind, family, lora)
    for kind in ("texts", "pairs", "groups")
    for family in FAMILIES
    for lora in (False, True)
]


@pytest.mark.parametrize(
    ("kind", "family", "lora"),
    [*DEFAULT, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in DEFAULT)],
)
def test_twenty_steps_equal_those_of_padded_batches(
    bases: dict[str, str], tmp_path: Path, kind: str, family: str, lora: bool
) -> None:
    torch.manual_seed(0)
    task = (
        {"task": "pooled_classifier", "labels": ["a", "b"], "max_seq_length": 120} if kind == "texts" else {}
    )
    first = build(bases[family], **task)
    data, tokenizer = data_of(kind, base=bases[family], config=first.config)
    runs = []
    for packing in (False, True):
        model = copy.deepcopy(first)
        model.packing = packing
        known = {"data": data, "tokenizer": tokenizer, "lora": lora}
        runs.append(run_of(kind, model, folder=tmp_path / str(packing), **known))
    padded, packed = runs
    assert padded.throughput.result.avoided == 0
    assert packed.throughput.result.avoided > 0.3
    assert packed.throughput.result.real == padded.throughput.result.real
    for key in ("loss", "grad_norm"):
        assert len(logged(padded, key)) == STEPS
        assert logged(packed, key) == pytest.approx(logged(padded, key), abs=1e-5, rel=1e-5), key
    moved = max(
        (a - b).abs().max() for a, b in zip(padded.model.parameters(), packed.model.parameters(), strict=True)
    )
    assert moved <= 1e-4


@pytest.mark.parametrize("kind", ["texts", "pairs"])
def test_options_of_a_run_reach_the_model(bases: dict[str, str], tmp_path: Path, kind: str) -> None:
    task = (
        {"task": "pooled_classifier", "labels": ["a", "b"], "max_seq_length": 120} if kind == "texts" else {}
    )
    model = build(bases["qwen2"], **task)
    data, tokenizer = data_of(kind, base=bases["qwen2"], config=model.config)
    config = ClassifierConfig if kind == "texts" else TitleConfig
    args = config(
        str(tmp_path),
        max_steps=1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        dataloader_pin_memory=False,
        packing=False,
        freeze_embeddings=True,
        learning_rate=1e-2,
    )
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = (ClassifierTrainer if kind == "texts" else TitleTrainer)(
        model, args=args, train_dataset=data, processing_class=tokenizer
    )
    trainer.train()
    assert trainer.throughput.result.avoided == 0
    stays = [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])]
    assert stays == ["model.embed_tokens.weight"]
