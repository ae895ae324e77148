"""Labels as a trie of tokens, so that shared prefixes of labels are computed once.

Nodes attend to the prompt and to their ancestors (tree attention, Miao et al. 2024,
https://arxiv.org/abs/2305.09781). `score_alone` computes the same label by label. The tests compare the trie
with it, and it is used if the attention of a family does not support masks of four dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel

from qwen_task_heads.hubcode.attention_task_heads import rotates_by_length, window_of
from qwen_task_heads.hubcode.families_task_heads import family_of

ROWS = 16384  # rows of the vocabulary that are converted to fp32 at a time


def fallback_reason(model: Any) -> str | None:
    """Return why every label is scored alone; None if the trie is exact."""
    config = model.config.get_text_config()
    if not family_of(config.model_type).packable:
        return f"the attention of {config.model_type!r} does not support a trie of labels"
    if window_of(config) is not None:
        return "a sliding window would truncate the trie of labels"
    if rotates_by_length(config):
        return "the rotation of positions depends on the length of the row, which a trie does not have"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"attention {config._attn_implementation!r} does not support masks of four dimensions"
    return None


@dataclass(frozen=True)
class Trie:
    """Trie of label tokens. Node 0 is the end of the prompt; node k > 0 is token `tokens[k - 1]`.

    Args:
        tokens: ids of the n inner nodes, parents first.
        depths: depths of the nodes, 1 below the prompt.
        ancestors: (n, n) bool, true at `[i, j]` if node j is node i or an ancestor of it.
        edges: (node, token) pairs that are scored, each once.
        steps: (label, edge) pairs; the score of a label is the sum over its edges.
        lengths: number of edges of every label.
    """

    tokens: torch.Tensor
    depths: torch.Tensor
    ancestors: torch.Tensor
    edges: torch.Tensor
    steps: torch.Tensor
    lengths: torch.Tensor


def make_trie(answers: Sequence[Sequence[int]]) -> Trie:
    """Build a trie that merges shared prefixes of answers.

    Args:
        answers: token ids of every label, with the end if it is scored.

    Example:
        >>> from qwen_task_heads.inference.label_trie import make_trie
        >>> trie = make_trie([[5, 6, 1], [5, 7, 1], [8, 1]])
        >>> trie.tokens.tolist(), trie.lengths.tolist()
        ([5, 6, 7, 8], [3, 3, 2])
    """
    nodes: dict[tuple[int, ...], int] = {(): 0}
    for answer in answers:
        for size in range(1, len(answer)):  # the last token is only scored
            nodes.setdefault(tuple(answer[:size]), len(nodes))
    paths = list(nodes)[1:]
    ancestors = torch.zeros(len(paths), len(paths), dtype=torch.bool)
    for path in paths:
        for size in range(1, len(path) + 1):
            ancestors[nodes[path] - 1, nodes[path[:size]] - 1] = True
    edges: dict[tuple[int, int], int] = {}
    steps = []
    for label, answer in enumerate(answers):
        for size, token in enumerate(answer):
            edge = edges.setdefault((nodes[tuple(answer[:size])], token), len(edges))
            steps.append((label, edge))
    return Trie(
        tokens=torch.tensor([path[-1] for path in paths], dtype=torch.long),
        depths=torch.tensor([len(path) for path in paths], dtype=torch.long),
        ancestors=ancestors,
        edges=torch.tensor(list(edges)),
        steps=torch.tensor(steps),
        lengths=torch.tensor([len(answer) for answer in answers]),
    )


def sum_edges(logits: torch.Tensor, trie: Trie) -> torch.Tensor:
    """Return log-probabilities of labels (B, L) float64 from the logits (B, nodes, V) of the trie's nodes."""
    edges, steps = trie.edges.to(logits.device), trie.steps
    # Row by row: a float64 copy of all logits would triple the memory.
    norms = torch.stack([row.double().logsumexp(-1) for row in logits])  # (B, nodes)
    chosen = logits[:, edges[:, 0], edges[:, 1]].double() - norms[:, edges[:, 0]]  # (B, edges)
    result = torch.zeros(len(logits), len(trie.lengths), dtype=torch.float64)
    return result.index_add_(1, steps[:, 0], chosen.cpu()[:, steps[:, 1]])


def logits_of(model: Any, *, keep: int = 0, **inputs: Any) -> torch.Tensor:
    """Return logits (B, T, V) of the last `keep` positions, or of all, of a causal language model.

    For a model in half precision, the last matrix is computed in fp32. Logits near 20 in bf16 have steps of
    1/8, so probabilities would have steps of 13%, and different labels would tie. Families without
    `plain_logits` compute their logits themselves, because they may apply more than a matrix (soft caps,
    scales). So do models whose last matrix has an adapter or is sharded.

    Args:
        model: model of `AutoModelForCausalLM`.
        keep: see `logits_to_keep` of transformers.
        **inputs: inputs of the model.
    """
    head = model.get_output_embeddings()
    # ZeRO-3 leaves a sharded weight with one dimension.
    is_matrix = type(head) is torch.nn.Linear and head.weight.dim() == 2 and head.weight.dtype.itemsize <= 2
    family = family_of(model.config.get_text_config().model_type)
    if not is_matrix or not isinstance(model, PreTrainedModel) or not family.plain_logits:
        return model(**inputs, logits_to_keep=keep).logits
    states = model.base_model(**inputs).last_hidden_state[:, -keep:].float()
    logits = torch.cat([linear(states, rows.float()) for rows in head.weight.split(ROWS)], dim=-1)
    return logits if head.bias is None else logits + head.bias.float()


@torch.inference_mode()
def score_alone(
    model: Any,
    rows: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    length_normalized: bool = False,
) -> torch.Tensor:
    """Return log-scores (n, L) float64 of L answers after n prompts, one prompt and answer at a time.

    This is exact for any causal model, and slow.
    """
    result = torch.empty(len(rows), len(answers), dtype=torch.float64)
    for index, place, score in _alone(model, rows, answers):
        result[index, place] = score / len(answers[place]) if length_normalized else score
    return result


def _alone(
    model: Any, rows: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Iterator[tuple[int, int, float]]:
    for index, row in enumerate(rows):
        for place, answer in enumerate(answers):
            ids = torch.tensor([[*row, *answer]], device=model.device)
            logits = logits_of(model, input_ids=ids, use_cache=False)[0, len(row) - 1 : -1]
            scores = logits.double().log_softmax(-1)
            yield index, place, float(scores.gather(1, ids[0, len(row) :, None]).sum())
