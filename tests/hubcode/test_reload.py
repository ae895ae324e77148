"""A saved model loads with equal weights and logits in a process without the package.

All combinations are saved once, and loaded and compared by one child process in which
`import qwen_task_heads` fails. Each comparison is a separate test.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from clean_process import CleanProcess
from equality import LOGITS, assert_same_logits, assert_same_model
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

from qwen_task_heads import TitleScorer, adapter_config, build, load, merge, save

FAMILIES = ("qwen2", "qwen3", "llama")
HEADS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"head": "mlp", "head_sizes": [24, 8], "pooling": "attention"},
}
ADAPTERS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"dora": True}, "head_only": {"head_only": True}}
KINDS = ("full", *ADAPTERS, "merged")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES = ["-".join(parts) for parts in itertools.product(FAMILIES, HEADS, KINDS, DTYPES)]
# By default every kind on Qwen2, either head and dtype, and every family with a full model and an adapter.
QUICK = [f"qwen2-linear-{kind}-fp32" for kind in KINDS] + [
    *("qwen2-linear-full-bf16", "qwen2-mlp-lora-bf16", "qwen2-mlp-merged-bf16"),
    *("qwen3-linear-lora-fp32", "qwen3-mlp-full-fp32"),
    *("llama-linear-full-fp32", "llama-mlp-lora-fp32"),
]
REST = [name for name in NAMES if name not in QUICK]
TEXTS = ["A plain title", "One Weird Title That You Will Not Believe", "短い題"]

CHILD = r"""
import json, sys
from pathlib import Path
import torch
from equality import logit_difference
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
root = sys.argv[1]
expected = load_file(f"{root}/expected.safetensors")
batch = load_file(f"{root}/batch.safetensors")
texts = json.loads(Path(root, "texts.json").read_text())
tokenizer = None
answer = {}
for name, logits in expected.items():
    if "@" in name:
        continue
    folder = f"{root}/{name}"
    family, head, kind, dtype = name.split("-")

    def compare(loader, found, wanted):
        answer[f"{name}@{loader}"] = logit_difference(found, wanted)

    for auto in (AutoModel, AutoModelForSequenceClassification):
        with torch.no_grad():
            model = auto.from_pretrained(folder, trust_remote_code=True)
            compare(auto.__name__, model(**batch).logits, logits)
    answer[f"{name}@frozen in training"] = float(model.training)
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    if kind in ("lora", "dora", "head_only"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        ours = get_class_from_dynamic_module("modeling_task_heads.TitleScorer", folder)
        base = ours.from_pretrained(config.backbone_name_or_path, config=config, dtype=config.dtype)
        with torch.no_grad():
            wrapped = PeftModel.from_pretrained(base, folder, subfolder="adapter").eval()
            compare("PeftModel", wrapped(**batch).logits, logits)
    if family != "qwen2":
        continue
    rows = pipeline("text-classification", model=model, tokenizer=tokenizer)(texts)
    compare("text-classification", torch.tensor([row["score"] for row in rows]), expected[f"{name}@texts"])
    ranker = pipeline("title-ranking", model=folder, trust_remote_code=True)
    by_title = {row["title"]: row["score"] for row in ranker(texts)}
    ranked = torch.tensor([by_title[text] for text in texts])
    answer[f"{name}@title-ranking"] = float((ranked - expected[f"{name}@texts"]).abs().max())
leaked = [name for name in sys.modules if name.split(".")[0] == "qwen_task_heads"]
print(json.dumps({"differences": answer, "leaked": leaked}))
"""


def _logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits.float()


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    """Return five rows of random ids, padded on the right."""
    ids = torch.randint(0, 5000, (5, 14), generator=torch.Generator().manual_seed(7))
    mask = (torch.arange(14)[None] < torch.tensor([14, 9, 1, 12, 5])[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def loaded(
    bases: dict[str, str],
    tokenizer: Any,
    shake: Any,
    batch: Any,
    clean: CleanProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], dict[str, Any]]:
    """Return `loaded("quick" | "rest")`: these combinations, saved and loaded in one clean process."""
    text_rows = [dict(tokenizer(text, return_tensors="pt", split_special_tokens=True)) for text in TEXTS]

    def make(name: str) -> Any:
        family, head, kind, dtype = name.split("-")
        model = build(bases[family], dtype=DTYPES[dtype], **HEADS[head])
        if kind == "full":
            return shake(model, seed=1)
        adapted = get_peft_model(model, adapter_config(model, r=4, **ADAPTERS.get(kind, {})))
        shake(adapted, seed=2)
        return merge(adapted) if kind == "merged" else adapted

    @cache
    def run(group: str) -> dict[str, Any]:
        root = tmp_path_factory.mktemp("saved")
        expected = {}
        for name in {"quick": QUICK, "rest": REST}[group]:
            model = make(name)
            save(model, tokenizer=tokenizer, folder=root / name)
            expected[name] = _logits(model, batch)
            expected[f"{name}@texts"] = torch.cat([_logits(model, row)[:, 0] for row in text_rows])
        save_file(expected, root / "expected.safetensors")
        save_file(batch, root / "batch.safetensors")
        (root / "texts.json").write_text(json.dumps(TEXTS))
        try:
            return json.loads(clean.run(CHILD, root, folder=root).splitlines()[-1])
        except (
            AssertionError
        ) as error:  # stored as an answer, so that a failing child does not run once per test
            return {"failure": str(error)}

    return run


@pytest.mark.parametrize(
    ("group", "name"),
    [("quick", name) for name in QUICK]
    + [pytest.param("rest", name, marks=pytest.mark.slow) for name in REST],
)
def test_reload_without_the_package_is_equal(loaded: Any, group: str, name: str) -> None:
    answer = loaded(group)
    assert "failure" not in answer, answer["failure"]
    table = answer["differences"]
    differences = {key.split("@")[1]: value for key, value in table.items() if key.startswith(name + "@")}
    family, _, kind, dtype = name.split("-")
    wanted = {"AutoModel", "AutoModelForSequenceClassification", "frozen in training"}
    wanted |= {"PeftModel"} if kind in ADAPTERS else set()
    wanted |= {"text-classification", "title-ranking"} if family == "qwen2" else set()
    assert differences.keys() == wanted
    # One row at a time, as here, the score is the same; ranking pads the titles into one batch.
    batched = differences.pop("title-ranking", 0.0)
    assert batched <= (1e-5 if dtype == "fp32" else 5e-2)
    assert differences.pop("frozen in training") == 0
    assert max(differences.values()) <= LOGITS, differences


def test_the_clean_process_does_not_import_the_package(loaded: Any) -> None:
    assert loaded("quick")["leaked"] == []


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_equals_the_adapter_within_rounding(
    bases: dict[str, str], tokenizer: Any, shake: Any, batch: Any, tmp_path: Path, family: str, head: str
) -> None:
    model = build(bases[family], **HEADS[head])
    adapted = shake(get_peft_model(model, adapter_config(model, r=4)), seed=3)
    wanted = _logits(adapted, batch)
    folder = str(save(adapted, tokenizer=tokenizer, folder=tmp_path))
    merged = merge(folder)
    assert (_logits(merged, batch) - wanted).abs().max() <= 1e-5
    assert merged.config.probe is None


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_reload_with_the_package_needs_no_trust(
    bases: dict[str, str], tokenizer: Any, shake: Any, batch: Any, tmp_path: Path, kind: str
) -> None:
    """The installed class is used, and code in the folder, which would end the test, is not run."""
    model = build(bases["qwen2"])
    if kind == "lora":
        model = get_peft_model(model, adapter_config(model, r=4))
    folder = save(shake(model, seed=4), tokenizer=tokenizer, folder=tmp_path)
    for file in folder.glob("*.py"):
        file.write_text("raise SystemExit('code of the folder was run')")
    for trust in (None, True):
        for auto in (AutoModel, AutoModelForSequenceClassification):
            loaded = auto.from_pretrained(folder, **({} if trust is None else {"trust_remote_code": trust}))
            assert type(loaded) is TitleScorer
            assert_same_model(loaded, model, **batch)
    rows = pipeline("text-classification", model=str(folder))(TEXTS)
    wanted = [_logits(model, tokenizer(text, return_tensors="pt")).item() for text in TEXTS]
    assert_same_logits([row["score"] for row in rows], wanted)
    for trust in (None, True):
        ranker = pipeline("title-ranking", model=str(folder), trust_remote_code=trust)
        ranked = ranker([TEXTS[0], TEXTS[0]])
        assert [row["score"] for row in ranked] == pytest.approx([rows[0]["score"]] * 2, abs=1e-6)
    assert_same_model(load(str(folder)), model, **batch)
    if kind == "lora":
        base = build(bases["qwen2"])
        wrapped = PeftModel.from_pretrained(base, folder, subfolder="adapter").eval()
        assert_same_model(wrapped, model, **batch)
