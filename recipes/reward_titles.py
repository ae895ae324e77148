"""Train a title scorer on pairs or groups of titles.

qth titles --config quick_start
qth titles --model_name_or_path Qwen/Qwen2.5-7B-Instruct --use_peft --dtype bfloat16 \
    --dataset_name clicks.jsonl --output_dir runs/clicks
accelerate launch recipes/reward_titles.py  # the embedded sample and backbone
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[train]"]
# ///

import sys

from qwen_task_heads import TitleRun, TitleTrainer, run_recipe


def main() -> None:
    """Train and save a title scorer, and report its metrics."""
    run = TitleRun.from_command_line()
    run.read_datasets()  # before the model: most runs fail at their data
    model, tokenizer = run.load_model()
    train, dev = run.tokenize(tokenizer)
    trainer = TitleTrainer(
        model,
        train_dataset=train,
        eval_dataset=dev,
        processing_class=tokenizer,
        **run.trainer_options(model),  # arguments, LoRA, loss, callbacks
    )
    run.train(trainer)  # or resume
    run.finish(trainer)  # save, evaluate with baselines, write the card, publish


if __name__ == "__main__":
    sys.exit(run_recipe(main))
