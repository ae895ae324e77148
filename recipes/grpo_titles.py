r"""Train a title generator by GRPO, with a trained title scorer as its reward.

qth grpo --config grpo_titles --reward_model runs/titles --dataset_name articles.jsonl \
    --output_dir runs/generator
accelerate launch recipes/grpo_titles.py --model_name_or_path Qwen/Qwen3-0.6B \
    --reward_model runs/titles --dataset_name articles.jsonl --output_dir runs/generator

Each row of the data has a text. The generator writes a title for it, which `TitleReward` scores. A generator
can exploit its scorer: check the titles with high rewards (`titles.jsonl`), `title_characters` and
`without_title`.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[train]"]
# ///

import sys

from qwen_task_heads import TitleGeneratorRun, run_recipe


def main() -> None:
    """Train a title generator and report its rewards."""
    run = TitleGeneratorRun.from_command_line()
    texts, tokenizer = run.read_texts()
    model = run.load_model()

    from qwen_task_heads import TitleGeneratorTrainer  # imports trl, after the options are checked

    trainer = TitleGeneratorTrainer(
        model,
        train_dataset=texts,
        processing_class=tokenizer,
        **run.trainer_options(),  # arguments, LoRA, reward, card, trackers
    )
    run.train(trainer)
    run.finish(trainer)  # save, write the card and the titles, print the rewards


if __name__ == "__main__":
    sys.exit(run_recipe(main))
