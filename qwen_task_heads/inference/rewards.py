"""Rewards from a title scorer, for trl's GRPO and for best-of-n selection.

Design:
- Scores have no unit. A reward is in standard deviations of the scores of real titles, and 0 is the mean of
  the scorer's dev titles. The constants (`reward_mean` and others) are in the scorer's config, written by its
  training.
- A completion without a title gets a lower reward than every title of the call. Rewards of titles are not
  clipped for this, because equal rewards give no gradient, and the first titles of a generator may score far
  below real ones.

Sources: GRPO, Shao et al. 2024, arXiv:2402.03300; best of n, Stiennon et al. 2020, arXiv:2009.01325; length
as what reward models overrate, Singhal et al. 2023, arXiv:2310.03716.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.inference.completions import Completion, read_completions, text_of, title_of
from qwen_task_heads.inference.inputs import rows_of
from qwen_task_heads.inference.scorer import Scorer

LOWEST = -5.0  # standard deviations from the mean
CONSTANTS = ("reward_mean", "reward_std", "reward_length_mean", "reward_length_slope")


def reward_constants(scores: ArrayLike, lengths: ArrayLike) -> dict[str, float]:
    """Compute the constants of rewards: the fields `reward_*` of `TitleScorerConfig`.

    Args:
        scores: (N,) scores of different titles, with their prompts if they have any.
        lengths: (N,) lengths of the titles in characters.

    Returns:
        Mean and standard deviation of the scores, mean length, and the slope of the least-squares line of
        score over length, in score per character (0 if all titles have the same length).

    Raises:
        TaskHeadsError: no titles, another number of lengths than of scores, or values that are not finite.

    Example:
        >>> from qwen_task_heads.inference.rewards import reward_constants
        >>> reward_constants([0.0, 1.0, 2.0], [10, 20, 30])["reward_length_slope"]
        0.1
    """
    s, n = np.asarray(scores, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    if s.ndim != 1 or s.shape != n.shape or not s.size or not (np.isfinite(s).all() and np.isfinite(n).all()):
        raise error_at(
            "reward_constants",
            f"found shapes {s.shape} and {n.shape}, or values that are not finite",
            "as many finite scores as lengths, at least one",
            "check both arguments",
            code="argument-type",
        )
    spread = n - n.mean()
    slope = float(spread @ s / (spread @ spread)) if spread.any() else 0.0
    values = (float(s.mean()), float(s.std()), float(n.mean()), slope)
    return {name: round(value, 8) for name, value in zip(CONSTANTS, values, strict=True)}


def _check_numbers(*, lowest: Any, length_penalty: Any) -> None:
    """Raise if `lowest` is not a finite number, or `length_penalty` not from 0 to 1."""
    problems = []
    if not isinstance(lowest, Real) or not np.isfinite(float(lowest)):
        problems.append(
            Problem(
                "lowest",
                f"found {shorten(lowest)}",
                "a finite number",
                "choose such as -5",
                code="option-range",
            )
        )
    if not isinstance(length_penalty, Real) or not 0 <= float(length_penalty) <= 1:
        problems.append(
            Problem(
                "length_penalty",
                f"found {shorten(length_penalty)}",
                "0 (the length bias is kept) to 1 (it is removed)",
                "choose such as 0.5",
                code="option-range",
            )
        )
    if problems:
        raise TaskHeadsError(problems)


@dataclass(frozen=True)
class Best:
    """The best of several completions: its title, its index, and the rewards of all."""

    title: str
    index: int
    rewards: list[float]


@dataclass(frozen=True)
class Paid:
    """The reward of one completion, with the user's prompt, the title and the whole completion."""

    prompt: str
    title: str
    reward: float
    completion: str


class TitleReward:
    """Rewards for the titles in completions, from a trained title scorer; a `reward_funcs` entry of trl.

    A reward is `(score − length_penalty · slope · (length − mean length) − mean) / standard deviation`.
    Equal titles of a call are scored once, and rows are packed. In a run of several processes, each process
    has its own scorer.

    Args:
        scorer: a `Scorer`, or repo id or folder of a title scorer.
        normalise: whether rewards are in standard deviations from the mean, by the constants of the scorer's
            config. With False they are the scores, in the same order.
        length_penalty: share of the scorer's linear length bias that is removed, from 0 to 1. An effect of
            length that is justified is removed too. Lengths are in characters.
        lowest: reward of a completion without a title, in the units of the rewards. If a title of the same
            call has this reward or less, the completion gets one less than that title.
        context: column of the training data with the context that the scorer reads with a title, such as the
            article; `prompt` for the prompts (the user's messages). None for titles only.
        options: options of `Scorer` if a name is given: `device`, `revision`, `hub`, `dtype`, `batch_tokens`.

    Attributes:
        last: the rewards of the completions of the last call, in their order, for logging.

    Raises:
        TaskHeadsError: a classifier, a scorer without the needed constants, or a `length_penalty` outside
            0 to 1.

    Example:
        >>> from qwen_task_heads import Scorer, TitleReward, build, load_tokenizer
        >>> scorer = Scorer(build("embedded"), tokenizer=load_tokenizer("embedded"))
        >>> reward = TitleReward(scorer, normalise=False)
        >>> rewards = reward(prompts=["A title?"] * 2, completions=["Ten ways to rest", "<title></title>"])
        >>> len(rewards), rewards[0] > rewards[1]
        (2, True)
    """

    __name__ = "title_reward"  # the name in trl's logs

    def __init__(
        self,
        scorer: Scorer | str | Path,
        *,
        normalise: bool = True,
        length_penalty: float = 0.0,
        lowest: float = LOWEST,
        context: str | None = None,
        **options: Any,
    ) -> None:
        _check_numbers(lowest=lowest, length_penalty=length_penalty)
        self.last: list[Paid] = []
        self.scorer = (
            scorer if isinstance(scorer, Scorer) else Scorer(scorer, **{"progress": False, **options})
        )
        self.lowest, self.context = float(lowest), context
        if not self.scorer.is_title_scorer:
            raise error_at(
                "TitleReward",
                "found a classifier",
                "a title scorer",
                "name a model of recipes/reward_titles.py",
                code="model-type",
            )
        config = self.scorer.model.config.to_dict()
        known = {name: config[name] for name in CONSTANTS}
        self.mean, self.std, self.length_mean, slope = 0.0, 1.0, 0.0, 0.0
        if normalise or length_penalty:
            missing = [name for name, value in known.items() if value is None]
            if missing or (normalise and not known["reward_std"]):
                name = str(self.scorer.model.config.name_or_path) or "the scorer"
                raise error_at(
                    f"config of {shorten(name)}",
                    f"{', '.join(missing)} not set" if missing else "found reward_std 0: all scores equal",
                    "constants of its dev titles",
                    "train it by recipes/reward_titles.py, or pass normalise=False and no length_penalty",
                    code="config-invalid",
                )
            self.length_mean, slope = known["reward_length_mean"], known["reward_length_slope"]
        if normalise:
            self.mean, self.std = known["reward_mean"], known["reward_std"]
        self.slope = length_penalty * slope

    def __call__(
        self,
        prompts: Sequence[Completion],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Return the rewards of n completions; called by trl's `GRPOTrainer`.

        Args:
            prompts: n prompts, texts or conversations.
            completions: n completions, texts or conversations.
            completion_ids: ignored; trl passes it.
            log_metric: trl's logger; receives the mean length of the titles and the share of completions
                without a title.
            columns: n values of each column of the training data; only `context` is read.

        Returns:
            n finite numbers.

        Raises:
            TaskHeadsError: completions that are neither texts nor conversations, an unknown column in
                `context`, or different numbers of prompts and completions.
        """
        completions = read_completions("completions", completions)
        prompts = rows_of("prompts", prompts)
        titles = [title_of(completion) for completion in completions]
        contexts = [""] * len(titles)
        if self.context == "prompt":
            contexts = [text_of(prompt, role="user") for prompt in prompts]
        elif self.context is not None:
            if self.context not in columns:
                raise error_at(
                    "context",
                    f"column {self.context!r} is missing",
                    "prompt, " + ", ".join(sorted(columns)),
                    "name a column of the data",
                    code="column-missing",
                )
            values = rows_of(self.context, columns[self.context])
            # An empty value, None and NaN mean no context.
            contexts = ["" if not value or value != value else str(value) for value in values]
        if len(contexts) != len(titles):
            raise error_at(
                "TitleReward",
                f"found {len(contexts)} prompts for {len(titles)} completions",
                "one prompt per completion",
                "pass one for each",
                code="argument-type",
            )
        if log_metric is not None and titles:
            log_metric("title_characters", float(np.mean([len(title) for title in titles])))
            log_metric("without_title", float(np.mean([not title for title in titles])))
        rewards = self._rewards(titles, contexts)
        self.last = [
            Paid(text_of(prompt, role="user"), title, reward, text_of(completion, role="assistant"))
            for prompt, title, reward, completion in zip(prompts, titles, rewards, completions, strict=True)
        ]
        return rewards

    def best_of_n(self, completions: Sequence[Completion], *, prompt: str = "") -> Best:
        """Return the best of n completions, the first one of ties.

        Args:
            completions: n completions, texts or conversations.
            prompt: the context that the scorer reads with a title.

        Raises:
            TaskHeadsError: not a list of texts or conversations, or no completion has a title.

        Example:
            >>> from qwen_task_heads import Scorer, TitleReward, build, load_tokenizer
            >>> scorer = Scorer(build("embedded"), tokenizer=load_tokenizer("embedded"))
            >>> best = TitleReward(scorer, normalise=False).best_of_n(["", "<title>A title</title>"])
            >>> best.title, best.index
            ('A title', 1)
        """
        completions = read_completions("best_of_n", completions)
        titles = [title_of(completion) for completion in completions]
        if not any(titles):
            raise error_at(
                "best_of_n",
                f"found no title in {len(titles)} completions",
                "at least one title",
                "generate more",
                code="value-missing",
            )
        rewards = self._rewards(titles, [prompt] * len(titles))
        index = max((place for place, title in enumerate(titles) if title), key=lambda place: rewards[place])
        return Best(titles[index], index, rewards)

    def _rewards(self, titles: Sequence[str], contexts: Sequence[str]) -> list[float]:
        """Return the rewards of titles, "" for none; each pair of context and title is scored once."""
        rows = list(dict.fromkeys((c, t) for c, t in zip(contexts, titles, strict=True) if t))
        prompts = [context for context, _ in rows]
        scores = self.scorer.score([t for _, t in rows], prompts=prompts if any(prompts) else None)
        rewards = {
            row: (score - self.slope * (len(row[1]) - self.length_mean) - self.mean) / self.std
            for row, score in zip(rows, scores, strict=True)
        }
        lowest = min([self.lowest, *(reward - 1 for reward in rewards.values())])
        return [rewards.get(row, lowest) for row in zip(contexts, titles, strict=True)]
