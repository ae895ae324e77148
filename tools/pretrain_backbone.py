"""Pretrain a small Qwen2-architecture backbone and its own byte-level BPE tokenizer from plain text.

    python tools/pretrain_backbone.py --config tools/pretrain_titles.yaml --data_dir data

Requires the `train` extra. The result replaces pretrained weights if there are none: it shows the workflow
and not the quality of a pretrained Qwen. Each text is a document at positions 0, 1, ... that ends in
`<|im_end|>`, as task heads read it. Documents are packed: batches grouped by length learned less.
"""

import hashlib
import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from trl import TrlParser

from qwen_task_heads.errors import Problem, TaskHeadsError, run_recipe

ASSETS = Path(__file__).parents[1] / "qwen_task_heads" / "assets"


@dataclass
class PretrainArguments:
    """Options of the texts and of the size of the model; the others are `TrainingArguments`."""

    texts: list[str] = field(default_factory=list, metadata={"help": "file.jsonl:column[,column]"})
    data_dir: str = field(default=".", metadata={"help": "folder that `texts` are relative to"})
    bpe_size: int = field(default=5000, metadata={"help": "byte-level BPE tokens, without control tokens"})
    hidden_size: int = 192
    num_hidden_layers: int = 2
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    intermediate_size: int = 512
    max_position_embeddings: int = 8192
    block_size: int = field(default=256, metadata={"help": "tokens in a row of packed documents"})


def read_texts(specs: list[str], *, data_dir: str) -> tuple[list[str], list[dict]]:
    """Return the texts, distinct within a file, and the provenance of each file."""
    texts, files, problems = [], [], []
    refused = partial(Problem, "--texts", expected="file.jsonl:column")
    for name, _, columns in (spec.rpartition(":") for spec in specs):
        path, distinct = Path(data_dir, name), {}
        content = path.read_bytes() if path.is_file() else b""
        if not content:
            problems.append(refused(f"no text in {path}", fix="correct the path", code="path-not-found"))
        for number, row in enumerate(map(json.loads, content.splitlines()), 1):
            for column in columns.split(","):
                if column in row:
                    distinct[row[column].removeprefix("<title>").removesuffix("</title>").strip()] = None
                    continue
                problem, expected = f"no column {column!r}", f"one of {', '.join(row)}"
                fix, code = "correct --texts", "column-missing"
                problems.append(Problem(f"{path}:{number}", problem, expected, fix, code=code))
        texts += distinct
        digest = hashlib.sha256(content).hexdigest()
        files.append({"file": name, "columns": columns, "texts": len(distinct), "sha256": digest})
    if problems or not texts:
        raise TaskHeadsError(problems or refused("found no texts", fix="name files", code="option-missing"))
    return texts, files


def train_tokenizer(texts: list[str], *, bpe_size: int, max_length: int) -> Qwen2Tokenizer:
    """Train a byte-level BPE with the pre-tokenizer of Qwen, and append its control tokens in order."""
    # Without a Lowercase: AutoTokenizer rebuilds Qwen2Tokenizer for this model type, which has none.
    qwen, bpe = Qwen2Tokenizer().backend_tokenizer, Tokenizer(models.BPE())
    bpe.normalizer, bpe.pre_tokenizer, bpe.decoder = qwen.normalizer, qwen.pre_tokenizer, qwen.decoder
    trainer = trainers.BpeTrainer(vocab_size=bpe_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(texts, trainer)
    added = json.loads((ASSETS / "qwen_added_tokens.json").read_text())
    bpe.add_tokens([AddedToken(**token, normalized=False) for token in added])
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": max_length}
    return Qwen2Tokenizer(tokenizer_object=bpe, chat_template=(ASSETS / "chatml.jinja").read_text(), **names)


def pack(documents: list[list[int]], *, size: int) -> list[dict[str, torch.Tensor]]:
    """Split the documents into rows of `size` tokens; positions restart with each document."""
    stream = torch.tensor([(token, place) for text in documents for place, token in enumerate(text)])
    ids, places = stream[: max(len(stream) // size, 1) * size].T
    labels = ids.masked_fill(places == 0, -100)  # a first token does not depend on the previous document
    columns = {"input_ids": ids, "position_ids": places, "labels": labels}
    return [{name: all_[i : i + size] for name, all_ in columns.items()} for i in range(0, len(ids), size)]


def main() -> None:
    """Train the tokenizer and the model, and save both with their provenance."""
    args, training = TrlParser((PretrainArguments, transformers.TrainingArguments)).parse_args_and_config()
    started, out = time.monotonic(), Path(training.output_dir)
    transformers.set_seed(training.seed)
    texts, files = read_texts(args.texts, data_dir=args.data_dir)
    tokenizer = train_tokenizer(texts, bpe_size=args.bpe_size, max_length=args.max_position_embeddings)
    size = {k: v for k, v in asdict(args).items() if k not in ("texts", "data_dir", "bpe_size", "block_size")}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen2Config(vocab_size=len(tokenizer), tie_word_embeddings=True, use_cache=False, **size, **ids)
    model = Qwen2ForCausalLM(config)  # a cache would let the documents of a row attend to each other
    documents = [[*text, tokenizer.eos_token_id] for text in tokenizer(texts).input_ids]
    rows = pack(random.sample(documents, len(documents)), size=args.block_size)
    result = transformers.Trainer(model, training, train_dataset=rows).train()
    config.use_cache = True
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    # Eight bytes of SHA-256 per text show whether a given text was used in training.
    hashes = sorted({hashlib.sha256(text.encode()).digest()[:8] for text in texts})
    np.save(out / "text_hashes.npy", np.frombuffer(b"".join(hashes), dtype=">u8"))
    run = {"seed": training.seed, "steps": result.global_step, "train_loss": result.training_loss}
    run |= {"tokens": sum(map(len, documents)), "minutes": round((time.monotonic() - started) / 60)}
    run |= {"parameters": model.num_parameters(), "torch": torch.__version__, "files": files}
    made = sorted(f for f in out.iterdir() if f.is_file() and f.name != "provenance.json")
    run["sha256"] = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in made}
    (out / "provenance.json").write_text(json.dumps(run, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_recipe(main))
