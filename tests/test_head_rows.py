"""Labels are added to a saved classifier; old rows of its head keep their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from equality import assert_same_logits
from peft import get_peft_model
from problem_assertions import raises_problem

from qwen_task_heads import Scorer, TaskHeadsError, adapter_config, bind_template, build, load, save
from qwen_task_heads.head_rows import (
    added_summary,
    check_added,
    drop_calibration,
    fold_temperature,
    relabeled,
)
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.models import saved_task

IDS = torch.randint(1, 128, (3, 9), generator=torch.Generator().manual_seed(0))
OLD = ("sport", "money", "health")
WIDER = ("art", "health", "sport", "cars", "money")  # in another order, with new ones between
HEADS: dict[str, dict[str, Any]] = {
    "linear": {},
    "dropout": {"head_dropout": 0.1, "pooling": "mean"},
    "mlp": {"head": "mlp", "head_sizes": [8, 6]},
    "attention": {"pooling": "attention", "head": "mlp", "head_sizes": [8]},
    "multi_label": {"problem_type": "multi_label_classification"},
    "scores": {"problem_type": "regression"},
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def saved_run(base: str, tokenizer: Any, shake: Any, folder: Path, *, kind: str = "full", **head: Any) -> Any:
    """Save a classifier of the old labels; return its folder and logits."""
    model: Any = build(base, task="pooled_classifier", labels=OLD, **head)
    bind_template(tokenizer, model.config)
    if kind != "full":
        config = adapter_config(model, r=2, dora=kind == "dora", head_only=kind == "head_only")
        model = get_peft_model(model, config)
    wanted = logits(shake(model))
    return str(save(model, tokenizer=tokenizer, folder=folder)), wanted


@pytest.fixture
def words(tokenizer: Any) -> Any:
    import copy

    return copy.deepcopy(tokenizer)


@pytest.mark.parametrize("head", HEADS)
def test_old_rows_move_by_name_and_new_ones_start_as_their_mean(
    bases: dict[str, str], words: Any, shake: Any, tmp_path: Path, head: str
) -> None:
    folder, before = saved_run(bases["qwen2"], words, shake, tmp_path / "old", **HEADS[head])
    old = load(folder)
    model = build(folder, task="pooled_classifier", labels=WIDER)
    state, rows = old.score.state_dict(), 0
    for name, tensor in model.score.state_dict().items():
        if len(state[name]) == len(OLD) and tensor.shape[:1] == (len(WIDER),):
            rows += 1
            for place, label in enumerate(WIDER):
                own = state[name][OLD.index(label)] if label in OLD else state[name].mean(0)
                assert torch.equal(tensor[place], own), (name, label)
        else:
            assert torch.equal(tensor, state[name]), name
    assert rows == (2 if "mlp" in HEADS[head].values() else 1)  # a bias too
    assert (model.num_labels, model.config.probe) == (5, None)
    model.check_probe()
    assert all(parameter.requires_grad for parameter in model.parameters())
    after = logits(model)
    assert_same_logits(after[:, [WIDER.index(label) for label in OLD]], before)
    mean = before.mean(1, keepdim=True).expand(-1, 2)
    torch.testing.assert_close(after[:, [0, 3]], mean, atol=1e-5 * float(before.abs().max()), rtol=0)
    # No prediction changes before training.
    assert [WIDER[k] for k in after.argmax(1)] == [OLD[k] for k in before.argmax(1)]


@pytest.mark.parametrize("kind", ["full", "lora", "dora", "head_only"])
def test_the_result_is_saved_with_its_labels_and_reloads(
    bases: dict[str, str], words: Any, shake: Any, tmp_path: Path, kind: str
) -> None:
    folder, before = saved_run(bases["qwen2"], words, shake, tmp_path / "old", kind=kind)
    model = shake(build(folder, task="pooled_classifier", labels=WIDER), seed=1)
    wanted = logits(model)
    save(model, tokenizer=words, folder=tmp_path / "new")
    again = load(str(tmp_path / "new"))  # recomputes the probe, which has a logit per label
    assert_same_logits(logits(again), wanted)
    assert again.config.id2label == dict(enumerate(WIDER))
    assert again.config.label2id == {label: place for place, label in enumerate(WIDER)}
    assert (again.config.num_labels, again.num_labels) == (5, 5)
    assert {len(row) for row in again.config.probe["logits"]} == {5}
    assert saved_task(str(tmp_path / "new"))["labels"].names == WIDER
    [answer] = Scorer(str(tmp_path / "new")).predict(["A text."])
    assert set(answer.probabilities) == set(WIDER)
    assert_same_logits(logits(load(folder)), before)  # the old folder is not changed


def test_no_random_numbers_are_drawn(bases: dict[str, str], words: Any, shake: Any, tmp_path: Path) -> None:
    """Two builds are equal whatever the seed, and later draws are those of a build without new labels."""
    folder, _ = saved_run(bases["qwen2"], words, shake, tmp_path)
    drawn = []
    for labels in (OLD, WIDER):
        torch.manual_seed(3)
        build(folder, task="pooled_classifier", labels=labels)
        drawn.append(torch.rand(1))
    assert torch.equal(*drawn)


def test_descriptions_and_aliases_move_with_their_labels(
    bases: dict[str, str], words: Any, tmp_path: Path
) -> None:
    labels = LabelMap(OLD, ("games", "", ""), aliases=((), ("cash",), ()))
    model = build(bases["qwen2"], task="pooled_classifier", labels=OLD, **labels.described())
    folder = str(save(model, tokenizer=words, folder=tmp_path))
    kept = build(folder, task="pooled_classifier", labels=WIDER).config
    assert LabelMap.of_config(kept) == relabeled(labels, WIDER)
    assert kept.label_descriptions == ["", "", "games", "", ""]
    assert kept.label_aliases == [[], [], [], [], ["cash"]]
    stated = LabelMap(WIDER, tuple(f"about {name}" for name in WIDER))
    config = build(folder, task="pooled_classifier", labels=WIDER, **stated.described()).config
    assert config.label_descriptions == [*stated.descriptions]
    same = LabelMap(OLD, ("balls", "coins", "doctors"))
    config = build(folder, task="pooled_classifier", labels=OLD, **same.described()).config
    assert config.label_descriptions == [*same.descriptions]


@pytest.mark.parametrize(
    "labels",
    [
        ("money", "sport", "health"),  # the same in another order
        ("sport", "money"),
        ("sport", "money", "art", "cars"),
        ("art", "cars"),
    ],
)
def test_missing_or_reordered_labels_are_an_error(
    bases: dict[str, str], words: Any, shake: Any, tmp_path: Path, labels: tuple[str, ...]
) -> None:
    folder, _ = saved_run(bases["qwen2"], words, shake, tmp_path)
    with raises_problem("label-conflict", "--labels"):
        build(folder, task="pooled_classifier", labels=labels)
    assert build(folder, task="pooled_classifier").config.id2label == dict(enumerate(OLD))  # the fix


def test_repeated_labels_are_an_error(bases: dict[str, str], words: Any, shake: Any, tmp_path: Path) -> None:
    folder, _ = saved_run(bases["qwen2"], words, shake, tmp_path)
    with pytest.raises(TaskHeadsError, match="'art'"):
        build(folder, task="pooled_classifier", labels=[*OLD, "art", "art"])


def test_labels_cannot_be_added_to_an_ordinal_head(
    bases: dict[str, str], words: Any, shake: Any, tmp_path: Path
) -> None:
    folder, _ = saved_run(bases["qwen2"], words, shake, tmp_path, kind="lora", problem_type="ordinal")
    with raises_problem("label-conflict", "--labels", match="art") as problems:
        build(folder, task="pooled_classifier", labels=[*OLD, "art"])
    [problem] = problems
    assert bases["qwen2"] in problem.fix  # the base of the adapter, on which a new run works
    again = build(bases["qwen2"], task="pooled_classifier", labels=[*OLD, "art"], problem_type="ordinal")
    assert again.config.num_labels == 4
    check_added(LabelMap(OLD), LabelMap(OLD), problem_type="ordinal")


def test_the_summary_names_kept_and_new_labels() -> None:
    summary = added_summary(LabelMap(WIDER), LabelMap(OLD), name="the saved model")
    for name in WIDER:
        assert repr(name) in summary
    assert summary.index("'health'") < summary.index("'art'")  # kept ones first
    assert added_summary(LabelMap(OLD), LabelMap(OLD), name="the saved model") == ""


@pytest.mark.parametrize("kind", ["full", "lora", "dora", "head_only"])
@pytest.mark.parametrize("head", [*HEADS, "ordinal", "titles"])
def test_a_temperature_in_the_head_divides_the_logits(
    bases: dict[str, str], shake: Any, head: str, kind: str
) -> None:
    options = {"problem_type": "ordinal"} if head == "ordinal" else HEADS.get(head, {})
    task = {} if head == "titles" else {"task": "pooled_classifier", "labels": OLD, **options}
    model: Any = build(bases["qwen2"], **task)
    if kind != "full":
        config = adapter_config(model, r=2, dora=kind == "dora", head_only=kind == "head_only")
        model = get_peft_model(model, config)
    before = logits(shake(model)).double()
    fold_temperature(model, 2.5)
    after = logits(model).double()
    fold_temperature(model, 1 / 2.5)
    again = logits(model).double()
    if head == "ordinal":  # the log-odds at each cut point
        before, after, again = (
            torch.stack([x[:, :k].logsumexp(1) - x[:, k:].logsumexp(1) for k in (1, 2)], 1)
            for x in (before, after, again)
        )
    torch.testing.assert_close(after, before / 2.5, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(again, before, atol=1e-5, rtol=1e-4)


def test_labels_that_are_added_drop_the_calibration_and_the_same_labels_keep_it(
    bases: dict[str, str], words: Any, tmp_path: Path
) -> None:
    head = {"problem_type": "multi_label_classification", "label_thresholds": [0.1, 0.2, 0.3]}
    model: Any = build(bases["qwen2"], task="pooled_classifier", labels=OLD, **head)
    bind_template(words, model.config)
    model.config.calibration = {"temperature": 2.0}
    folder = str(save(model, tokenizer=words, folder=tmp_path / "old"))
    same = build(folder, task="pooled_classifier", labels=OLD).config
    assert (same.label_thresholds, same.calibration) == ([0.1, 0.2, 0.3], {"temperature": 2.0})
    wider = build(folder, task="pooled_classifier", labels=WIDER)
    assert (wider.config.label_thresholds, wider.config.calibration) == (None, None)
    again = save(wider, tokenizer=words, folder=tmp_path / "new")
    assert load(str(again)).config.label_thresholds is None
    title = build(bases["qwen2"]).config
    title.calibration = {"temperature": 2.0}
    drop_calibration(title)
    assert title.calibration is None
