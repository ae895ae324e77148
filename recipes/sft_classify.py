"""Fine-tune a chat model to generate the label of a text, and score every label by its tokens.

Requires: pip install "qwen-task-heads[train]"

accelerate launch recipes/sft_classify.py  # the embedded sample and backbone
accelerate launch recipes/sft_classify.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --use_peft \
    --dtype bfloat16 --dataset_name reviews.jsonl --output_dir runs/reviews
accelerate launch recipes/sft_classify.py --config recipes/configs/fudan_news_sft.yaml \
    --dataset_name train.jsonl --test_dataset test.jsonl --output_dir runs/news
"""

import sys
from functools import partial

from transformers import set_seed
from trl import get_peft_config

from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.errors import Problem, TaskHeadsError, run_recipe
from qwen_task_heads.generators import base_of, load_generator
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.models import load_tokenizer
from qwen_task_heads.publishing.target import publish_target_of
from qwen_task_heads.reports.generative_report import finish_answers
from qwen_task_heads.reports.records import record_of
from qwen_task_heads.reports.text_report import TextRun
from qwen_task_heads.tokenization.equal_rows import check_equal
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts
from qwen_task_heads.tracking.callbacks import track
from qwen_task_heads.training.arguments import run_identity
from qwen_task_heads.training.callbacks import check_world
from qwen_task_heads.training.checkpoints import (
    VerifiedCheckpointCallback,
    open_output,
    refuse_foreign_output,
)
from qwen_task_heads.training.checkpoints import train as train_or_resume
from qwen_task_heads.training.run_checks import resume_hazards
from qwen_task_heads.training.sft_arguments import parse_sft_arguments
from qwen_task_heads.training.sft_trainer import AnswerTrainer, answer_dataset, equal_answers
from qwen_task_heads.training.sharding import whole_model


def main() -> None:
    """Train and save a generative classifier, and report its metrics."""
    texts, args, model_args = parse_sft_arguments()
    args.announce(texts, model_args)
    check_world(texts.num_processes, running=args.world_size)
    target, is_main = publish_target_of(texts, args, model_args), args.process_index == 0
    trackers = track(args, task=texts)
    name, options = model_args.model_name_or_path, model_args.load_options()

    # Most runs fail at their data, and a resumed run requires the same data: read them first
    data = read_text_sets(texts.dataset_name, **texts.data_options())
    if data.problem_type != "single_label_classification":
        problem, fix = f"found {data.problem_type}", "train a head: recipes/classify.py"
        raise TaskHeadsError(
            Problem("--dataset_name", problem, "one label per text", fix, code="dataset-mismatch")
        )
    identity = {**run_identity(texts, args, model_args), **data.fingerprint()}
    refuse_foreign_output(args.output_dir, args.resume_from_checkpoint)

    # Model, prompts and token ids
    set_seed(args.seed)
    base = base_of(name, revision=options["revision"], hub=texts.hub)
    make = partial(load_generator, name, hub=texts.hub, **options)
    model = make()
    tokenizer = load_tokenizer(name, revision=options["revision"], hub=texts.hub)
    family = model.config.get_text_config().model_type
    prompts = AnswerPrompts(
        tokenizer, data.labels, model_type=family, **texts.prompt_options(data.labels, args.max_length)
    )
    scorer = LabelScorer(model, prompts=prompts, length_normalized=texts.length_normalized)
    (train, cut), (dev, _) = (answer_dataset(rows, prompts=prompts) for rows in (data.train, data.dev))
    splits = {"train": data.train, "dev": data.dev, "test": data.test}
    equal = {name: equal_answers(rows, prompts=prompts) for name, rows in splits.items()}
    data.lines.extend([cut, *check_equal(equal, option="--max_length ")])
    # Not earlier, so that an error above leaves no folder
    resume = open_output(args.output_dir, args.resume_from_checkpoint, run=identity)
    if is_main:
        notes = [str(hazard) for hazard in resume_hazards(args)]
        if scorer.fallback_reason:
            notes.append(f"labels are scored one by one: {scorer.fallback_reason}")
        print("\n".join([*data.lines, *(f"note: {note}" for note in notes)]), flush=True)

    # Train
    adapter = get_peft_config(model_args)
    limit, args.save_total_limit = args.save_total_limit, None  # the callback deletes old checkpoints
    trainer = AnswerTrainer(
        model,
        args=args,
        train_dataset=train,
        eval_dataset=dev,
        processing_class=tokenizer,
        peft_config=adapter,
        scorer=scorer,
        dev=data.dev,
        callbacks=[VerifiedCheckpointCallback(limit, run=identity), *trackers],
    )
    train_or_resume(trainer, checkpoint=resume)

    # Save, evaluate and report
    trained = whole_model(trainer, make=make, peft_config=adapter)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    if is_main:  # evaluation and publishing may outlast the timeout of other processes
        facts = {"model_args": model_args, "config": trained.config, "adapter": trainer.is_adapter}
        record = record_of(trainer, task=texts, resumed=resume is not None, **facts)
        run = TextRun(sets=data, cut=cut, **record)
        finish_answers(
            trained, scorer=scorer, tokenizer=tokenizer, folder=args.output_dir, run=run, base=base
        )
        if target:
            target.push(args.output_dir)


if __name__ == "__main__":
    sys.exit(run_recipe(main))
