"""The embedded backbone: it loads, is small, has the tokens of Qwen, and was trained on no held-out text."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import qwen_task_heads
from qwen_task_heads.errors import TaskHeadsError

ROOT = Path(qwen_task_heads.__file__).parent.parent
ASSETS = ROOT / "qwen_task_heads" / "assets"
BACKBONE = ASSETS / "backbone"
# Spelled out here, not read from the asset: the list that the tool uses is what is on trial.
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
PLAIN = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]


def read(split: str, sample: str = "upworthy") -> list[dict]:
    return [json.loads(line) for line in (ASSETS / sample / f"{split}.jsonl").read_text().splitlines()]


def headlines(split: str) -> set[str]:
    return {row[side] for row in read(split) for side in ("chosen", "rejected")}


def learned(texts: set[str], folder: Path) -> set[str]:
    hashes = set(np.load(folder / "text_hashes.npy").tolist())
    return {t for t in texts if int.from_bytes(hashlib.sha256(t.encode()).digest()[:8], "big") in hashes}


def test_the_assets_are_at_most_12_mib() -> None:
    assert sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file()) <= 12 * 2**20


def test_the_backbone_loads_as_both_auto_classes_with_the_same_weights() -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    causal = AutoModelForCausalLM.from_pretrained(BACKBONE, dtype=torch.float32).eval()
    plain = AutoModel.from_pretrained(BACKBONE, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = plain(input_ids=ids).last_hidden_state  # (1, 4, H)
        torch.testing.assert_close(causal.lm_head(hidden), causal(input_ids=ids).logits, rtol=0, atol=0)
    assert plain.config.model_type == "qwen2"
    assert plain.config.max_position_embeddings > 4096
    assert plain.config.hidden_size // plain.config.num_attention_heads % 8 == 0


def test_the_language_model_learned_english_titles() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BACKBONE)
    model = AutoModelForCausalLM.from_pretrained(BACKBONE, dtype=torch.float32).eval()
    losses = []
    for title in sorted(headlines("dev"))[:20]:
        ids = torch.tensor([tokenizer(title).input_ids])
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=ids).loss.item())
    assert np.mean(losses) < 0.75 * np.log(model.config.vocab_size)  # a random start sits at the logarithm


def test_the_tokenizer_is_qwens_fast_class_with_all_its_added_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BACKBONE)
    assert tokenizer.is_fast
    assert type(tokenizer).__name__.startswith("Qwen2Tokenizer")
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    assert added == dict.fromkeys(SPECIAL, True) | dict.fromkeys(PLAIN, False)
    for token in SPECIAL + PLAIN:
        assert len(tokenizer(token).input_ids) == 1


@pytest.mark.parametrize(
    "text",
    [
        "You'll NEVER Guess  What's In\tThis Box — 7 Photos\n",
        "标题党:他打开箱子,惊呆了",
        "業界No.1、草刈り業者チェーン",
        "🙂👩‍👩‍👧 Ünïcödé № ½",
        "مرحبا \u200f(א)",
        "\x00\x7f<title>&amp;</title>",
        "",
    ],
)
def test_text_round_trips(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BACKBONE)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_chat_template_is_chatml() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BACKBONE)
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_no_held_out_headline_was_used_in_training() -> None:
    assert learned(headlines("train"), BACKBONE) == headlines("train")  # else the check below shows nothing
    assert learned(headlines("dev") | headlines("test_public"), BACKBONE) == set()


def test_the_provenance_has_the_hashes_of_the_files() -> None:
    provenance = json.loads((BACKBONE / "provenance.json").read_text())
    found = {
        name: hashlib.sha256((BACKBONE / name).read_bytes()).hexdigest() for name in provenance["sha256"]
    }
    assert found == provenance["sha256"]
    assert set(found) | {"provenance.json"} == {f.name for f in BACKBONE.iterdir()}
    assert all("dev" not in file["file"] and "test" not in file["file"] for file in provenance["files"])


def test_the_sample_has_clicks_and_shares_no_headline_between_splits() -> None:
    sizes = {split: len(read(split)) for split in ("train", "dev", "test_public")}
    assert sizes == {"train": 2679, "dev": 466, "test_public": 841}
    for split in sizes:
        for row in read(split):
            assert row["chosen"] != row["rejected"]
            assert row["chosen"]
            assert row["rejected"]
            chosen, rejected = (row[f"{s}_clicks"] / row[f"{s}_impressions"] for s in ("chosen", "rejected"))
            assert 1 >= chosen > rejected >= 0
    train, dev, test = (headlines(split) for split in sizes)
    assert not train & dev | train & test | dev & test


def run_main(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    module.main()


def test_the_tool_trains_a_backbone_on_any_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"a": f"<title>Was {n} really better than {n * n}?</title>", "b": f"猫が{n}匹"} for n in range(40)
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    run_main(
        "pretrain_backbone", monkeypatch, "--config", str(ROOT / "tools/pretrain_titles.yaml"),
        "--data_dir", str(tmp_path), "--texts", "texts.jsonl:a,b", "--bpe_size", "270", "--hidden_size", "16",
        "--num_attention_heads", "2", "--num_key_value_heads", "1", "--intermediate_size", "16",
        "--max_steps", "2", "--per_device_train_batch_size", "8", "--output_dir", str(out),
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert len(tokenizer) == 270 + len(SPECIAL) + len(PLAIN)
    assert AutoModel.from_pretrained(out).config.vocab_size == len(tokenizer)
    given = {"Was 3 really better than 9?", "猫が5匹"}
    assert learned(given | {"猫が50匹"}, out) == given
    assert json.loads((out / "provenance.json").read_text())["files"][0]["texts"] == 80


def test_all_missing_files_and_columns_are_in_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n{"headline": "b"}\n')
    with pytest.raises(TaskHeadsError, match=r"(?s)texts\.jsonl:2: no column 'text'.*gone\.jsonl"):
        run_main(
            "pretrain_backbone", monkeypatch, "--texts", "texts.jsonl:text", "gone.jsonl:text",
            "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--use_cpu",
            "--bf16", "false",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_no_held_out_text_of_the_classification_sample_was_used_in_training() -> None:
    splits = ("train", "dev", "test_public")
    texts = {split: {row["text"] for row in read(split, "banking77")} for split in splits}
    assert learned(texts["dev"] | texts["test_public"], BACKBONE) == set()
    assert learned(texts["train"], BACKBONE)  # the test can see texts that were learned


def test_the_sample_tool_writes_the_sample_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"text": "Where is my transfer?", "label": 5, "label_name": "pending_transfer"}
    other = {"text": "I lost my card", "label": 7, "label_name": "lost_or_stolen_card"}
    for split in ("train", "dev", "test_public"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(kept) + "\n" + json.dumps(other) + "\n")
    words = ["--sample", "texts", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    run_main("make_sample", monkeypatch, *words)
    rows = (tmp_path / "out" / "dev.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == [{"text": kept["text"], "label": "pending_transfer"}]
    with pytest.raises(TaskHeadsError, match="--sample"):
        run_main("make_sample", monkeypatch, "--sample", "none", "--data_dir", str(tmp_path))


def test_the_sample_tool_writes_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = read("dev")[0] | {"z": 3.0}
    row["chosen"] = f"<title>{row['chosen']}</title>"
    for split in ("train", "dev", "test_public"):
        (tmp_path / f"pairs_{split}.jsonl").write_text(json.dumps(row) + "\n")
    run_main("make_sample", monkeypatch, "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "train.jsonl").read_text()) == read("dev")[0]
