"""Train a title generator by GRPO, with a trained title scorer as its reward.

Requires: pip install "qwen-task-heads[train]"

accelerate launch recipes/grpo_titles.py --config recipes/configs/grpo_titles.yaml \
    --reward_model runs/titles --dataset_name articles.jsonl --output_dir runs/generator

Each row of the data has a text. The generator writes a title for it, which `TitleReward` scores. A generator
can exploit its scorer: check the titles with high rewards (`titles.jsonl`), `title_characters` and
`without_title`.
"""

import sys
import time
from functools import partial
from pathlib import Path

import yaml

from qwen_task_heads.errors import Problem, TaskHeadsError, run_recipe

# Required options: expected value and fix.
NEEDED = {
    "--model_name_or_path": ("id or folder of a chat model, or embedded", "name the model to train"),
    "--reward_model": ("folder or repo id of a title scorer", "train one by recipes/reward_titles.py"),
    "--dataset_name": ("a file, folder or dataset id with a text in each row", "name the texts"),
    "--output_dir": ("a folder", "name one for the run"),
}


def check_named(words: list[str]) -> None:
    """Refuse a command without the options of `NEEDED` before trl is imported, which takes seconds."""
    words = [part for word in words for part in word.split("=", 1)]
    named = {word.replace("-", "_").removeprefix("__") for word in words if word.startswith("--")}
    if "help" in named or "-h" in words:
        return
    file = Path(words[words.index("--config") + 1]) if "--config" in words[:-1] else None
    try:
        known = yaml.safe_load(file.read_text(encoding="utf-8")) if file else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem, fix = f"found {file}: {error}", "check the name"
        unread = Problem("--config", problem, "a YAML file", fix, code="file-format")
        raise TaskHeadsError(unread) from error
    named |= set(known) if isinstance(known, dict) else set()
    missing = [
        Problem(option, "found nothing", expected, fix, code="option-missing")
        for option, (expected, fix) in NEEDED.items()
        if option[2:] not in named
    ]
    if missing:
        raise TaskHeadsError(missing)


def prompts(task, *, chat):
    """Return rows of `prompt` and `context`, the text that the scorer may read."""
    from datasets import Dataset

    from qwen_task_heads.data.sources import read_rows

    rows, problems = [], []
    for where, row in read_rows(task.dataset_name):
        text = None if isinstance(row, Problem) else row.get(task.text_column)
        if isinstance(row, Problem):
            problems.append(row)
        elif not isinstance(text, str) or not text.strip():
            problem, expected = f"found no text in column {task.text_column!r}", f"columns: {', '.join(row)}"
            fix = "name it by --text_column"
            problems.append(Problem(where, problem, expected, fix, code="column-missing"))
        else:
            content = task.instruction.replace("{text}", text)
            prompt = [{"role": "user", "content": content}] if chat else content
            rows.append({"prompt": prompt, "context": text})
    if problems or not rows:
        where, fix = task.dataset_name, "name another source"
        empty = Problem(where, "found no rows", "at least one", fix, code="file-empty")
        raise TaskHeadsError(problems or empty)
    return Dataset.from_list(rows)


def main() -> None:
    """Train a title generator and report its rewards."""
    check_named(sys.argv[1:])
    from transformers import set_seed
    from trl import get_peft_config

    from qwen_task_heads import TitleReward, load_tokenizer
    from qwen_task_heads.generators import load_generator
    from qwen_task_heads.reports.grpo_card import GeneratorRun, generator_card
    from qwen_task_heads.reports.grpo_report import finish_generator
    from qwen_task_heads.training.grpo_arguments import parse_title_generator_arguments
    from qwen_task_heads.training.grpo_trainer import TitleGeneratorTrainer
    from qwen_task_heads.training.run_checks import check_run

    task, args, model_args = parse_title_generator_arguments()
    set_seed(args.seed)
    context = "context" if task.with_context else None
    options = {"length_penalty": task.length_penalty, "context": context, "device": args.device}
    reward = TitleReward(task.reward_model, **options)
    where, revision = model_args.model_name_or_path, model_args.model_revision
    tokenizer = load_tokenizer(where, revision=revision)
    chat = tokenizer.chat_template is not None
    texts = prompts(task, chat=chat)
    model = load_generator(where, revision=revision, dtype=model_args.dtype or "auto")
    options = {"processing_class": tokenizer, "peft_config": get_peft_config(model_args)}
    run = GeneratorRun.of(task, args, model_args, texts=texts["context"], chat=chat)
    options["card"] = partial(generator_card, run, name=Path(args.output_dir).name)
    trainer = TitleGeneratorTrainer(model, reward_funcs=reward, args=args, train_dataset=texts, **options)
    check_run(trainer, save_total_limit=args.save_total_limit, loader=trainer.get_train_dataloader())
    start = time.monotonic()
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    if trainer.accelerator.is_main_process:
        seconds = time.monotonic() - start
        facts = {"texts": len(texts), "seconds": seconds, "folder": args.output_dir}
        finish_generator(trainer.state, reward.last, **facts)


if __name__ == "__main__":
    sys.exit(run_recipe(main))
