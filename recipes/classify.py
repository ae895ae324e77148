"""Train a text classifier, regressor or ordinal model on labelled texts.

qth classify --use_peft --dataset_name news/ --labels labels.yaml --output_dir runs/news
accelerate launch recipes/classify.py  # the embedded sample and backbone
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[train]"]
# ///

import sys

from qwen_task_heads import ClassifierRun, ClassifierTrainer, run_recipe


def main() -> None:
    """Train and save a model, and report its metrics."""
    run = ClassifierRun.from_command_line()
    run.read_datasets()  # before the model: most runs fail at their data
    model, tokenizer = run.load_model()
    train, dev = run.tokenize(tokenizer)
    trainer = ClassifierTrainer(
        model,
        train_dataset=train,
        eval_dataset=dev,
        processing_class=tokenizer,
        **run.trainer_options(model, tokenizer),  # arguments, LoRA, loss, metrics, callbacks
    )
    run.train(trainer)  # or resume
    run.finish(trainer)  # save, evaluate with baselines, write the card, publish


if __name__ == "__main__":
    sys.exit(run_recipe(main))
