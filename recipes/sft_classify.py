"""Train a chat model to write the label of a text, and score every label from its own tokens.

qth label --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --use_peft --dtype bfloat16 \
    --dataset_name reviews.jsonl --output_dir runs/reviews
qth label --config fudan_news_sft --dataset_name train.jsonl --test_dataset test.jsonl \
    --output_dir runs/news
accelerate launch recipes/sft_classify.py  # the embedded sample and backbone
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[train]"]
# ///

import sys

from qwen_task_heads import AnswerTrainer, GenerativeRun, run_recipe


def main() -> None:
    """Train and save a generative classifier, and report its metrics."""
    run = GenerativeRun.from_command_line()
    run.read_datasets()  # before the model: most runs fail at their data
    model, tokenizer = run.load_model()
    train, dev = run.tokenize()
    trainer = AnswerTrainer(
        model,
        train_dataset=train,
        eval_dataset=dev,
        processing_class=tokenizer,
        **run.trainer_options(),  # arguments, LoRA, the scorer of labels, callbacks
    )
    run.train(trainer)  # or resume
    run.finish(trainer)  # save, evaluate with baselines, write the card, publish


if __name__ == "__main__":
    sys.exit(run_recipe(main))
