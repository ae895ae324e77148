"""Report of a generative classifier, and its publishing: saved, verified, staged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model

from qwen_task_heads import LabelMap, LabelScorer, TaskHeadsError, load_tokenizer, read_text_sets
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.generators import base_of, load_generator
from qwen_task_heads.inference.engine_options import EngineSpec
from qwen_task_heads.inference.engines import open_engine
from qwen_task_heads.inference.loading import open_scorer
from qwen_task_heads.metrics.classification import SINGLE, classification_metrics
from qwen_task_heads.pretrained import locate
from qwen_task_heads.publishing.publish import publish
from qwen_task_heads.reports.finishing import FinishedTraining
from qwen_task_heads.reports.generative_report import finish_answers
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts
from qwen_task_heads.verification.artifacts import lay_out
from qwen_task_heads.verification.reference import take_answer_reference

LABELS = LabelMap(("sport", "the trade of goods"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "dev"):
        rows = [
            {"text": f"text {n} of {split}", "category": list(LABELS.names), "output": LABELS.names[n % 2]}
            for n in range(24)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def finish(
    folder: Path, data: Path, *, lora: bool, base: str = "embedded", dtype: torch.dtype = torch.float32
) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    model: Any = load_generator(base, dtype=dtype)
    tokenizer = load_tokenizer("embedded")
    scorer = LabelScorer(model, prompts=AnswerPrompts(tokenizer, LABELS, model_type="qwen2"))
    if lora:
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(model, config)
    sets = read_text_sets(str(data), labels=LABELS)
    run = FinishedTraining(
        sets=sets,
        settings={"dataset_name": "texts"},
        log_history=[],
        seconds=1.0,
        seed=0,
        backbone=base,
    )
    return model, finish_answers(
        model, scorer=scorer, tokenizer=tokenizer, folder=folder, run=run, base=base_of(base)
    )


def test_a_saved_model_returns_the_reported_scores_and_metrics(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, metrics = finish(tmp_path, data, lora=True)
    printed = capsys.readouterr().out
    assert f"-m qwen_task_heads {tmp_path} 'A text of your own.'" in printed
    assert f"recipes/predict.py --model {tmp_path} --input texts.jsonl --output answers.jsonl\n" in printed
    reloaded = LabelScorer.from_pretrained(str(tmp_path))
    texts = [json.loads(row)["text"] for row in (data / "dev.jsonl").read_text("utf-8").splitlines()]
    predicted = reloaded.log_scores(texts).argmax(1)
    accuracy = sum(int(label) == n % 2 for n, label in enumerate(predicted)) / len(texts)
    assert metrics["dev"]["this model"]["accuracy"]["value"] == pytest.approx(accuracy)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert 'LabelScorer.from_pretrained(".' in card
    assert "An adapter on" in card
    with pytest.raises(TaskHeadsError):  # its base is a local folder
        publish(tmp_path, repo_id="me/labels", dry_run=tmp_path / "staged")


@pytest.mark.parametrize("trained_in", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [True, False])
def test_a_reloaded_folder_has_the_metrics_of_its_card(
    tmp_path: Path, data: Path, trained_in: torch.dtype, lora: bool
) -> None:
    """The dtype of the stored base may differ from that of the training and the evaluation."""
    base = tmp_path / "base"
    load_generator("embedded", dtype=torch.bfloat16).save_pretrained(base)
    load_tokenizer("embedded").save_pretrained(base)
    folder = tmp_path / "run"
    _, metrics = finish(folder, data, lora=lora, base=str(base), dtype=trained_in)
    rows = [json.loads(row) for row in (data / "dev.jsonl").read_text("utf-8").splitlines()]
    targets = [LABELS.label2id[row["output"]] for row in rows]
    engine = open_engine(EngineSpec("sft", str(folder)), LABELS)
    openers = {
        "LabelScorer": LabelScorer.from_pretrained(str(folder)).log_scores,
        "predict.py": open_scorer(str(folder)).log_scores,  # type: ignore[union-attr]
        "compare.py": lambda texts: engine.log_scores([TextExample(text=text, target=0) for text in texts]),
    }
    for name, log_scores in openers.items():
        scores = log_scores([row["text"] for row in rows]).numpy()
        found = classification_metrics(SINGLE, scores, targets, labels=LABELS.names)
        expected = metrics["dev"]["this model"]
        for metric in ("log_loss", "accuracy"):  # the loss depends on every logit
            value = expected[metric]["value"]
            assert found[metric]["value"] == pytest.approx(value, rel=1e-6), (name, metric)
    assert load_generator(str(folder)).dtype == trained_in
    assert load_generator(str(folder), dtype=torch.float16).dtype == torch.float16  # an explicit dtype wins
    stated = json.loads((folder / "label_prompt.json").read_text("utf-8"))
    for wrong in ("float99", 3):
        (folder / "label_prompt.json").write_text(json.dumps({**stated, "dtype": wrong}), "utf-8")
        (folder / "manifest.json").unlink(missing_ok=True)
        with pytest.raises(TaskHeadsError) as refused:
            load_generator(str(folder))
        assert refused.value.problems[0].where == str(folder / "label_prompt.json")


@pytest.mark.slow
@pytest.mark.usefixtures("quick_proof")
def test_published_generative_classifiers_are_verified(tmp_path: Path, data: Path) -> None:
    half = tmp_path / "half"
    finish(half, data, lora=True, dtype=torch.bfloat16)
    publish(half, repo_id="me/labels", form="merged", dry_run=tmp_path / "staged_half")
    saved = json.loads((tmp_path / "staged_half" / "config.json").read_text("utf-8"))
    assert saved["dtype"] == "bfloat16"
    run = tmp_path / "run"
    finish(run, data, lora=True)
    publish(run, repo_id="me/labels", form="merged", dry_run=tmp_path / "staged")
    staged = tmp_path / "staged"
    rows = json.loads((staged / "parity.json").read_text("utf-8"))["rows"]
    assert {row["artefact"] for row in rows} == {"generator_merged"}
    assert not (staged / "adapter_config.json").exists()
    assert not (staged / "reference.json").exists()
    assert torch.allclose(
        LabelScorer.from_pretrained(str(staged)).log_scores(["A match"]),
        LabelScorer.from_pretrained(str(run), dtype=torch.float32).log_scores(["A match"]),
        atol=1e-4,
    )
    full = tmp_path / "full"
    finish(full, data, lora=False)
    publish(full, repo_id="me/labels", dry_run=tmp_path / "staged_full")
    (full / "model.safetensors").unlink()
    finish(tmp_path / "other", data, lora=True)
    other = load_generator("embedded", dtype=torch.float32)
    other.lm_head.weight.data *= 1.01
    other.save_pretrained(full)
    with pytest.raises(TaskHeadsError, match=r"model\.safetensors"):
        publish(full, repo_id="me/labels", dry_run=tmp_path / "changed")
    (full / "manifest.json").unlink()
    (full / "metrics.json").unlink()
    with pytest.raises(TaskHeadsError, match="embed_tokens"):
        publish(full, repo_id="me/labels", dry_run=tmp_path / "changed")
    with pytest.raises(TaskHeadsError, match="--onnx"):
        publish(full, repo_id="me/labels", onnx=True, dry_run=tmp_path / "onnx")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")  # of PEFT, offline
def test_an_adapter_on_a_base_of_a_hub_is_verified_and_published(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its repo has no `config.json`, which every loader requests; the cache records its absence."""
    cache = tmp_path / "hub"
    commit = lay_out(Path(locate("embedded")), cache=cache, repo_id="base/small")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    # PEFT keeps an adapter in fp32 on a base in half precision.
    finish(tmp_path / "run", data, lora=True, base="base/small", dtype=torch.bfloat16)
    publish(tmp_path / "run", repo_id="me/labels", dry_run=tmp_path / "staged")
    staged = tmp_path / "staged"
    assert not (staged / "config.json").exists()
    adapter = json.loads((staged / "adapter_config.json").read_text("utf-8"))
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("base/small", commit)
    rows = json.loads((staged / "parity.json").read_text("utf-8"))["rows"]
    assert {row["artefact"] for row in rows} == {"generator_adapter"}
    assert max(row["difference"] for row in rows) <= 1e-6
    assert "without the package" in (staged / "README.md").read_text("utf-8")


def test_logits_of_the_vocabulary_are_computed_only_at_the_answer() -> None:
    """The logits of every token of a batch would exceed the memory."""
    widths = []
    model = load_generator("embedded", dtype=torch.float32)
    model.lm_head.register_forward_pre_hook(lambda module, given: widths.append(given[0].shape[1]))
    tokenizer = load_tokenizer("embedded")
    prompts = AnswerPrompts(tokenizer, LABELS, model_type="qwen2")
    reference = take_answer_reference(
        model, tokenizer=tokenizer, prompts=prompts, texts=["short", "a b " * 99]
    )
    rows = reference.report["rows"]
    assert max(widths) <= len(rows) < max(map(len, rows))
    with torch.no_grad():
        expected = model(torch.tensor([rows[0]])).logits[0, -1, reference.job["answers"]]
    for layout in reference.report["logits"]:
        if (layout["padding"], layout["batch"]) != ("none", len(rows)):  # the rows of that layout are cut
            assert torch.allclose(torch.tensor(layout["logits"][0]), expected, atol=1e-5)


def test_an_adapter_loads_only_on_the_base_of_its_training(tmp_path: Path, data: Path) -> None:
    run = tmp_path / "run"
    finish(run, data, lora=True)
    adapter = json.loads((run / "adapter_config.json").read_text("utf-8"))
    stated = json.loads((run / "label_prompt.json").read_text("utf-8"))["base"]
    assert adapter["base_model_name_or_path"] == stated["name"]
    assert "model.safetensors" in stated["files"]
    copy = tmp_path / "base"
    shutil.copytree(stated["name"], copy)
    prompt = json.loads((run / "label_prompt.json").read_text("utf-8"))
    prompt["base"]["name"] = str(copy)
    (run / "label_prompt.json").write_text(json.dumps(prompt), "utf-8")
    with pytest.raises(TaskHeadsError, match=r"label_prompt\.json"):
        load_generator(str(run))
    (run / "manifest.json").unlink()
    load_generator(str(run))
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}), "utf-8")
    with pytest.raises(TaskHeadsError, match=r"config\.json"):
        load_generator(str(run))
    load_generator(str(run), verify=False)
