"""Record the golden folders: what a release saves, and the logits that every later one has to give.

    python tests/golden/record.py

Run it once at a release; the folders are never written again. `test_golden.py` opens them. Each is the result
of a recipe on small real data: an adapter on the embedded backbone, a full classifier and a generative one on
a random backbone of two layers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

import qwen_task_heads as qth

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RELEASE = "0.1"
TEXTS = ["My card has not arrived yet.", "How do I top up by cheque?", "Why was I charged a fee?"]
LABELS = ("activate_my_card", "card_arrival", "top_up_by_bank_transfer_charge")
KEPT = (  # of a run: its metrics, plots and predictions are not part of the format
    "adapter", "README.md", "chat_template.jinja", "config.json", "generation_config.json", "manifest.json",
    "model.safetensors", "tokenizer.json", "tokenizer_config.json", "reference.json", "label_prompt.json",
)  # fmt: skip


def tiny_base(folder: Path) -> str:
    """Save a random decoder of two layers with the embedded tokenizer; return its folder."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=5026,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        initializer_range=0.15,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    qth.load_tokenizer("embedded").save_pretrained(folder)
    return str(folder)


def train(recipe: str, folder: Path, *words: str) -> None:
    """Train for three steps on a CPU."""
    options = ["--max_steps", "3", "--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true"]
    command = [sys.executable, str(ROOT / "recipes" / recipe), "--output_dir", str(folder), *options, *words]
    subprocess.run(command, cwd=ROOT, check=True)


def main() -> None:
    """Train, copy what belongs to the format, and record the logits."""
    target = HERE / RELEASE
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        base = tiny_base(root / "base")
        rows = root / "rows.jsonl"
        rows.write_text(
            "".join(
                json.dumps({"text": f"{text} ({n})", "label": label}) + "\n"
                for n in range(12)
                for text, label in zip(TEXTS, LABELS, strict=True)
            )
        )
        data = ["--dataset_name", str(rows)]
        train("reward_titles.py", root / "adapter", "--use_peft", "--lora_r", "2")
        train("classify.py", root / "full", *data, "--model_name_or_path", base, "--pooling", "mean")
        train("sft_classify.py", root / "generative", *data, "--model_name_or_path", base)
        logits: dict[str, object] = {}
        for name in ("adapter", "full", "generative"):
            shutil.rmtree(target / name, ignore_errors=True)
            (target / name).mkdir(parents=True)
            for path in sorted((root / name).iterdir()):
                if path.name in KEPT or path.suffix == ".py":
                    copy = shutil.copytree if path.is_dir() else shutil.copy
                    copy(path, target / name / path.name)
            logits[name] = answers(target / name, generative=name == "generative")
    (target / "logits.json").write_text(json.dumps({"texts": TEXTS, **logits}, indent=1) + "\n")


def answers(folder: Path, *, generative: bool) -> list[list[float]]:
    """Return the logits of `TEXTS`, or the log-probabilities of labels, (3, K)."""
    if generative:
        return qth.LabelScorer.from_pretrained(folder).log_scores(TEXTS).tolist()
    scorer = qth.Scorer(folder, progress=False)
    if scorer.is_title_scorer:
        return [[float(score)] for score in scorer.score(TEXTS)]
    return scorer.logits(TEXTS).tolist()


if __name__ == "__main__":
    main()
