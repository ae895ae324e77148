"""Train a title scorer on pairs or groups of titles.

Requires: pip install "qwen-task-heads[train]"

accelerate launch recipes/reward_titles.py --config recipes/configs/quick_start.yaml --output_dir runs/titles
accelerate launch recipes/reward_titles.py --model_name_or_path Qwen/Qwen2.5-7B-Instruct --use_peft \
    --dtype bfloat16 --dataset_name clicks.jsonl --output_dir runs/clicks
"""

import sys
import time

from transformers import set_seed
from trl import get_quantization_config

from qwen_task_heads.backbones import locate
from qwen_task_heads.batching.collators import group_dataset, pair_dataset
from qwen_task_heads.batching.text import Template, compile_template
from qwen_task_heads.data.title_sets import read_title_sets
from qwen_task_heads.errors import Problem, TaskHeadsError, run_recipe
from qwen_task_heads.models import adapter_config, build, load_tokenizer
from qwen_task_heads.publishing.manifest import settings_of
from qwen_task_heads.publishing.outcome import Run, finish_titles
from qwen_task_heads.training.arguments import parse_title_arguments
from qwen_task_heads.training.callbacks import SwappedLabelsCallback, check_world
from qwen_task_heads.training.checkpoints import SealingCallback, open_output
from qwen_task_heads.training.group_losses import GROUP_LOSSES
from qwen_task_heads.training.trainers import TitleTrainer


def main() -> None:
    # Parse
    titles, args, model_args = parse_title_arguments()
    check_world(titles.num_processes, running=args.world_size)
    resume = open_output(args.output_dir, args.resume_from_checkpoint)
    is_main = args.process_index == 0

    # Load: data first, because it is where most runs fail
    sets = read_title_sets(
        titles.dataset_name,
        dev=titles.dev_dataset,
        test=titles.test_dataset,
        dev_fraction=titles.dev_fraction,
        hub=titles.hub,
        bad_rows=titles.bad_rows,
        min_impressions=titles.min_impressions,
        max_p_value=titles.max_p_value,
    )
    grouped = titles.loss in GROUP_LOSSES
    if grouped and not sets.groups:
        found = f"loss {titles.loss!r} with pairs only"
        accepted = "a file of arms (headline, clicks, impressions, test_id)"
        raise TaskHeadsError(
            Problem("--loss", found, accepted, "give such a file, or choose a loss over pairs")
        )
    set_seed(args.seed)  # before the head is drawn
    quantization = get_quantization_config(model_args)
    quantized = {} if quantization is None else {"quantization_config": quantization}
    backbone = locate(model_args.model_name_or_path)
    model = build(
        backbone,
        revision=None if model_args.model_revision == "main" else model_args.model_revision,
        dtype=model_args.dtype or "float32",
        trust_remote_code=args.trust_remote_code,
        model_kwargs={"attn_implementation": model_args.attn_implementation, **quantized},
        **titles.head_options(),
    )
    tokenizer = load_tokenizer(backbone, revision=model.config.backbone_revision)
    template = Template(before=titles.instruction, between=titles.between, after=titles.boundary)
    compile_template(
        tokenizer, template=template, model_type=model.model.config.model_type, max_length=args.max_length
    )
    encode = {"tokenizer": tokenizer, "max_length": args.max_length}
    train, cut = group_dataset(sets.groups, **encode) if grouped else pair_dataset(sets.train, **encode)
    dev, _ = pair_dataset(sets.dev, **encode)
    sets.lines.append(cut.line())
    if is_main:
        print("\n".join(sets.lines), flush=True)

    # Train
    adapter = None
    if model_args.use_peft or titles.freeze_backbone:
        adapter = adapter_config(
            model,
            r=model_args.lora_r,
            alpha=model_args.lora_alpha,
            dropout=model_args.lora_dropout,
            targets=model_args.lora_target_modules,
            dora=model_args.use_dora,
            rslora=model_args.use_rslora,
            head_only=titles.freeze_backbone,
            modules_to_save=model_args.lora_modules_to_save,
            task_type=model_args.lora_task_type,
        )
    limit, args.save_total_limit = args.save_total_limit, None  # rotation waits for the seal
    trainer = TitleTrainer(
        model,
        args=args,
        train_dataset=train,
        eval_dataset=dev,
        processing_class=tokenizer,
        peft_config=adapter,
        loss=titles.loss,
        loss_options=titles.loss_options(),
        train_sources=[group.sources[0] for group in sets.groups]
        if grouped
        else [p.source for p in sets.train],
        eval_sources=[pair.source for pair in sets.dev],
        callbacks=[
            SealingCallback(limit),
            SwappedLabelsCallback(len(sets.dev), groups=len({pair.group for pair in sets.dev})),
        ],
    )
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=resume)

    # Save, measure and say
    if is_main:
        settings = settings_of(
            args, {**vars(titles), "base": model_args.model_name_or_path, "lora": adapter is not None}
        )
        run = Run(
            sets=sets, settings=settings, log_history=trainer.state.log_history, seconds=time.monotonic() - start,
            seed=args.seed, backbone=model_args.model_name_or_path,
        )  # fmt: skip
        finish_titles(
            trainer.accelerator.unwrap_model(trainer.model),
            tokenizer=tokenizer,
            folder=args.output_dir,
            run=run,
        )
    trainer.accelerator.wait_for_everyone()
    if args.world_size > 1:
        trainer.accelerator.end_training()


if __name__ == "__main__":
    sys.exit(run_recipe(main))
