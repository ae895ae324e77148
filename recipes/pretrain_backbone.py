"""Pretrain a small Qwen2-architecture backbone and its own byte-level BPE tokenizer from plain text.

    python recipes/pretrain_backbone.py --config recipes/configs/pretrain_titles.yaml --data_dir data

Needs the `train` extra. It makes the backbone in `qwen_task_heads/assets/`: a stand-in for users without
weights or network, which shows the workflow and not what a pretrained Qwen can do. The tokenizer has Qwen's
pre-tokenizer, special tokens and chat template, so what works on it works on Qwen. Each text is a document at
positions 0, 1, ... that ends in `<|im_end|>`, as the heads will read it; documents share a row without seeing
each other.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import DataCollatorWithFlattening, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer, Trainer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from trl import TrlParser

from qwen_task_heads.errors import Problem, TaskHeadsError

# All of Qwen2, Qwen2.5 and Qwen3, in the order of their ids; Qwen marks the first row as special tokens.
SPECIAL = "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end "
SPECIAL += "vision_start vision_end vision_pad image_pad video_pad"
PLAIN = "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> "
PLAIN += "<|file_sep|> <tool_response> </tool_response> <think> </think>"
CHATML = """{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""


@dataclass
class TextArguments:
    """What to read, and how many tokens to make of it."""

    texts: list[str] = field(
        default_factory=list, metadata={"help": "file.jsonl:column[,column]; repeatable"}
    )
    data_dir: str = field(default=".", metadata={"help": "folder that `texts` are relative to"})
    bpe_size: int = field(default=5000, metadata={"help": "byte-level BPE tokens, Qwen's own come on top"})


@dataclass
class SizeArguments:
    """Fields of `Qwen2Config`; the rest of the command line is transformers' `TrainingArguments`."""

    hidden_size: int = 192
    num_hidden_layers: int = 2
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    intermediate_size: int = 512
    max_position_embeddings: int = 8192


def read_texts(specs: list[str], *, data_dir: str) -> tuple[list[str], list[dict]]:
    """Return the texts, distinct within a file (one named twice counts twice), and a row of provenance each.

    Raises:
        TaskHeadsError: for files and columns that are not there, all of them at once.
    """
    texts, files, problems = [], [], []
    for name, _, columns in (spec.rpartition(":") for spec in specs):
        path, found = Path(data_dir, name), {}
        if not path.is_file():
            problems.append(
                Problem(f"--texts {name}:{columns}", f"no file {path}", "file.jsonl:column", "fix it")
            )
            continue
        for number, row in enumerate(map(json.loads, path.read_bytes().splitlines()), 1):
            if missing := [column for column in columns.split(",") if column not in row]:
                there = f"columns: {', '.join(row)}"
                problems.append(Problem(f"{path}:{number}", f"no column {missing}", there, "correct --texts"))
                continue
            tagged = [row[column] for column in columns.split(",")]
            found |= {text.removeprefix("<title>").removesuffix("</title>").strip(): None for text in tagged}
        texts += found
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        files.append({"file": name, "columns": columns, "texts": len(found), "sha256": sha256})
    if problems or not texts:
        raise TaskHeadsError(
            problems or Problem("--texts", "no text", "file.jsonl:column", "name some files")
        )
    return texts, files


def train_tokenizer(texts: list[str], *, bpe_size: int, max_length: int) -> Qwen2Tokenizer:
    """Train a byte-level BPE split as Qwen's. Case is kept: AutoTokenizer rebuilds Qwen2Tokenizer for every
    folder of model type qwen2, which drops a Lowercase normalizer without a word.
    """
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.decoder = normalizers.NFC(), decoders.ByteLevel()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=bpe_size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(f"<|{t}|>", normalized=False, special=True) for t in SPECIAL.split()])
    bpe.add_tokens([AddedToken(t, normalized=False, special=False) for t in PLAIN.split()])
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": max_length}
    return Qwen2Tokenizer(tokenizer_object=bpe, chat_template=CHATML, **names)


def main() -> None:
    """Parse, train the tokenizer, train the model, save both with their provenance."""
    parser = TrlParser((TextArguments, SizeArguments, transformers.TrainingArguments))
    text_args, size, training = parser.parse_args_and_config()
    started, out = time.monotonic(), Path(training.output_dir)
    transformers.set_seed(training.seed)
    texts, files = read_texts(text_args.texts, data_dir=text_args.data_dir)
    tokenizer = train_tokenizer(texts, bpe_size=text_args.bpe_size, max_length=size.max_position_embeddings)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    # A cache would switch off, silently, the attention that keeps the documents of a row apart.
    config = Qwen2Config(vocab_size=len(tokenizer), **asdict(size), **ids, tie_word_embeddings=True, use_cache=False)
    model = Qwen2ForCausalLM(config)
    rows = [{"input_ids": [*ids, tokenizer.eos_token_id]} for ids in tokenizer(texts).input_ids]
    result = Trainer(model, training, DataCollatorWithFlattening(), train_dataset=rows).train()

    model.config.use_cache = True
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    # Eight bytes of SHA-256 per text: anyone can check that a given text was not learned from.
    hashes = sorted({hashlib.sha256(text.encode()).digest()[:8] for text in texts})
    np.save(out / "text_hashes.npy", np.frombuffer(b"".join(hashes), dtype=">u8"))
    run = {
        "seed": training.seed,
        "epochs": training.num_train_epochs,
        "learning_rate": training.learning_rate,
    }
    run |= {"train_loss": result.training_loss, "minutes": round((time.monotonic() - started) / 60, 1)}
    run |= {"tokens": sum(len(row["input_ids"]) for row in rows), "parameters": model.num_parameters()}
    run |= {"files": files, "torch": torch.__version__, "transformers": transformers.__version__}
    run["sha256"] = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(out.glob("*.*"))}
    (out / "provenance.json").write_text(json.dumps(run, indent=2) + "\n")
    print(f"{out}: {run['parameters']:,} parameters, {run['minutes']} minutes")


if __name__ == "__main__":
    main()
