"""Train a text classifier, regressor or ordinal model on labelled texts.

Requires: pip install "qwen-task-heads[train]"

accelerate launch recipes/classify.py  # the embedded sample and backbone
accelerate launch recipes/classify.py --use_peft --dataset_name news/ --labels labels.yaml --output_dir runs/n
"""

import sys
from functools import partial

from transformers import EarlyStoppingCallback, set_seed

from qwen_task_heads.data.sequences import sources_of
from qwen_task_heads.errors import run_recipe
from qwen_task_heads.metrics.classification import dev_metrics
from qwen_task_heads.models import adapter_config, build, load_tokenizer, saved_task
from qwen_task_heads.publishing.target import publish_target_of
from qwen_task_heads.reports.records import record_of
from qwen_task_heads.reports.text_report import TextRun, finish_texts
from qwen_task_heads.tokenization.collators import TextCollator, text_datasets
from qwen_task_heads.tokenization.templates import bind_template
from qwen_task_heads.tracking.callbacks import track
from qwen_task_heads.training.added_labels import read_sets_for
from qwen_task_heads.training.arguments import run_identity
from qwen_task_heads.training.callbacks import check_world
from qwen_task_heads.training.checkpoints import VerifiedCheckpointCallback, open_output, resume_hazards
from qwen_task_heads.training.checkpoints import train as train_or_resume
from qwen_task_heads.training.classifier_arguments import MAX_SEQ_LENGTH, parse_classifier_arguments
from qwen_task_heads.training.classifier_trainer import ClassifierTrainer
from qwen_task_heads.training.sharding import whole_model
from qwen_task_heads.training.warm_start import load_head, take_template


def main() -> None:
    """Parse, load, train, save, and say how good it is."""
    texts, args, model_args = parse_classifier_arguments()
    args.announce(texts, model_args)
    check_world(texts.num_processes, running=args.world_size)
    destination, is_main = publish_target_of(texts, args, model_args), args.process_index == 0
    trackers = track(args, task=texts)
    base, where = model_args.model_name_or_path, {"hub": texts.hub}
    backbone, revision = base, model_args.load_options()["revision"]

    # Data first: it is where most runs fail, and a run is resumed on the same data only
    known = saved_task(backbone, revision=revision, **where)
    sets = read_sets_for(texts.dataset_name, known, **texts.data_options())
    args.choose_metric(sets.problem_type)
    identity = {**run_identity(texts, args, model_args), **sets.fingerprint()}
    resume = open_output(args.output_dir, args.resume_from_checkpoint, run=identity)

    # Model, template and token ids
    set_seed(args.seed)  # before the head is drawn
    make = partial(
        build,
        backbone,
        task="pooled_classifier",
        labels=sets.labels.names,
        problem_type=sets.problem_type,
        **sets.labels.described(),
        **model_args.load_options(),
        **({} if known else {"max_seq_length": MAX_SEQ_LENGTH}) | texts.head_options(),
        **where,
    )
    model = make()
    tokenizer = load_tokenizer(backbone, revision=model.config.backbone_revision, **where)
    pairs, template = sets.have_pairs, texts.template_for(sets.labels)
    take_template(tokenizer, None if template else texts.init_head, **where)
    bind_template(tokenizer, model.config, template=template, pairs=pairs)
    load_head(model, texts.init_head, tokenizer=tokenizer, lines=sets.lines, **where)
    encode = {"tokenizer": tokenizer, "config": model.config, "num_labels": len(sets.labels)}
    (train, cut), (dev, _), lines = text_datasets(sets.train, sets.dev, sets.test, **encode)

    # Train
    adapter = None
    if model_args.use_peft or texts.freeze_backbone:
        adapter = adapter_config(model, head_only=texts.freeze_backbone, **model_args.adapter_options())
    limit, args.save_total_limit = args.save_total_limit, None  # rotation waits for the seal
    patience = texts.early_stopping_patience
    trainer = ClassifierTrainer(
        model,
        args=args,
        train_dataset=train,
        eval_dataset=dev,
        processing_class=tokenizer,
        data_collator=TextCollator(tokenizer.pad_token_id, sets.problem_type),
        compute_metrics=dev_metrics(sets.problem_type),
        peft_config=adapter,
        loss=texts.loss,
        loss_options=texts.loss_options(),
        token_dropout=texts.token_dropout,
        train_sources=sources_of(sets.train),
        eval_sources=sources_of(sets.dev),
        callbacks=[VerifiedCheckpointCallback(limit, run=identity), *trackers]
        + [EarlyStoppingCallback(patience)] * bool(patience),
    )
    sets.lines.extend([cut.line(), *lines, *trainer.loss.messages])
    if is_main:
        hazards = [*resume_hazards(args, early_stopping=patience is not None), *texts.notes()]
        print("\n".join([*sets.lines, *(f"note: {hazard}" for hazard in hazards)]), flush=True)
    train_or_resume(trainer, checkpoint=resume, scored=len(sets.dev) + len(sets.test))

    # Save, measure and say
    trained = whole_model(trainer, make=make, peft_config=adapter)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    if is_main:  # the others are done: measuring and publishing may outlast their timeout
        account = record_of(
            trainer, task=texts, model_args=model_args, config=model.config, adapter=adapter,
            resumed=resume is not None,
        )  # fmt: skip
        run = TextRun(sets=sets, cut=cut.line(), **account)
        finish_texts(trained, tokenizer=tokenizer, folder=args.output_dir, run=run)
        if destination:
            destination.push(args.output_dir)


if __name__ == "__main__":
    sys.exit(run_recipe(main))
