"""Train a title writer by GRPO, with a trained title scorer as its reward.

Requires: pip install "qwen-task-heads[train]"

accelerate launch recipes/grpo_titles.py --config recipes/configs/grpo_titles.yaml \
    --reward_model runs/titles --dataset_name articles.jsonl --output_dir runs/writer

Each row of the data holds a text; the writer is asked for its title and paid by `TitleReward`. A scorer can
be fooled: look at the titles it likes, and at `title_characters` and `without_title` in the log.
"""

import sys
import time
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser, get_peft_config

from qwen_task_heads import TitleReward
from qwen_task_heads.data.formats import read_rows
from qwen_task_heads.errors import Problem, TaskHeadsError, run_recipe


@dataclass
class WriterArguments:
    """Texts to write titles for, and the scorer that pays; the rest is trl's."""

    reward_model: str = field(metadata={"help": "Folder or repo id of a title scorer."})
    dataset_name: str = field(metadata={"help": "File, folder or data set id with a text in each row."})
    text_column: str = field(default="text", metadata={"help": "Column of the text."})
    instruction: str = field(
        default="Write one title for this text, inside <title> and </title>.\n\n{text}",
        metadata={"help": "What the writer is asked; {text} stands for the text."},
    )
    with_context: bool = field(default=False, metadata={"help": "The scorer reads the text beside a title."})
    length_penalty: float = field(default=0.0, metadata={"help": "0 to 1: of the scorer's taste for length."})


@dataclass
class WriterConfig(GRPOConfig):
    """trl's `GRPOConfig` with defaults for titles, which are short; bf16 only where there is a GPU."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder of the run."})
    max_completion_length: int | None = field(default=64, metadata={"help": "Tokens of a completion."})
    bf16: bool | None = field(default=None, metadata={"help": "bf16 autocast; on where there is a GPU."})
    gradient_checkpointing: bool | None = field(default=None, metadata={"help": "--activation_checkpointing"})
    save_strategy: str = field(default="no", metadata={"help": "Checkpoints: no, steps, epoch."})

    def __post_init__(self) -> None:
        if self.output_dir is None:
            problem = Problem("--output_dir", "found nothing", "accepted: a folder", "name one for the run")
            raise TaskHeadsError(problem)
        if self.push_to_hub or self.hub_token:  # trl would send training_args.bin, to everybody, unproven
            remedy = "read its titles first; then upload the folder without training_args.bin"
            raise TaskHeadsError(
                Problem("--push_to_hub", "found it", "accepted: no upload of a writer", remedy)
            )
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and not self.use_cpu
        super().__post_init__()


def prompts(task: WriterArguments, *, chat: bool) -> Dataset:
    """Rows of `prompt`, and `context`: the text that the scorer may read."""
    rows, problems = [], []
    for where, row in read_rows(task.dataset_name):
        text = None if isinstance(row, Problem) else row.get(task.text_column)
        if isinstance(row, Problem):
            problems.append(row)
        elif not isinstance(text, str) or not text.strip():
            found = f"found no text in column {task.text_column!r}"
            problems.append(Problem(where, found, f"columns: {', '.join(row)}", "name it by --text_column"))
        else:
            asked = task.instruction.replace("{text}", text)
            said = [{"role": "user", "content": asked}] if chat else asked
            rows.append({"prompt": said, "context": text})
    if problems or not rows:
        empty = Problem(task.dataset_name, "found no rows", "accepted: at least one", "name another source")
        raise TaskHeadsError(problems or empty)
    return Dataset.from_list(rows)


def main() -> None:
    """Parse, load, train, save, and say what the titles were paid."""
    try:
        parser = TrlParser((WriterArguments, WriterConfig, ModelConfig))
        task, args, model_args = parser.parse_args_and_config()
    except TaskHeadsError:
        raise
    except (ValueError, OSError) as error:
        problem = Problem("arguments", str(error), "accepted: values as in --help", "correct them")
        raise TaskHeadsError(problem) from error
    where, revision = model_args.model_name_or_path, model_args.model_revision
    if where is None:
        raise TaskHeadsError(Problem("--model_name_or_path", "found nothing", "a chat model", "name one"))
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(where, revision=revision, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(where, revision=revision, dtype=model_args.dtype or "auto")
    texts = prompts(task, chat=tokenizer.chat_template is not None)
    context = "context" if task.with_context else None
    options = {"length_penalty": task.length_penalty, "context": context, "device": args.device}
    reward = TitleReward(task.reward_model, **options)
    told = {"processing_class": tokenizer, "peft_config": get_peft_config(model_args)}
    trainer = GRPOTrainer(model, reward_funcs=reward, args=args, train_dataset=texts, **told)
    start = time.monotonic()
    trainer.train()
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        paid = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry] or [float("nan")]
        steps, seconds = trainer.state.global_step, time.monotonic() - start
        print(f"\nTrained a title writer for {steps} steps on {len(texts):,} texts in {seconds:.0f} s.")
        print(f"Mean reward: {paid[0]:.2f} at the first look, {paid[-1]:.2f} at the last (0: an average")
        print("title of the scorer's dev set, 1 a standard deviation better; no title gets -5 or less).")
        print(f"The writer is in {args.output_dir}. More reward is no better title yet: read some of them.")


if __name__ == "__main__":
    sys.exit(run_recipe(main))
