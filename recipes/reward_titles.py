"""Train a title scorer on pairs or groups of titles.

Requires: pip install "qwen-task-heads[train]"

accelerate launch recipes/reward_titles.py  # the embedded sample and backbone
accelerate launch recipes/reward_titles.py --model_name_or_path Qwen/Qwen2.5-7B-Instruct --use_peft \
    --dtype bfloat16 --dataset_name clicks.jsonl --output_dir runs/clicks
"""

import sys
from dataclasses import replace
from functools import partial

from transformers import set_seed

from qwen_task_heads.data.sequences import pick, sources_of
from qwen_task_heads.data.title_datasets import read_title_sets
from qwen_task_heads.errors import Problem, TaskHeadsError, run_recipe
from qwen_task_heads.models import adapter_config, build, load_tokenizer
from qwen_task_heads.publishing.target import publish_target_of
from qwen_task_heads.reports.records import record_of
from qwen_task_heads.reports.title_report import Run, finish_titles
from qwen_task_heads.tokenization.collators import group_dataset, pair_dataset
from qwen_task_heads.tokenization.equal_rows import check_equal
from qwen_task_heads.tokenization.templates import compile_template
from qwen_task_heads.tracking.callbacks import track
from qwen_task_heads.training.arguments import run_identity
from qwen_task_heads.training.callbacks import SwappedLabelsCallback, check_world
from qwen_task_heads.training.checkpoints import VerifiedCheckpointCallback, open_output
from qwen_task_heads.training.checkpoints import train as train_or_resume
from qwen_task_heads.training.group_losses import GROUP_LOSSES, unused_signals
from qwen_task_heads.training.run_checks import resume_hazards
from qwen_task_heads.training.sharding import whole_model
from qwen_task_heads.training.title_arguments import parse_title_arguments
from qwen_task_heads.training.title_trainer import TitleTrainer
from qwen_task_heads.training.warm_start import load_head, take_template


def main() -> None:
    """Train and save a title scorer, and report its metrics."""
    titles, args, model_args = parse_title_arguments()
    args.announce(titles, model_args)
    check_world(titles.num_processes, running=args.world_size)
    target, is_main = publish_target_of(titles, args, model_args), args.process_index == 0
    trackers = track(args, task=titles)

    # Most runs fail at their data, and a resumed run requires the same data: read them first
    data = read_title_sets(titles.dataset_name, **titles.data_options())
    identity = {**run_identity(titles, args, model_args), **data.fingerprint()}
    resume = open_output(args.output_dir, args.resume_from_checkpoint, run=identity)
    grouped = titles.loss in GROUP_LOSSES
    if grouped and not data.groups:
        problem = f"found {titles.loss!r} with pairs only"
        expected = "a file of arms (headline, clicks, impressions, test_id)"
        fix = "give such a file, or choose a loss over pairs"
        raise TaskHeadsError(Problem("--loss", problem, expected, fix, code="dataset-mismatch"))
    set_seed(args.seed)  # before the head is drawn
    backbone = model_args.model_name_or_path
    make = partial(build, backbone, **model_args.load_options(), **titles.head_options(), hub=titles.hub)
    model = make()
    tokenizer = load_tokenizer(backbone, revision=model.config.backbone_revision, hub=titles.hub)
    family, template = model.model.config.model_type, titles.template()
    take_template(tokenizer, None if template else titles.init_head, hub=titles.hub)
    compile_template(tokenizer, template=template, model_type=family, max_length=args.max_length)
    load_head(model, titles.init_head, tokenizer=tokenizer, hub=titles.hub)
    encode = {"tokenizer": tokenizer, "max_length": args.max_length}
    train, cut = (
        group_dataset(data.groups, **encode)
        if grouped
        else pair_dataset(data.train, drop_equal=True, **encode)
    )
    (dev, of_dev), (_, of_test) = pair_dataset(data.dev, **encode), pair_dataset(data.test, **encode)
    equal = {"train": cut.equal, "dev": of_dev.equal, "test": of_test.equal}
    data.lines.extend([cut.line(), *check_equal(equal, option="--max_length ")])
    if is_main:
        notes = [*resume_hazards(args), unused_signals(titles.loss, train.column_names)]
        print("\n".join([*data.lines, *(f"note: {note}" for note in notes if note)]), flush=True)

    # Train
    adapter = None
    if model_args.use_peft or titles.freeze_backbone:
        adapter = adapter_config(model, head_only=titles.freeze_backbone, **model_args.adapter_options())
    limit, args.save_total_limit = args.save_total_limit, None  # the callback deletes old checkpoints
    swapped = SwappedLabelsCallback(len(data.dev), groups=len({pair.group for pair in data.dev}))
    trainer = TitleTrainer(
        model,
        args=args,
        train_dataset=train,
        eval_dataset=dev,
        processing_class=tokenizer,
        peft_config=adapter,
        loss=titles.loss,
        loss_options=titles.loss_options(),
        train_sources=sources_of(data.groups if grouped else data.train),
        eval_sources=sources_of(data.dev),
        callbacks=[VerifiedCheckpointCallback(limit, run=identity), swapped, *trackers],
    )
    train_or_resume(trainer, checkpoint=resume, scored=len(data.dev) + len(data.test))

    # Save, evaluate and report
    trained = whole_model(trainer, make=make, peft_config=adapter)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    if is_main:  # evaluation and publishing may outlast the timeout of other processes
        facts = {"model_args": model_args, "config": model.config, "adapter": adapter}
        record = record_of(trainer, task=titles, resumed=resume is not None, **facts)
        if not grouped:  # without the equal pairs
            data = replace(data, train=pick(data.train, train.with_format("numpy")["row"][:]))
        run = Run(sets=data, warning=swapped.finding, **record)
        finish_titles(trained, tokenizer=tokenizer, folder=args.output_dir, run=run)
        if target:
            target.push(args.output_dir)


if __name__ == "__main__":
    sys.exit(run_recipe(main))
