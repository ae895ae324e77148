"""The comparison of two loads accepts only rounding."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from equality import LOGITS, assert_same_logits, assert_same_model, assert_same_weights, misalign
from peft import get_peft_model

from qwen_task_heads import adapter_config, build, load, save

IDS = torch.randint(1, 5000, (3, 9), generator=torch.Generator().manual_seed(0))


def test_a_copy_at_other_addresses_is_the_same_model(bases: dict[str, str], shake: Any) -> None:
    model = shake(build(bases["qwen2"]))
    moved = misalign(copy.deepcopy(model))
    assert all(parameter.data_ptr() % 64 == 16 for parameter in moved.parameters())
    assert_same_model(moved, model, input_ids=IDS)


def test_an_adapter_is_the_same_model_however_it_is_wrapped(
    bases: dict[str, str], tokenizer: Any, shake: Any, tmp_path: Path
) -> None:
    model = build(bases["qwen2"])
    adapted = shake(get_peft_model(model, adapter_config(model, r=2)))
    again = load(str(save(adapted, tokenizer=tokenizer, folder=tmp_path)))
    assert_same_model(again, adapted, input_ids=IDS)
    with torch.no_grad():
        again.model.layers[0].mlp.up_proj.lora_B["default"].weight[0, 0] += 1e-3
    with pytest.raises(AssertionError, match=r"up_proj\.lora_B\.weight"):
        assert_same_weights(again, adapted)


def test_one_bit_of_one_weight_is_a_difference(bases: dict[str, str]) -> None:
    model = build(bases["qwen2"])
    other = copy.deepcopy(model)
    other.model.layers[0].mlp.up_proj.weight.data.view(torch.int32)[3, 5] ^= 1
    with pytest.raises(AssertionError, match=r"\['model\.layers\.0\.mlp\.up_proj\.weight'\]"):
        assert_same_weights(other, model)
    with pytest.raises(AssertionError, match=r"score\.weight"):
        assert_same_weights(model.model, model)
    with pytest.raises(AssertionError, match=r"embed_tokens"):
        assert_same_weights(copy.deepcopy(model).to(torch.bfloat16), model)


def test_logits_may_differ_only_by_rounding_of_the_largest() -> None:
    wanted = torch.tensor([[8.0], [-0.5]])
    assert_same_logits([[8.0], [-0.5 + 8 * 0.9 * LOGITS]], wanted)
    for other in ([[8.0], [-0.5 + 8 * 1.1 * LOGITS]], [[8.0], [float("nan")]], [[8.0, -0.5]]):
        with pytest.raises(AssertionError):
            assert_same_logits(other, wanted)
    with pytest.raises(AssertionError, match="several rows"):
        assert_same_logits([[1e-9]], [[1e-9]])


LOADED = """
import sys
sys.path.append(sys.argv[1])
import torch
from equality import logit_difference, misalign
from qwen_task_heads import load
ids = torch.randint(1, 5000, (9, 11), generator=torch.Generator().manual_seed(0))
for folder in sys.argv[2:]:
    model = load(folder)
    with torch.inference_mode():
        wanted = model(input_ids=ids).logits
    misalign(model)
    model.check_probe()
    with torch.inference_mode():
        print("difference", logit_difference(model(input_ids=ids).logits, wanted))
"""


@pytest.mark.slow  # imports everything again
def test_without_avx512_the_difference_is_rounding(
    bases: dict[str, str], tokenizer: Any, shake: Any, tmp_path: Path
) -> None:
    """There a product with one output depends on the alignment of its weight, in linear and MLP heads."""
    heads: dict[str, dict[str, Any]] = {"linear": {}, "mlp": {"head": "mlp", "head_sizes": [8]}}
    for name, head in heads.items():
        save(shake(build(bases["qwen2"], **head)), tokenizer=tokenizer, folder=tmp_path / name)
    folders = [str(tmp_path / name) for name in heads]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(Path(__file__).parent), *folders],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("difference ")]
    assert len(found) == len(heads)
    assert max(found) <= LOGITS
