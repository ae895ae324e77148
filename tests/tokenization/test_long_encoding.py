"""`encode_texts` returns the ids of a plain call of the saved tokenizer, and counts cuts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qwen_task_heads import PooledClassifierConfig, load_tokenizer
from qwen_task_heads.hubcode.encoding_task_heads import cut_row, encode_texts, pieces, template_of
from qwen_task_heads.hubcode.errors_task_heads import TaskHeadError
from qwen_task_heads.tokenization.templates import Template, bind_template

TEMPLATE = Template(
    before="<|im_start|>user\nWhich topic?\n",
    between="\nSecond: ",
    after="<|im_end|>\n<|im_start|>assistant\n",
)
WORDS = ["rest", " day", "休", "题", "!", " <|im_end|>", "\n", " <think>", " 12", "é"]
LIMITS = (33, 64, 512)


def text_of(rng: random.Random, length: int) -> str:
    return "".join(rng.choice(WORDS) for _ in range(length))


def lengths(rng: random.Random, count: int, longest: int = 2000) -> list[int]:
    return [*range(0, 40, 3), *(rng.randrange(longest + 1) for _ in range(count)), longest]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_config: Any) -> dict[str, Any]:
    """Tokenizers of a `head` and of a `tail` model, saved and loaded by transformers."""
    found = {}
    for truncation in ("head", "tail"):
        tokenizer, folder = load_tokenizer("embedded"), tmp_path_factory.mktemp(truncation)
        config = PooledClassifierConfig(text_config=tiny_config(), max_seq_length=64, truncation=truncation)
        bind_template(tokenizer, config, template=TEMPLATE, pairs=True)
        tokenizer.save_pretrained(folder)
        found[truncation] = AutoTokenizer.from_pretrained(folder)
    return found


def test_the_saved_tokenizer_has_its_side_and_limit(saved: dict[str, Any]) -> None:
    assert {name: tokenizer.truncation_side for name, tokenizer in saved.items()} == {
        "head": "right",
        "tail": "left",
    }
    assert {tokenizer.model_max_length for tokenizer in saved.values()} == {64}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("truncation", ["head", "tail"])
def test_texts_equal_a_plain_call(saved: dict[str, Any], truncation: str, limit: int) -> None:
    rng = random.Random(limit)
    tokenizer = saved[truncation]
    texts = [text_of(rng, length) for length in lengths(rng, 10)]
    found = encode_texts(tokenizer, texts, max_length=limit, truncation=truncation)
    plain = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
    assert found.input_ids == plain
    whole = tokenizer(texts, verbose=False)["input_ids"]
    assert found.cut == sum(len(row) > limit for row in whole) > 0
    assert found.lost == sum(len(row) - len(kept) for row, kept in zip(whole, plain, strict=True))
    assert encode_texts(tokenizer, texts, max_length=None).input_ids == whole


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("truncation", ["head", "tail"])
def test_pairs_equal_a_plain_call(saved: dict[str, Any], truncation: str, limit: int) -> None:
    """The longer text is cut first, as with `longest_first`, including its odd token."""
    rng = random.Random(limit)
    tokenizer = saved[truncation]
    # The plain call pairs every rest of one text with every rest of the other: minutes for 2,000 and 33.
    longest = 2000 if limit == 512 else 100
    short, long = lengths(rng, 8, longest), lengths(rng, 8, longest)
    rng.shuffle(long)
    texts, others = ([text_of(rng, length) for length in part] for part in (short, long))
    others = [text or "b" for text in others]
    found = encode_texts(tokenizer, texts, text_pairs=others, max_length=limit, truncation=truncation)
    plain = tokenizer(texts, others, truncation=True, max_length=limit)["input_ids"]
    assert found.input_ids == plain
    whole = tokenizer(texts, others, verbose=False)["input_ids"]
    assert found.cut == sum(len(row) > limit for row in whole) > 0
    assert found.lost == sum(map(len, whole)) - sum(map(len, plain))


def test_every_pair_of_small_lengths(saved: dict[str, Any]) -> None:
    tokenizer = saved["head"]
    before, between, after = template_of(tokenizer)
    fixed = len(before) + len(between) + len(after)
    texts = [" the" * (index % 9) for index in range(81)]
    others = [" the" * (index // 9) for index in range(81)]
    others = [text or "b" for text in others]
    for room in range(1, 9):
        found = encode_texts(tokenizer, texts, text_pairs=others, max_length=fixed + room)
        plain = tokenizer(texts, others, truncation=True, max_length=fixed + room)["input_ids"]
        assert found.input_ids == plain


def test_an_empty_second_text_is_no_second_text(saved: dict[str, Any]) -> None:
    tokenizer = saved["head"]
    mixed = encode_texts(tokenizer, ["one", "two"], text_pairs=["", "b"], max_length=64).input_ids
    assert mixed == [tokenizer("one")["input_ids"], tokenizer("two", "b")["input_ids"]]
    assert encode_texts(tokenizer, ["one"], text_pairs=[""], max_length=64).input_ids == mixed[:1]
    assert encode_texts(tokenizer, [], max_length=64).input_ids == []


def test_a_tokenizer_without_a_template_keeps_its_own_tokens() -> None:
    words = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", "a", "b", "c"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> <s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<unk>")
    assert template_of(tokenizer) == ([1], [2, 1], [2])
    texts, others = ["a b c " * 9, "a", "b"], ["c", "b " * 30, "c"]
    assert (
        encode_texts(tokenizer, texts, max_length=12).input_ids
        == tokenizer(texts, truncation=True, max_length=12)["input_ids"]
    )
    assert (
        encode_texts(tokenizer, texts, text_pairs=others, max_length=12).input_ids
        == tokenizer(texts, others, truncation=True, max_length=12)["input_ids"]
    )


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail", "windows"])
def test_the_model_cuts_like_the_tokenizer(saved: dict[str, Any], truncation: str) -> None:
    """Rows of training come from `encode_texts`; rows of a stock caller are cut in `forward`."""
    tokenizer = saved["head"]
    before, _, after = template_of(tokenizer)
    rng = random.Random(1)
    texts = [text_of(rng, length) for length in lengths(rng, 10)]
    found = encode_texts(tokenizer, texts, max_length=64, truncation=truncation)
    whole = tokenizer(texts, verbose=False)["input_ids"]
    room = 64 - len(before) - len(after)
    for row, full in zip(found.input_ids, whole, strict=True):
        cut = cut_row(
            full, max_length=64, truncation=truncation, overlap=5, template={"before": before, "after": after}
        )
        text = full[len(before) : len(full) - len(after)]
        assert all(len(piece) <= 64 for piece in cut)
        if truncation == "windows":
            assert row == full
            inner = [piece[len(before) : len(piece) - len(after)] for piece in cut]
            assert all(piece == [*before, *i, *after] for piece, i in zip(cut, inner, strict=True))
            starts = [min(index * (room - 5), max(len(text) - room, 0)) for index in range(len(inner))]
            assert inner == [text[start : start + room] for start in starts]  # nothing left out
            assert starts[-1] == max(len(text) - room, 0)
        else:
            assert cut == [row]
    assert found.lost == (
        0 if truncation == "windows" else sum(map(len, whole)) - sum(map(len, found.input_ids))
    )
    assert found.cut == sum(len(full) > 64 for full in whole) > 0


def test_head_and_tail_keep_both_ends() -> None:
    ids = list(range(100))
    for room in (1, 2, 7, 50, 99):
        (kept,) = pieces(ids, room=room, truncation="head_tail")
        assert len(kept) == room
        assert kept == ids[: room - room // 2] + ids[100 - room // 2 :]


@pytest.mark.parametrize("truncation", ["head_tail", "windows"])
def test_pairs_are_refused_for_policies_of_single_texts(saved: dict[str, Any], truncation: str) -> None:
    with pytest.raises(TaskHeadError, match=truncation) as caught:
        encode_texts(saved["head"], ["a"], text_pairs=["b"], max_length=64, truncation=truncation)
    assert caught.value.where == "truncation"


def test_a_limit_below_the_template_is_refused(saved: dict[str, Any]) -> None:
    before, between, after = template_of(saved["head"])
    fixed = len(before) + len(after)
    assert len(encode_texts(saved["head"], ["a"], max_length=fixed + 1).input_ids[0]) == fixed + 1
    with pytest.raises(TaskHeadError, match=rf"{fixed}\b.*\b{fixed + 1}\b") as caught:
        encode_texts(saved["head"], ["a"], max_length=fixed)
    assert caught.value.where == "max_length"
    with pytest.raises(TaskHeadError, match=rf"\b{fixed + len(between) + 1}\b"):
        encode_texts(saved["head"], ["a"], text_pairs=["b"], max_length=fixed + 1)


def test_a_row_without_the_template_is_refused_when_it_must_be_cut() -> None:
    template = {"before": [1, 2], "after": [3]}
    assert cut_row([9] * 16, max_length=16, truncation="head", overlap=0, template=template) == [[9] * 16]
    with pytest.raises(TaskHeadError, match="17 tokens") as caught:
        cut_row([9] * 17, max_length=16, truncation="head", overlap=0, template=template)
    assert caught.value.where == "input_ids"


@pytest.mark.parametrize("truncation", ["head_tail", "windows"])
def test_the_tokenizer_does_not_cut_for_policies_of_the_model(
    tmp_path: Path, tiny_config: Any, truncation: str
) -> None:
    tokenizer = load_tokenizer("embedded")
    config = PooledClassifierConfig(text_config=tiny_config(), max_seq_length=64, truncation=truncation)
    bind_template(tokenizer, config, template=TEMPLATE)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    before, _, after = template_of(again)
    assert len(again(" the" * 9000, truncation=True)["input_ids"]) == 9000 + len(before) + len(after)
    # A model that is trained with another policy gets another limit and side.
    config = PooledClassifierConfig(text_config=tiny_config(), max_seq_length=32, truncation="tail")
    bind_template(again, config)
    assert (again.model_max_length, again.truncation_side) == (32, "left")
    bind_template(again, PooledClassifierConfig(text_config=tiny_config(), max_seq_length=48))
    assert (again.model_max_length, again.truncation_side) == (48, "right")
