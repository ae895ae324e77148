"""A batch without `attention_mask`: padding is derived from the edges of rows, with one warning."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from problem_assertions import raises_problem
from transformers import BloomConfig, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from qwen_task_heads import PooledClassifier, PooledClassifierConfig, TitleScorer, TitleScorerConfig
from qwen_task_heads.hubcode.pooling_task_heads import derive_mask

PAD, EOS = 0, 2
ROWS = [[7, 8, 9, 10, 11, 12, 13], [21, PAD, 23], [PAD + 5]]  # of the second, a pad id is a token inside


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """Return a function that returns and clears the warnings of hubcode."""
    transformers_logging.enable_propagation()
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]

    def take() -> list[str]:
        found = [record.message for record in caplog.records if "attention_mask" in record.message]
        caplog.clear()
        return found

    yield take
    transformers_logging.disable_propagation()


def _padded(side: str, *, more: int = 0) -> dict[str, torch.Tensor]:
    width = max(map(len, ROWS)) + more
    ids, mask = torch.full((len(ROWS), width), PAD), torch.zeros(len(ROWS), width, dtype=torch.long)
    for index, row in enumerate(ROWS):
        start = {"left": width - len(row), "right": 0, "both": (width - len(row)) // 2}[side]
        ids[index, start : start + len(row)] = torch.tensor(row)
        mask[index, start : start + len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _classifier(backbone: PreTrainedConfig, **options: Any) -> PooledClassifier:
    torch.manual_seed(0)
    return PooledClassifier(PooledClassifierConfig(text_config=backbone, num_labels=3, **options)).eval()


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("pooling", ["last", "mean", "max", "attention"])
def test_no_mask_gives_the_logits_of_the_mask(
    tiny_config: Any, pooling: str, side: str, warnings: Any
) -> None:
    batch = _padded(side, more=12)
    backbone = tiny_config(vocab_size=64, pad_token_id=PAD)
    models = [_classifier(backbone, pooling=pooling)]
    models.append(_classifier(backbone, pooling=pooling, max_seq_length=16))
    models.append(
        _classifier(
            BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, pad_token_id=PAD), pooling=pooling
        )
    )
    for model in models:
        for packing in (True, False):
            model.packing = packing
            warnings()
            wanted = model(**batch).logits
            assert warnings() == []
            torch.testing.assert_close(model(input_ids=batch["input_ids"]).logits, wanted)
            assert (
                model(input_ids=batch["input_ids"], attention_mask=batch["input_ids"] * 0 + 1).logits - wanted
            ).abs().max() > 1e-3
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]
    warnings()
    for _ in range(3):
        model(input_ids=batch["input_ids"])
    assert len(warnings()) == 1


def test_training_without_a_mask_is_equal(tiny_config: Any) -> None:
    batch, grads = _padded("left"), []
    for given in (batch, {"input_ids": batch["input_ids"]}):
        model = _classifier(tiny_config(vocab_size=64, pad_token_id=PAD)).train()
        model(**given, labels=torch.tensor([0, 1, 2])).loss.backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*grads)


@torch.no_grad()
def test_a_row_of_only_padding_is_an_error(tiny_config: Any) -> None:
    model = _classifier(tiny_config(vocab_size=64, pad_token_id=PAD))
    with raises_problem("text-empty", "attention_mask", match="row 1"):
        model(input_ids=torch.tensor([[5, 6], [PAD, PAD]]))


@torch.no_grad()
def test_rows_without_padding_log_no_warning(tiny_config: Any, warnings: Any) -> None:
    model = _classifier(tiny_config(vocab_size=64, pad_token_id=PAD))
    ids = torch.tensor([[5, PAD, 6], [7, 8, 9]])
    wanted = model(input_ids=ids, attention_mask=ids * 0 + 1).logits
    torch.testing.assert_close(model(input_ids=ids).logits, wanted)
    _classifier(tiny_config(vocab_size=64))(input_ids=ids[:1])  # one row needs no padding
    assert warnings() == []


@torch.no_grad()
def test_the_probe_contains_pad_ids_and_logs_no_warning(tiny_config: Any, warnings: Any) -> None:
    first = 7919 % 64  # the first id of the probe
    scorers = []
    for pad_id in (None, first):
        torch.manual_seed(0)
        scorers.append(TitleScorer(TitleScorerConfig(text_config=tiny_config(vocab_size=64))).eval())
        scorers[-1].config.text_config.pad_token_id = pad_id
    probes = [scorer.make_probe() for scorer in scorers]
    assert probes[0]["input_ids"][0][0] == first
    torch.testing.assert_close(*(torch.tensor(probe["logits"]) for probe in probes))
    assert warnings() == []


@torch.no_grad()
def test_without_a_pad_id_the_tokenizer_is_used_or_a_warning_is_logged(
    tiny_config: Any, tokenizer: Any, warnings: Any
) -> None:
    model = _classifier(tiny_config())
    batch = tokenizer(["short", "a text that is longer"], return_tensors="pt", padding=True)
    assert not batch["attention_mask"].all()
    model(input_ids=batch["input_ids"])
    assert len(warnings()) == 1
    model.tokenizer = tokenizer
    torch.testing.assert_close(model(input_ids=batch["input_ids"]).logits, model(**batch).logits)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    warnings()
    model(inputs_embeds=embeds)
    assert len(warnings()) == 1


def test_pad_ids_of_the_template_are_real() -> None:
    """As where eos is the pad token and ends the template."""
    template = {"before": [EOS, 9], "after": [9, EOS]}
    ids = torch.tensor([[EOS, EOS, 9, 5, 9, EOS], [EOS, 9, 5, 9, EOS, EOS], [EOS, 9, 5, EOS, 9, EOS]])
    mask = derive_mask(ids, pad_id=EOS, template=template)
    assert mask is not None
    assert mask.tolist() == [[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0], [1] * 6]
    assert derive_mask(ids[2:], pad_id=EOS, template=template) is None
    assert derive_mask(ids[2:], pad_id=EOS).tolist() == [[0, 1, 1, 1, 1, 0]]  # type: ignore[union-attr]
    assert derive_mask(ids[:, :0], pad_id=EOS) is None
