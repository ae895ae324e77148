"""Tests that the prefix cache and merged adapters do not change scores, and tests of int8."""

from __future__ import annotations

import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_task_heads import Scorer, adapter_config, build, save
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.inference.int8 import agreement, to_int8
from qwen_task_heads.models import load_tokenizer
from qwen_task_heads.tokenization.templates import Template, compile_template

BRIEF = "You rate titles for readers who know the trade. " * 4
TITLES = [f"{what} {n}" for n in range(4) for what in ("Trains of the north", "Tea", "A long way to rest")]


@pytest.fixture(scope="module")
def model(bases: dict[str, str], shake: Any) -> Any:
    torch.manual_seed(0)
    return shake(build(bases["qwen3"]))


def tokenizer_of(base: str, before: str) -> Any:
    tokenizer = load_tokenizer(base)
    compile_template(tokenizer, template=Template(before=before), model_type="qwen3", max_length=200)
    return tokenizer


def computed(scorer: Scorer) -> list[int]:
    """Collect the tokens that each pass of the backbone computes."""
    sizes: list[int] = []
    scorer.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return sizes


def test_an_instruction_is_encoded_once_for_all_calls(bases: dict[str, str], model: Any) -> None:
    tokenizer = tokenizer_of(bases["qwen3"], BRIEF)
    scorer = Scorer(model, tokenizer=tokenizer)
    length = len(tokenizer.init_kwargs["task_template"]["before"])
    assert length > 32
    ids = tokenizer(TITLES)["input_ids"]
    with torch.inference_mode():
        wanted = [float(model(input_ids=torch.tensor([row])).logits) for row in ids]
    sizes = computed(scorer)
    assert scorer.score(TITLES) == pytest.approx(wanted, abs=1e-6)
    assert len(sizes) == 2  # the instruction, then the titles
    assert sizes[0] == length
    assert sizes[1] <= sum(map(len, ids)) - len(ids) * length  # titles that begin alike share that too
    sizes.clear()
    # A single title uses the cache too, and so do titles that start with other letters.
    assert scorer.score(TITLES[3:4]) == pytest.approx(wanted[3:4], abs=1e-6)
    assert scorer.score(TITLES[::-1]) == pytest.approx(wanted[::-1], abs=1e-6)
    assert len(sizes) == 2
    assert sizes[0] == len(ids[3]) - length


def test_another_prompt_replaces_the_cached_one(bases: dict[str, str], model: Any) -> None:
    scorer = Scorer(model, tokenizer=tokenizer_of(bases["qwen3"], ""))
    for prompt in (BRIEF, BRIEF[:100], "Other words entirely, and as many of them. " * 4, "short", ""):
        cold = Scorer(model, tokenizer=scorer.tokenizer)
        ranked, expected = (s.rank(TITLES, prompt=prompt) for s in (scorer, cold))
        assert [row.title for row in ranked] == [row.title for row in expected]
        assert [row.score for row in ranked] == pytest.approx([row.score for row in expected], abs=1e-6)
        sizes = computed(scorer)
        scorer.rank(TITLES[::-1][:5], prompt=prompt)
        assert len(sizes) == 1  # nothing of the prompt again
        assert sizes[0] < 5 * 16


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_long_rows_and_other_poolings_have_no_prefix_cache(bases: dict[str, str], pooling: str) -> None:
    from qwen_task_heads.tokenization.templates import bind_template

    torch.manual_seed(0)
    options = {"task": "pooled_classifier", "labels": ["a", "b"], "pooling": pooling}
    model = build(bases["qwen2"], **options, max_seq_length=80, truncation="windows")
    tokenizer = load_tokenizer(bases["qwen2"])
    bind_template(tokenizer, model.config, template=Template(before=BRIEF[:120]))
    scorer = Scorer(model, tokenizer=tokenizer)
    texts = [*TITLES, "A text that is too long for one window. " * 9]
    long, short = scorer.logits(texts), scorer.logits(TITLES)
    assert (long[: len(TITLES)] - short).abs().max() <= 1e-6
    assert bool(scorer.prefixes._entries) == (pooling == "last")


def another(model: Any, base: str) -> Scorer:
    return Scorer(model, tokenizer=tokenizer_of(base, BRIEF))


@pytest.mark.parametrize("trained", [True, False])
def test_a_prefix_is_computed_again_after_the_weights_change(
    bases: dict[str, str], model: Any, trained: bool
) -> None:
    changing = copy.deepcopy(model)
    scorer = another(changing, bases["qwen3"])
    before = scorer.score(TITLES)
    if trained:
        optimizer = torch.optim.AdamW(changing.parameters(), lr=0.05)
        changing(input_ids=torch.arange(3, 20)[None]).logits.sum().backward()
        optimizer.step()
    else:
        changing.double()
    after = scorer.score(TITLES)
    assert (max(abs(a - b) for a, b in zip(before, after, strict=True)) > 0.01) == trained
    assert after == pytest.approx(another(changing, bases["qwen3"]).score(TITLES), abs=1e-9)


def test_threads_share_a_scorer(bases: dict[str, str], model: Any) -> None:
    scorer = Scorer(model, tokenizer=tokenizer_of(bases["qwen3"], ""))
    cache = scorer.prefixes
    beginnings = [[place] * 60 for place in range(3, 9)]

    def take(beginning: list[int]) -> bool:
        known, kept = cache.take([[*beginning, 1], [*beginning, 2]], of_list=True)
        wanted = model.encode_prefix(torch.tensor([beginning]))
        return known == 60 and bool((kept[1][0] - wanted[1][0]).abs().max() <= 1e-6)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(take, beginnings * 20))
    finally:
        sys.setswitchinterval(switch)


COMPILED = [pytest.param(change, marks=pytest.mark.slow) for change in ("compiled", "wrapped")]


@pytest.mark.parametrize("change", ["eager", "window", "both sides", *COMPILED])
def test_a_model_without_prefix_support_gets_whole_rows(
    bases: dict[str, str], model: Any, change: str
) -> None:
    model = copy.deepcopy(model)
    tokenizer = tokenizer_of(bases["qwen3"], BRIEF)
    if change == "both sides":
        model.config.bidirectional = True
    elif change == "window":
        model._window = len(tokenizer.init_kwargs["task_template"]["before"]) + 9
    rows = tokenizer(TITLES)["input_ids"]
    with torch.inference_mode():
        wanted = [float(model(input_ids=torch.tensor([row])).logits) for row in rows]
    if change == "eager":
        model.set_attn_implementation("eager")
    elif change == "compiled":
        model.compile(backend="eager")
    elif change == "wrapped":
        model = torch.compile(model, backend="eager")
    scorer = Scorer(model, tokenizer=tokenizer)
    assert scorer.score(TITLES) == pytest.approx(wanted, abs=1e-6)
    assert not scorer.prefixes._entries


def test_the_padded_states_of_a_batch_are_limited_for_other_poolings(bases: dict[str, str]) -> None:
    model = build(bases["qwen2"], task="pooled_classifier", labels=["a", "b"], pooling="mean")
    scorer = Scorer(model, tokenizer=load_tokenizer(bases["qwen2"]), batch_tokens=1000)
    rows = [*([[n, n] for n in range(3, 103)]), [50] * 600]
    batches = list(scorer._batches(rows, known=0))
    assert sorted(index for batch in batches for index in batch) == [*range(101)]
    assert max(len(batch) * max(len(rows[index]) for index in batch) for batch in batches) <= 1000


def test_an_adapter_is_merged_when_it_is_loaded_by_name(
    bases: dict[str, str], shake: Any, tmp_path: Path
) -> None:
    from peft import get_peft_model

    torch.manual_seed(0)
    model = build(bases["llama"])
    tuned = shake(get_peft_model(model, adapter_config(model)), width=0.02)
    tokenizer = load_tokenizer(bases["llama"])
    compile_template(tokenizer, template=None, model_type="llama", max_length=64)
    folder = save(tuned, tokenizer=tokenizer, folder=tmp_path / "adapter")
    scorer = Scorer(str(folder))
    assert not any("lora" in name for name, _ in scorer.model.named_modules())
    unmerged = Scorer(tuned.get_base_model(), tokenizer=tokenizer)
    assert scorer.score(TITLES) == pytest.approx(unmerged.score(TITLES), abs=1e-5)
    assert any("lora" in name for name, _ in tuned.named_modules())  # a model in memory is not changed


def test_int8_is_close_and_refuses_half_precision(bases: dict[str, str], model: Any) -> None:
    tokenizer = tokenizer_of(bases["qwen3"], BRIEF)
    exact, small = (Scorer(model, tokenizer=tokenizer, int8=int8) for int8 in (False, True))
    ours, theirs = (torch.tensor(scorer.score(TITLES)) for scorer in (exact, small))
    assert not torch.equal(ours, theirs)
    assert (ours - theirs).abs().max() < 0.5 * ours.std()  # random weights; trained ones are closer
    assert agreement(ours[:, None].tolist(), theirs[:, None].tolist()) > 0.8
    half = build(bases["qwen2"], dtype=torch.bfloat16)
    with pytest.raises(TaskHeadsError, match="bfloat16") as caught:
        to_int8(half)
    assert [(one.code, one.where) for one in caught.value.problems] == [("option-unsupported", "int8")]


def test_truncation_is_logged(bases: dict[str, str], model: Any, caplog: pytest.LogCaptureFixture) -> None:
    scorer = Scorer(model, tokenizer=tokenizer_of(bases["qwen3"], ""))
    scorer.rank(TITLES, prompt="A short brief.")
    assert not caplog.messages
    scorer.rank(TITLES, prompt=BRIEF * 20)
    assert caplog.messages == ["12 prompts and 0 titles of 12 rows were cut to 200 tokens, as in training"]
