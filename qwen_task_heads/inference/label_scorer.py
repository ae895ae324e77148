"""Score labels by the log-probabilities of their tokens under a causal language model.

The score of a label is the log-probability that the model generates exactly its tokens and then ends its
turn. If every label is one token, the end is left out, so that the scores are those of transformers'
`pipeline("decision")` and of servers that read one token. A softmax over the candidates gives probabilities,
so every answer is one of the candidates. Three computations are shared by all labels: the common prefix of
the prompts (instruction, labels, examples), the rest of each prompt, and common prefixes of labels
(`label_trie`). Up to rounding, the scores equal those of every label alone.

Options that change the score:
- `length_normalized`: the mean over the label's tokens, like `acc_norm` of lm-evaluation-harness.
- `calibrate`: contextual calibration (Zhao et al. 2021, https://arxiv.org/abs/2102.09690): divide by the
  probabilities for texts without content.
- `with_end`: whether the end of the turn is scored too. Without it, the score is the probability that an
  answer starts with the label, which favours a label that is the beginning of another one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from qwen_task_heads.data.few_shot import Shots
from qwen_task_heads.errors import error_at, shorten
from qwen_task_heads.generators import file_of, load_generator
from qwen_task_heads.hubs import HUGGINGFACE
from qwen_task_heads.inference.identity import Stored, sample_weights
from qwen_task_heads.inference.inputs import (
    RAISE,
    batches_by_length,
    candidate_problems,
    candidate_rows,
    check_count,
    check_rows,
    device_of,
    rows_of,
    with_progress,
    without,
)
from qwen_task_heads.inference.label_batches import (
    MIN_SHARED,
    KeysAndValues,
    encode_prefix,
    score_batch,
    shared_length,
)
from qwen_task_heads.inference.label_trie import fallback_reason, make_trie, score_alone
from qwen_task_heads.inference.predictions import Prediction, check_options, to_predictions
from qwen_task_heads.inference.prefix_cache import state_of
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.models import load_tokenizer
from qwen_task_heads.tokenization.label_prompts import (
    LABEL_PROMPT,
    AnswerPrompts,
    instruction_for,
    read_label_prompt,
)

CONTENT_FREE = ("N/A", "[MASK]", "-")
LOGITS_BUDGET = 2**27  # floats of logits at a time: 512 MB in fp32, with a peak of twice that
MAX_BIASES = 256  # sets of candidates whose calibration is cached


class LabelScorer:
    """Score labels by their tokens with a causal language model.

    Args:
        model: model of `AutoModelForCausalLM`, in eval mode.
        prompts: prompts of the model's tokenizer, with the labels.
        with_end: whether the end of the answer is scored too; None for labels of several tokens only. A
            generative classifier keeps the value with which it was measured.
        length_normalized: use the mean over tokens instead of the sum.
        calibrate: divide by the probabilities for texts without content.
        batch_tokens: positions in the key-value cache of a batch, its rows times prompt and labels; limits
            the memory and does not change scores.

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

    is_title_scorer = takes_pairs = needs_pairs = int8 = False  # as properties of `Scorer`

    def __init__(
        self,
        model: Any,
        *,
        prompts: AnswerPrompts,
        with_end: bool | None = None,
        length_normalized: bool = False,
        calibrate: bool = False,
        batch_tokens: int = 32768,
        progress: bool = True,
    ) -> None:
        check_count("batch_tokens", batch_tokens, example=32768)
        self.model, self.prompts = model.eval(), prompts
        self.stored: Stored = (None, {})
        self.length_normalized, self.calibrate = length_normalized, calibrate
        self.batch_tokens, self.progress = batch_tokens, progress
        one_token = all(len(ids) == 1 for ids in prompts.answers)
        self.with_end = not one_token if with_end is None else with_end
        ends = [prompts.end] if self.with_end else []
        self.answers = [[*ids, *ends] for ids in prompts.answers]
        self.fallback_reason = fallback_reason(model)
        self._cached: tuple[Any, KeysAndValues | None] = (None, None)  # state of the model, prefix
        self._biases: dict[tuple[str, ...], tuple[Any, torch.Tensor]] = {}  # candidates -> (state, bias)

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
        """Load a chat model, or a generative classifier with its labels and instruction.

        Args:
            name: repo id or folder.
            labels: labels of a plain chat model; None for those of a generative classifier.
            instruction: see `AnswerPrompts`; None for that of the generative classifier, or the default.
            revision: branch, tag or commit.
            hub: `huggingface` or `modelscope`.
            dtype: dtype of the weights; with `auto`, that of the card's metrics, see `load_generator`.
            device: device of the model; with `auto`, the GPU if there is one.
            **options: options of the scorer.

        Raises:
            TaskHeadsError: no such model, a model with a head (see `Scorer`), or no labels.
        """
        name, device = str(name), device_of(device)
        if not (labels is None or isinstance(labels, LabelMap)):
            raise error_at(
                "labels",
                f"found {shorten(labels)}",
                "a LabelMap, or None for the labels of a generative classifier",
                'pass labels=LabelMap(("good", "bad"))',
                code="argument-type",
            )
        model = load_generator(name, revision=revision, hub=hub, dtype=dtype, merge=False)
        samples = sample_weights(model)
        if not isinstance(model, PreTrainedModel):  # a PeftModel
            model = model.merge_and_unload().eval()
        tokenizer = load_tokenizer(name, revision=revision, hub=hub)
        family = model.config.get_text_config().model_type
        path = file_of(name, LABEL_PROMPT, revision=revision, hub=hub)
        if path is not None:
            prompts = AnswerPrompts.load(path, tokenizer=tokenizer, model_type=family)
            saved = read_label_prompt(path)
            options.setdefault("length_normalized", saved["length_normalized"])
            if labels is None:  # other labels may have more tokens
                options.setdefault("with_end", saved["with_end"])
            if not (labels is None and instruction is None):
                prompts = AnswerPrompts(  # arguments that are not given keep their trained values
                    tokenizer,
                    labels or prompts.labels,
                    instruction=prompts.instruction if instruction is None else instruction,
                    model_type=family,
                    max_length=prompts.max_length,
                    truncation=prompts.truncation,
                )
        elif labels is not None:
            text = instruction_for(labels) if instruction is None else instruction
            prompts = AnswerPrompts(tokenizer, labels, instruction=text, model_type=family)
        else:
            expected, fix = (
                f"a model with {LABEL_PROMPT}, or a chat model and labels",
                "pass labels=LabelMap((...))",
            )
            raise error_at(name, "found no labels", expected, fix, code="option-missing")
        scorer = cls(model if device is None else model.to(device), prompts=prompts, **options)
        scorer.stored = state_of(scorer.model), samples
        return scorer

    @property
    def config(self) -> PreTrainedConfig:
        """Config with labels and problem type, as of a classifier."""
        labels = self.prompts.labels
        return PreTrainedConfig(
            id2label=labels.id2label, label2id=labels.label2id, problem_type="single_label_classification"
        )

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
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
        """Predict labels with probabilities for n texts.

        Args:
            texts, top_k, abstain, on_error: see `Scorer.predict`.
            candidates: see `log_scores`.

        Raises:
            TaskHeadsError: see `log_scores`.
        """
        options: dict[str, Any] = {"top_k": top_k, "abstain": abstain}
        check_options(self.config, **options)
        rows = rows_of("texts", texts)
        names = candidate_rows(candidates, count=len(rows))
        scores, bad = self._log_scores(rows, names, on_error=on_error)
        return to_predictions(scores, self.config, texts=rows, errors=bad, **options)

    def log_scores(
        self,
        texts: Iterable[str],
        *,
        candidates: Iterable[Iterable[str] | None] | None = None,
        shots: Iterable[Shots] | None = None,
    ) -> torch.Tensor:
        """Return log-scores of all labels: (n, L) float64 on the CPU; -inf for labels outside the candidates.

        By default they are log-probabilities of the answers, and their exponentials sum to at most 1.

        Args:
            texts: n texts, not empty; long ones are truncated as in training.
            candidates: per text, the names of the candidate labels; all labels if None.
            shots: per text, its examples (`few_shot.choose_shots`), if the instruction has `{examples}`;
                those of the labels if None.

        Raises:
            TaskHeadsError: an empty text; candidates that are unknown or repeated; or calibration with
                examples per text.
        """
        rows = rows_of("texts", texts)
        names = candidate_rows(candidates, count=len(rows))
        return self._log_scores(rows, names, None if shots is None else rows_of("shots", shots))[0]

    def _log_scores(
        self,
        texts: list[Any],
        candidates: list[Any],
        shots: Sequence[Shots] | None = None,
        *,
        on_error: str | None = None,
    ) -> tuple[torch.Tensor, Mapping[int, str]]:
        """Return log-scores of the valid rows, and the errors of the invalid ones by their index."""
        wrong = candidate_problems(candidates, labels=self.prompts.labels)
        bad = check_rows(texts, None, names=("texts", "texts"), on_error=on_error, more=wrong)
        if self.calibrate and shots is not None:  # calibration is of one context
            raise error_at(
                "calibrate",
                "found true with examples per text",
                "the same examples for all texts",
                "drop it, or choose them by balance",
                code="option-conflict",
            )
        texts, candidates = without(texts, bad), without(candidates, bad)
        labels = self.prompts.labels
        given = [None if names is None else tuple(names) for names in candidates]
        # In the order of the schema, once for all rows with the same candidates.
        ordered = {
            names: labels.names if names is None else labels.subset(names).names
            for names in dict.fromkeys(given)
        }
        groups: dict[tuple[str, ...], list[int]] = {}
        for index, names in enumerate(given):
            groups.setdefault(ordered[names], []).append(index)
        result = torch.full((len(texts), len(labels)), -torch.inf, dtype=torch.float64)
        for group, rows in groups.items():
            row_shots = None if shots is None else [shots[index] for index in rows]
            encoded = self.prompts.encode([texts[index] for index in rows], candidates=group, shots=row_shots)
            places = sorted(labels.label2id[name] for name in group)
            scores = self._score(encoded.input_ids, places)
            if self.calibrate:
                scores = scores - self._content_free(group, places)
            result[torch.tensor(rows)[:, None], torch.tensor(places)] = scores
        return result, bad

    def probabilities(
        self, texts: Iterable[str], *, candidates: Iterable[Iterable[str] | None] | None = None
    ) -> torch.Tensor:
        """Return P(label) among the candidates: (n, L) float64, rows sum to 1."""
        return self.log_scores(texts, candidates=candidates).softmax(-1)

    def _content_free(self, names: tuple[str, ...], places: list[int]) -> torch.Tensor:
        """Return the log of the mean probability of labels for texts without content: (len(places),)."""
        state = state_of(self.model)
        bias_state, bias = self._biases.get(names, (None, None))
        if bias is None or bias_state != state:
            rows = self.prompts.encode(CONTENT_FREE, candidates=names).input_ids
            # In logarithms, because the probability of a long label may underflow.
            bias = self._score(rows, places).log_softmax(-1).logsumexp(0) - math.log(len(rows))
            if len(self._biases) >= MAX_BIASES:
                self._biases.clear()
            self._biases[names] = state, bias
        return bias

    @torch.inference_mode()
    def _score(self, rows: list[list[int]], places: list[int]) -> torch.Tensor:
        """Return log-scores (n, len(places)) of the labels at `places` after n prompts."""
        answers = [self.answers[place] for place in places]
        if self.fallback_reason is not None:
            return score_alone(self.model, rows, answers, length_normalized=self.length_normalized)
        trie = make_trie(answers)
        shared, prefix = self._prefix(rows)
        result = torch.empty(len(rows), len(answers), dtype=torch.float64)
        nodes = 1 + len(trie.tokens)
        batches = batches_by_length(
            [len(row) for row in rows],
            limit=self.batch_tokens,
            extra=nodes,
            max_rows=max(1, LOGITS_BUDGET // (nodes * self.model.config.get_text_config().vocab_size)),
        )
        for batch in with_progress(batches, rows=len(rows), shown=self.progress, name="Scoring labels"):
            result[batch] = score_batch(self.model, [rows[index][shared:] for index in batch], trie, prefix)
        if self.length_normalized:
            result /= trie.lengths
        return result

    def _prefix(self, rows: list[list[int]]) -> tuple[int, KeysAndValues | None]:
        """Return the length of the common prefix of the prompts, and its keys and values.

        The prefix with the instruction and all labels is cached for the next call, while the weights are the
        same.
        """
        prefix = self.prompts.prefix
        size = len(prefix)
        if size < MIN_SHARED or any(row[:size] != prefix or len(row) == size for row in rows):
            shared = shared_length(rows)
            return shared, encode_prefix(self.model, rows[0][:shared]) if shared else None
        state = state_of(self.model)
        cached_state, cached = self._cached
        if cached_state != state:
            cached = encode_prefix(self.model, prefix)
            self._cached = state, cached
        return size, cached
