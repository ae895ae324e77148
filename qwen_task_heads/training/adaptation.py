"""Domain adaptation: continue the language modelling of a backbone on texts of the domain, `qth adapt`.

The tokens of all texts are joined, with the end token between them, and cut into blocks, so that no token is
padding. Training is in full or by LoRA, which is merged at the end: the folder is a plain decoder that every
command takes as `--model_name_or_path`. The perplexity on held-out texts is measured before and after.
Source: Gururangan et al. 2020, "Don't stop pretraining", arXiv:2004.10964.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, set_seed

from qwen_task_heads.adapters import quiet_peft
from qwen_task_heads.data.datasets import read_split
from qwen_task_heads.data.embedded_datasets import locate_dataset
from qwen_task_heads.data.text_readers import TextInput, read_inputs
from qwen_task_heads.errors import Problem, TaskHeadsError, least_problems
from qwen_task_heads.generators import load_generator
from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.models import load_tokenizer
from qwen_task_heads.sources.file_options import options_of
from qwen_task_heads.sources.keys import hash_keys, text_key
from qwen_task_heads.training.checkpoints import refuse_foreign_output
from qwen_task_heads.training.command_lines import parse_groups

HELD_OUT = 20  # every 20th text by its hash is held out
RATES = {"lora": 2e-4, "full": 2e-5}  # learning rates of a run that states none


@dataclass(frozen=True, kw_only=True)
class AdaptationReport:
    """What was trained.

    Args:
        folder: plain decoder with its tokenizer.
        texts: number of training texts.
        tokens: number of training tokens, of an epoch.
        held_out: number of held-out texts.
        before, after: perplexity per token of the held-out texts.
    """

    folder: Path
    texts: int
    tokens: int
    held_out: int
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"perplexity of {self.held_out:,} held-out texts: {self.before:.2f} before, {self.after:.2f} "
            f"after training on {self.texts:,} texts ({self.tokens:,} tokens)\nModel: {self.folder}\n"
            f"Next: qth classify --model_name_or_path {self.folder}"
        )


@dataclass(kw_only=True)
class AdaptationArguments:
    """Options of `adapt`.

    Args:
        dataset_name: file, folder or dataset id of texts; labels are not read.
        output_dir: folder of the adapted decoder.
        model_name_or_path: decoder to continue.
        use_peft: train LoRA of rank `lora_r`, which is merged at the end.
        learning_rate: 2e-4 with LoRA, 2e-5 in full if None.
        num_train_epochs, per_device_train_batch_size, seed, bf16, use_cpu: of transformers.
        block_size: tokens of a block.
        hub, encoding: as in training.
    """

    dataset_name: str = field(metadata={"help": "File, folder or data set id of texts; labels are not read."})
    output_dir: str = field(metadata={"help": "Folder of the adapted decoder."})
    model_name_or_path: str = field(default="embedded", metadata={"help": "Decoder to continue."})
    use_peft: bool = field(default=False, metadata={"help": "Train LoRA, which is merged at the end."})
    lora_r: int = field(default=16, metadata={"help": "Rank of LoRA."})
    learning_rate: float | None = field(default=None, metadata={"help": "2e-4 with LoRA, 2e-5 in full."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the texts."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Blocks of a step."})
    block_size: int = field(default=256, metadata={"help": "Tokens of a block."})
    seed: int = field(default=0, metadata={"help": "Seed of the order and of LoRA."})
    bf16: bool = field(default=False, metadata={"help": "Train under autocast in bfloat16."})
    use_cpu: bool = field(default=False, metadata={"help": "Train on the CPU, even if there is a GPU."})
    hub: str = field(default=HUGGINGFACE, metadata={"choices": list(HUBS), "help": "Hub to load from."})
    encoding: str = field(default="utf-8", metadata={"help": "Encoding of text files, such as gb18030."})

    @classmethod
    def from_command_line(cls, argv: Sequence[str] | None = None) -> AdaptationArguments:
        """Parse a command line and its `--config` file; `argv` is None for the words of this process."""
        (options,) = parse_groups([cls], argv)
        return options


def adapt(options: AdaptationArguments) -> AdaptationReport:
    """Train, merge and save a decoder on texts.

    Raises:
        TaskHeadsError: an output folder with files, rows without a text, too few texts, or numbers out of
            range.
    """
    _check(options)
    refuse_foreign_output(options.output_dir, None)
    train, held_out = _read(options)
    set_seed(options.seed)
    tokenizer = load_tokenizer(options.model_name_or_path, hub=options.hub)
    model = load_generator(options.model_name_or_path, hub=options.hub, dtype="float32")
    blocks = blocks_of(train, tokenizer, size=options.block_size)
    unseen = blocks_of(held_out, tokenizer, size=options.block_size)
    if options.use_peft:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=options.lora_r, lora_alpha=2 * options.lora_r, target_modules="all-linear")
        with quiet_peft():
            model = get_peft_model(model, lora)
    rate = options.learning_rate or RATES["lora" if options.use_peft else "full"]
    arguments = TrainingArguments(
        output_dir=options.output_dir,
        learning_rate=rate,
        num_train_epochs=options.num_train_epochs,
        per_device_train_batch_size=options.per_device_train_batch_size,
        per_device_eval_batch_size=options.per_device_train_batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.01,
        seed=options.seed,
        bf16=options.bf16,
        use_cpu=options.use_cpu,
        save_strategy="no",
        report_to=[],
        dataloader_pin_memory=not options.use_cpu and torch.cuda.is_available(),
    )
    trainer = Trainer(model, arguments, train_dataset=blocks, eval_dataset=unseen)  # type: ignore[arg-type]
    before = math.exp(trainer.evaluate()["eval_loss"])
    trainer.train()
    after = math.exp(trainer.evaluate()["eval_loss"])
    plain = model.merge_and_unload() if options.use_peft else model
    folder = Path(options.output_dir)
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return AdaptationReport(
        folder=folder,
        texts=len(train),
        tokens=sum(len(block["input_ids"]) for block in blocks),
        held_out=len(held_out),
        before=before,
        after=after,
    )


def blocks_of(texts: Sequence[str], tokenizer: Any, *, size: int) -> list[dict[str, torch.Tensor]]:
    """Return blocks of `input_ids` and `labels` (size,) of the joined texts; the last tokens are dropped.

    A text shorter than a block in total gives one shorter block.

    Example:
        >>> from qwen_task_heads import load_tokenizer
        >>> blocks = blocks_of(["a text"] * 50, load_tokenizer("embedded"), size=32)
        >>> {tuple(block["input_ids"].shape) for block in blocks}
        {(32,)}
    """
    ids: list[int] = []
    for row in tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]:
        ids += [*row, tokenizer.eos_token_id]
    count = max(1, len(ids) // size)
    parts = [torch.tensor(ids[size * number : size * (number + 1)]) for number in range(count)]
    return [{"input_ids": part, "labels": part.clone()} for part in parts]


def _check(options: AdaptationArguments) -> None:
    least = {"lora_r": 1, "per_device_train_batch_size": 1, "block_size": 2}
    problems = least_problems(options, least)
    if not options.num_train_epochs > 0:
        found = f"found {options.num_train_epochs:g}"
        problems.append(Problem("--num_train_epochs", found, "more than 0", "raise it", code="option-range"))
    if problems:
        raise TaskHeadsError(problems)


def _read(options: AdaptationArguments) -> tuple[list[str], list[str]]:
    """Return training and held-out texts, without repeats."""
    problems: list[Problem] = []
    texts: dict[str, str] = {}
    files = options_of(options.encoding, ())

    def read(place: str, split: str | None) -> list[Any]:
        return [item for _, item in read_inputs(place, split=split, hub=options.hub, options=files)]

    for item in read_split("train", locate_dataset(options.dataset_name, "texts"), read=read):
        if isinstance(item, TextInput):
            text = f"{item.text}\n{item.text_b}" if item.text_b else item.text
            texts.setdefault(text_key(text), text)
        else:
            problems.append(item)
    if not problems and len(texts) < 2 * HELD_OUT:
        found, fix = f"found {len(texts)} different texts", "give more texts"
        where, expected = options.dataset_name, f"{2 * HELD_OUT} or more"
        problems.append(Problem(where, found, expected, fix, code="rows-too-few"))
    if problems:
        raise TaskHeadsError(problems)
    order = hash_keys(texts).argsort(kind="stable")
    every = [*texts.values()]
    count = max(1, len(every) // HELD_OUT)
    return [every[row] for row in sorted(order[count:])], [every[row] for row in sorted(order[:count])]
