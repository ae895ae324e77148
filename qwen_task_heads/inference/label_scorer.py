"""Labels scored from their own tokens: what a chat model would answer, with probabilities and no parser.

The score of a label is the log-probability that the model writes exactly its tokens and then ends its turn.
Candidates are compared by a softmax over these, so an answer outside the set cannot happen. Three things are
computed once instead of once a label: what all prompts begin with (instruction, labels, examples), the rest
of each prompt, and what labels begin with alike (`label_trie`). The scores are those of every label alone to
rounding.

Options that change the question, each off by default:
- `length_normalized`: the mean over the label's tokens, as `acc_norm` of lm-evaluation-harness.
- `calibrate`: contextual calibration (Zhao et al. 2021, https://arxiv.org/abs/2102.09690): divide by what
  the model answers to texts without content.
- `with_end=False`: the probability that an answer begins with the label. For labels of one token each that
  is what transformers' `pipeline("decision")` computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from qwen_task_heads.data.few_shot import Shots
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.generators import file_of, load_generator
from qwen_task_heads.inference.identity import Stored, sample_weights
from qwen_task_heads.inference.inputs import (
    RAISE,
    candidate_problems,
    candidate_rows,
    check_rows,
    device_of,
    rows_of,
    without,
)
from qwen_task_heads.inference.label_trie import (
    Trie,
    fallback_reason,
    logits_of,
    make_trie,
    score_alone,
    sum_edges,
)
from qwen_task_heads.inference.predictions import Prediction, check_options, to_predictions
from qwen_task_heads.inference.prefix_cache import state_of
from qwen_task_heads.models import load_tokenizer
from qwen_task_heads.modelscope import HUGGINGFACE
from qwen_task_heads.tokenization.label_prompts import (
    LABEL_PROMPT,
    AnswerPrompts,
    instruction_for,
    read_label_prompt,
)

CONTENT_FREE = ("N/A", "[MASK]", "-")
LOGITS_BUDGET = 2**27  # floats of logits at a time: 512 MB in fp32, twice that for a moment
MAX_KEPT = 256  # sets of candidates whose calibration is kept
MIN_SHARED = 8  # tokens worth a pass of their own
KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]  # per layer, (1, heads, P, D)


class LabelScorer:
    """Score labels by their tokens with a causal language model.

    Args:
        model: of `AutoModelForCausalLM`, in eval mode.
        prompts: of the same model's tokenizer, with the labels.
        with_end: count the end of the answer too.
        length_normalized: the mean over tokens instead of the sum.
        calibrate: divide by the answers to texts without content.
        batch_tokens: positions that a batch holds keys and values of, its rows times prompt and labels;
            bounds the memory, changes no score.

    Example:
        >>> from transformers import AutoModelForCausalLM
        >>> from qwen_task_heads import LabelMap, load_tokenizer
        >>> from qwen_task_heads.pretrained import locate
        >>> from qwen_task_heads.tokenization.label_prompts import AnswerPrompts
        >>> from qwen_task_heads.inference.label_scorer import LabelScorer
        >>> model = AutoModelForCausalLM.from_pretrained(locate("embedded"))
        >>> labels = LabelMap(("sport", "trade"))
        >>> prompts = AnswerPrompts(load_tokenizer("embedded"), labels, model_type="qwen2")
        >>> LabelScorer(model, prompts=prompts).log_scores(["A match"]).shape
        torch.Size([1, 2])
    """

    is_title_scorer = takes_pairs = needs_pairs = int8 = False  # what is asked of a `Scorer`

    def __init__(
        self,
        model: Any,
        *,
        prompts: AnswerPrompts,
        with_end: bool = True,
        length_normalized: bool = False,
        calibrate: bool = False,
        batch_tokens: int = 32768,
        progress: bool = True,
    ) -> None:
        if batch_tokens < 1:
            found, remedy = f"found {batch_tokens}", "choose such as 32768"
            raise TaskHeadsError(Problem("batch_tokens", found, "1 or more", remedy))
        self.model, self.prompts = model.eval(), prompts
        self.stored: Stored = (None, {})
        self.length_normalized, self.calibrate = length_normalized, calibrate
        self.batch_tokens, self.progress = batch_tokens, progress
        ends = [prompts.end] if with_end else []
        self.answers = [[*ids, *ends] for ids in prompts.answers]
        self.fallback_reason = fallback_reason(model)
        self._kept: tuple[Any, KeysAndValues | None] = (None, None)  # state of the model, its instruction
        self._biases: dict[tuple[str, ...], tuple[Any, torch.Tensor]] = {}  # per candidates, as `_kept`

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        labels: LabelMap | None = None,
        instruction: str | None = None,
        revision: str | None = None,
        hub: str = HUGGINGFACE,
        dtype: torch.dtype | str = "auto",
        device: str | torch.device | None = None,
        **options: Any,
    ) -> LabelScorer:
        """Load a chat model, or one of `recipes/sft_classify.py`, which brings labels and instruction.

        Args:
            name: repo id or folder.
            labels: of a plain chat model; of a trained one None for its own.
            instruction: as of `AnswerPrompts`; None for that of the trained model, or the default.
            revision: branch, tag or commit.
            hub: `huggingface` or `modelscope`.
            dtype: of the weights; as of `load_generator`, that of the card's metrics when `auto`.
            device: where to run; the GPU if there is one when `auto`.
            **options: of the scorer.

        Raises:
            TaskHeadsError: no such model, a head (which `Scorer` opens), or no labels.
        """
        name, device = str(name), device_of(device)
        if not (labels is None or isinstance(labels, LabelMap)):
            accepted = "a LabelMap, or None for the labels of a trained model"
            remedy = 'pass labels=LabelMap(("good", "bad"))'
            raise TaskHeadsError(Problem("labels", f"found {shorten(labels)}", accepted, remedy))
        model = load_generator(name, revision=revision, hub=hub, dtype=dtype, merge=False)
        samples = sample_weights(model)
        if not isinstance(model, PreTrainedModel):  # PEFT's wrapper of an adapter
            model = model.merge_and_unload().eval()
        tokenizer = load_tokenizer(name, revision=revision, hub=hub)
        family = model.config.get_text_config().model_type
        path = file_of(name, LABEL_PROMPT, revision=revision, hub=hub)
        if path is None and labels is None:
            accepted = f"a model with {LABEL_PROMPT}, or a chat model and labels"
            raise TaskHeadsError(Problem(name, "found no labels", accepted, "pass labels=LabelMap((...))"))
        if path is None:
            words = instruction_for(labels) if instruction is None else instruction  # type: ignore[arg-type]
            prompts = AnswerPrompts(tokenizer, labels, instruction=words, model_type=family)  # type: ignore[arg-type]
        else:
            prompts = AnswerPrompts.load(path, tokenizer=tokenizer, model_type=family)
            options.setdefault("length_normalized", read_label_prompt(path)["length_normalized"])
        if path is not None and not (labels is None and instruction is None):
            prompts = AnswerPrompts(  # what is not given stays as it was trained
                tokenizer,
                labels or prompts.labels,
                instruction=prompts.instruction if instruction is None else instruction,
                model_type=family,
                max_length=prompts.max_length,
                truncation=prompts.truncation,
            )
        scorer = cls(model if device is None else model.to(device), prompts=prompts, **options)
        scorer.stored = state_of(scorer.model), samples
        return scorer

    @property
    def config(self) -> PreTrainedConfig:
        """Labels and problem type, as those of a classifier."""
        labels = self.prompts.labels
        return PreTrainedConfig(
            id2label=labels.id2label, label2id=labels.label2id, problem_type="single_label_classification"
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def predict(
        self,
        texts: Iterable[str],
        *,
        candidates: Iterable[Iterable[str] | None] | None = None,
        top_k: int | None = None,
        abstain: float | None = None,
        on_error: str = RAISE,
    ) -> list[Prediction]:
        """Labels with probabilities for n texts, as `Scorer.predict` gives them.

        Args:
            texts: n texts, not empty.
            candidates: as of `log_scores`.
            top_k: how many labels `ranked` holds; all when None, or if there are fewer.
            abstain: no label where the best probability is below it.
            on_error: `raise` refuses bad rows; `keep` gives a `Prediction` with an `error` in their place.

        Raises:
            TaskHeadsError: as of `log_scores`.
        """
        options: dict[str, Any] = {"top_k": top_k, "abstain": abstain}
        check_options("single_label_classification", **options)
        rows = rows_of("texts", texts)
        offered = candidate_rows(candidates, count=len(rows))
        scores, bad = self._log_scores(rows, offered, on_error=on_error)
        return to_predictions(scores, self.config, texts=rows, errors=bad, **options)

    def log_scores(
        self,
        texts: Iterable[str],
        *,
        candidates: Iterable[Iterable[str] | None] | None = None,
        shots: Iterable[Shots] | None = None,
    ) -> torch.Tensor:
        """Log-scores of all labels: (n, L) float64 on the CPU; -inf for labels that are no candidates.

        Without an option they are log-probabilities of the answers, and their exponentials sum to at most 1.

        Args:
            texts: n texts, not empty; long ones are cut as in training.
            candidates: per text, the names of the labels to choose from; all labels when None.
            shots: per text, the examples to show for it (`few_shot.choose_shots`), where the instruction has
                `{examples}`; those of the labels when None.

        Raises:
            TaskHeadsError: an empty text; candidates that are no labels, or name one twice; or calibration
                with such examples.
        """
        rows = rows_of("texts", texts)
        offered = candidate_rows(candidates, count=len(rows))
        return self._log_scores(rows, offered, None if shots is None else rows_of("shots", shots))[0]

    def _log_scores(
        self,
        texts: list[Any],
        candidates: list[Any],
        shots: Sequence[Shots] | None = None,
        *,
        on_error: str | None = None,
    ) -> tuple[torch.Tensor, Mapping[int, str]]:
        """Log-scores of the good rows, and the errors of the bad ones by their place."""
        wrong = candidate_problems(candidates, labels=self.prompts.labels)
        bad = check_rows(texts, None, names=("texts", "texts"), on_error=on_error, more=wrong)
        if self.calibrate and shots is not None:  # it is the context that is calibrated
            accepted, remedy = "the same examples for all", "drop it, or choose them by balance"
            raise TaskHeadsError(Problem("calibrate", "found true with examples per text", accepted, remedy))
        texts, candidates = without(texts, bad), without(candidates, bad)
        labels = self.prompts.labels
        given = [None if one is None else tuple(one) for one in candidates]
        # In the order of the schema, once for all rows that offer the same.
        ordered = {
            one: labels.names if one is None else labels.subset(one).names for one in dict.fromkeys(given)
        }
        asked: dict[tuple[str, ...], list[int]] = {}
        for index, one in enumerate(given):
            asked.setdefault(ordered[one], []).append(index)
        result = torch.full((len(texts), len(labels)), -torch.inf, dtype=torch.float64)
        for names, rows in asked.items():
            shown = None if shots is None else [shots[index] for index in rows]
            encoded = self.prompts.encode([texts[index] for index in rows], candidates=names, shots=shown)
            places = sorted(labels.label2id[name] for name in names)
            found = self._score(encoded.input_ids, places)
            if self.calibrate:
                found = found - self._content_free(names, places)
            result[torch.tensor(rows)[:, None], torch.tensor(places)] = found
        return result, bad

    def probabilities(
        self, texts: Iterable[str], *, candidates: Iterable[Iterable[str] | None] | None = None
    ) -> torch.Tensor:
        """P(label) among the candidates: (n, L) float64, rows sum to 1."""
        return self.log_scores(texts, candidates=candidates).softmax(-1)

    def _content_free(self, names: tuple[str, ...], places: list[int]) -> torch.Tensor:
        """Log of the mean probability of every label over texts without content: (len(places),)."""
        state = state_of(self.model)
        made, bias = self._biases.get(names, (None, None))
        if bias is None or made != state:
            rows = self.prompts.encode(CONTENT_FREE, candidates=names).input_ids
            # In logarithms: a long label is too improbable for its probability to be a number.
            bias = self._score(rows, places).log_softmax(-1).logsumexp(0) - math.log(len(rows))
            if len(self._biases) >= MAX_KEPT:
                self._biases.clear()
            self._biases[names] = state, bias
        return bias

    @torch.inference_mode()
    def _score(self, rows: list[list[int]], places: list[int]) -> torch.Tensor:
        """Log-scores (n, len(places)) of the labels at `places` after n prompts."""
        answers = [self.answers[place] for place in places]
        if self.fallback_reason is not None:
            return score_alone(self.model, rows, answers, length_normalized=self.length_normalized)
        trie = make_trie(answers)
        shared, before = self._before(rows)
        result = torch.empty(len(rows), len(answers), dtype=torch.float64)
        for batch in self._batches([len(row) for row in rows], nodes=1 + len(trie.tokens)):
            result[batch] = self._score_batch([rows[index][shared:] for index in batch], trie, before)
        if self.length_normalized:
            result /= trie.lengths
        return result

    def _before(self, rows: list[list[int]]) -> tuple[int, KeysAndValues | None]:
        """How many tokens all prompts begin with, and their keys and values.

        Those of the instruction with all labels are kept for the next call, so that a text asked alone does
        not pay for them, as long as the weights are the same.
        """
        begin = self.prompts.prefix
        size = len(begin)
        if size < MIN_SHARED or any(row[:size] != begin or len(row) == size for row in rows):
            shared = _shared(rows)
            return shared, self._encode(rows[0][:shared]) if shared else None
        state = state_of(self.model)
        made, kept = self._kept
        if made != state:
            kept = self._encode(begin)
            self._kept = state, kept
        return size, kept

    def _encode(self, ids: list[int]) -> KeysAndValues:
        """Keys and values per layer, (1, heads, P, D), of what all prompts begin with."""
        cache = DynamicCache()
        input_ids = torch.tensor([ids], device=self.model.device)
        self.model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _score_batch(self, rows: list[list[int]], trie: Trie, before: KeysAndValues | None) -> torch.Tensor:
        """Sum of the log-probabilities of every label's tokens, (B, L) float64, for B ends of prompts."""
        model, device = self.model, self.model.device
        past = before[0][0].shape[2] if before else 0
        count, longest = len(rows), max(map(len, rows))
        # Padded on the left, so that all prompts end in one column.
        ids = torch.tensor([[row[0]] * (longest - len(row)) + row for row in rows], device=device)
        sizes = torch.tensor([len(row) for row in rows], device=device)
        real = torch.arange(longest, device=device) >= longest - sizes[:, None]  # (B, T)
        real = torch.cat([real.new_ones(count, past), real], dim=1)  # (B, P + T)
        positions = (real.long().cumsum(1) - 1).clamp(min=0)
        kept = [(k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in before or ()]
        cache = DynamicCache(kept or None)
        found = logits_of(
            model,
            keep=1,
            input_ids=ids,
            attention_mask=real.long(),
            position_ids=positions[:, past:],
            past_key_values=cache,
            use_cache=True,
        )  # (B, 1, V)
        if len(trie.tokens):
            tree = trie.ancestors.to(device)[None].expand(count, -1, -1)  # (B, N, N)
            seen = torch.cat([real[:, None].expand(-1, len(trie.tokens), -1), tree], dim=2)[:, None]
            mask = torch.zeros(seen.shape, dtype=model.dtype, device=device)
            mask.masked_fill_(~seen, torch.finfo(model.dtype).min)
            more = logits_of(
                model,
                input_ids=trie.tokens.to(device)[None].expand(count, -1),
                attention_mask=mask,  # (B, 1, N, P + T + N)
                position_ids=past + sizes[:, None] - 1 + trie.depths.to(device),
                past_key_values=cache,
                use_cache=True,
            )
            found = torch.cat([found, more], dim=1)  # (B, 1 + N, V)
        return sum_edges(found, trie)

    def _batches(self, sizes: list[int], *, nodes: int) -> Iterable[list[int]]:
        """Indices of rows of similar length, within the memory of prompts and of logits."""
        most = max(1, LOGITS_BUDGET // (nodes * self.model.config.get_text_config().vocab_size))
        batches: list[list[int]] = []
        for index in sorted(range(len(sizes)), key=lambda index: sizes[index]):
            # Sorted: the last is the longest.
            if (
                not batches
                or (len(batches[-1]) + 1) * (sizes[index] + nodes) > self.batch_tokens
                or len(batches[-1]) >= most
            ):
                batches.append([])
            batches[-1].append(index)
        if not self.progress or len(sizes) <= 1000:
            return batches
        from tqdm.auto import tqdm

        return tqdm(batches, desc="Scoring labels", unit="batch")


def _shared(rows: list[list[int]]) -> int:
    """Tokens that all prompts begin with, of which one is left to each; 0 where a pass is not worth it."""
    first, last = min(rows), max(rows)
    most = min(map(len, rows)) - 1
    shared = next((at for at in range(most) if first[at] != last[at]), most)
    return shared if shared >= MIN_SHARED and len(rows) > 1 else 0
