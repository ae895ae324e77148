"""Equality of two loads of one model: weights bit by bit, logits within rounding.

Two loads, processes or machines have the same bits of every weight. Their logits may
differ in the last place: on a CPU without AVX-512 a matrix-vector product depends on the 16-byte alignment
of its weight, and a mapped file has other offsets than a model that was built in memory.

Bit-equal logits are asserted only of one model object, whose weights stay at their addresses.

This module imports neither the package nor transformers: `clean_process` jobs use it too.
"""

from __future__ import annotations

import re
from typing import Any

import torch

LOGITS = 1e-6  # largest difference of two logits, relative to the largest one


def logit_difference(found: Any, wanted: Any) -> float:
    """Return the largest difference of two sets of logits, relative to the largest wanted logit.

    Args:
        found, wanted: tensors or nested lists of one shape, with more than one logit, since a single one may
            be a sum near 0. The result is NaN if a value is not finite.
    """
    found, wanted = (torch.as_tensor(logits).detach().double() for logits in (found, wanted))
    assert found.shape == wanted.shape, f"logits {tuple(found.shape)}, expected {tuple(wanted.shape)}"
    largest = float(wanted.abs().max())
    assert wanted.numel() > 1, "expected logits of several rows"
    assert largest > 0, "expected logits other than 0"
    return float((found - wanted).abs().max()) / largest


def assert_same_logits(found: Any, wanted: Any, message: object = "") -> None:
    """Fail unless logits agree within `LOGITS`; arguments as in `logit_difference`."""
    difference = logit_difference(found, wanted)
    assert difference <= LOGITS, f"a relative difference of {difference:.2g} {message}"


def assert_same_weights(found: Any, wanted: Any) -> None:
    """Fail unless two models have the same tensors: names, dtypes, shapes and bits.

    Args:
        found, wanted: models; names are compared without what an adapter adds to them.
    """
    ours, theirs = weights(found), weights(wanted)
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
    different = [name for name in theirs if not _same_bits(ours[name], theirs[name])]
    assert not different, different


def assert_same_model(found: Any, wanted: Any, **inputs: torch.Tensor) -> None:
    """Fail unless two models in evaluation mode have the same weights and give the same logits.

    Args:
        found, wanted: models of one class, with or without an adapter.
        **inputs: of their `forward`.
    """
    assert_same_weights(found, wanted)
    with torch.no_grad():
        assert_same_logits(found(**inputs).logits, wanted(**inputs).logits)


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a model by the names that they have without an adapter around them.

    The untrained copy that PEFT keeps of a trained head is left out.
    """
    found = {}
    for name, tensor in model.state_dict().items():
        if ".original_module." not in name:
            name = re.sub(r"\.modules_to_save\.[^.]+\.", ".", name.removeprefix("base_model.model."))
            found[re.sub(r"\.(lora_\w+)\.(?!weight$|bias$)[^.]+", r".\1", name)] = tensor
    return found


def misalign(model: Any, *, numbers: int = 4) -> Any:
    """Move every weight to an address `numbers` values after an aligned one, and return the model.

    On a CPU without AVX-512, or with `ATEN_CPU_CAPABILITY=avx2`, the logits then differ in the last place.
    """
    for parameter in model.parameters():
        behind = numbers * parameter.element_size()
        room = torch.empty(
            parameter.nbytes + behind, dtype=torch.uint8
        ).numpy()  # begins at an aligned address
        moved = torch.from_numpy(room[behind:])  # with a storage of its own, as saving asks for
        parameter.data = moved.view(parameter.dtype).view(parameter.shape).copy_(parameter.data)
    return model


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    both = (tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*both)
