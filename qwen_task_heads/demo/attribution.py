"""Word attribution: how the answer changes if one word is left out.

The method is leave-one-out, also called occlusion: Li, Monroe & Jurafsky 2016, "Understanding Neural Networks
through Representation Erasure", https://arxiv.org/abs/1612.08220. It needs no gradients, so that it is the
same for every backbone, pooling and head, and its unit is that of the answer. It does not see words that
replace each other: if either of two words is enough, neither changes the answer alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.inference.predictions import problem_type_of
from qwen_task_heads.inference.scorer import Scorer

# Scripts without spaces between words: kana, Han.
_HAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_PIECE = re.compile(rf"(?:[{_HAN}]|[^\s{_HAN}]+)\s*")


@dataclass(frozen=True)
class Attribution:
    """Contributions of the words of a text to one answer of a model.

    Args:
        label: the label with the highest probability, or the name of the only score.
        value: its probability, or the score, for the whole text.
        words: (word with the white space after it, contribution); joined they are the text, without leading
            white space. A contribution is the value with the word minus the value without it: positive if
            the word supports the label.
    """

    label: str
    value: float
    words: tuple[tuple[str, float], ...]

    @property
    def strongest(self) -> tuple[str, float]:
        """The word with the largest contribution, without white space, and that contribution."""
        word, change = max(self.words, key=lambda item: abs(item[1]))
        return word.strip(), change


def split_words(text: str) -> list[str]:
    """Split a text into words, each with the white space after it; a Han character or kana is one word.

    Example:
        >>> from qwen_task_heads.demo.attribution import split_words
        >>> split_words(" Cold food,\\nlate"), split_words("国足 2:0 获胜")
        (['Cold ', 'food,\\n', 'late'], ['国', '足 ', '2:0 ', '获', '胜'])
    """
    return _PIECE.findall(text)


def attribute_words(
    scorer: Scorer, text: str, *, text_pair: str | None = None, max_words: int = 100
) -> Attribution:
    """Return the contribution of every word of a text to the most probable label, or to the score.

    A text of n words is n + 1 rows of one call of the scorer, without the word in the i-th row.

    Args:
        scorer: of a classifier; of several regression outputs, the first one is attributed.
        text: two words or more.
        text_pair: second text of a model of pairs, which is not changed.
        max_words: most words of the text.

    Raises:
        TaskHeadsError: a text of one word or of too many, or one that the scorer refuses.

    Example:
        >>> from qwen_task_heads import Scorer, build, load_tokenizer
        >>> from qwen_task_heads.demo.attribution import attribute_words
        >>> model = build("embedded", task="pooled_classifier", labels=["card", "cash"])
        >>> found = attribute_words(Scorer(model, tokenizer=load_tokenizer("embedded")), "My card is lost")
        >>> [word for word, _ in found.words]
        ['My ', 'card ', 'is ', 'lost']
    """
    words = split_words(text)
    if len(words) > max_words:
        raise TaskHeadsError(
            Problem(
                "text",
                f"found {len(words):,} words",
                f"at most {max_words:,}, since each is left out once",
                "shorten the text",
                code="request-too-large",
            )
        )
    if len(words) == 1:
        raise TaskHeadsError(
            Problem(
                "text",
                "found one word, without which the text is empty",
                "two words or more",
                "add words",
                code="text-empty",
            )
        )
    rows = [text, *("".join(words[:place] + words[place + 1 :]).rstrip() for place in range(len(words)))]
    pairs = None if text_pair is None else [text_pair] * len(rows)
    config, logits = scorer.config, scorer.logits(rows, text_pairs=pairs).double()
    kind = problem_type_of(config)
    if kind == "regression":
        values = logits  # (n + 1, outputs)
    else:
        values = logits.sigmoid() if kind == "multi_label_classification" else logits.softmax(1)
    best = 0 if kind == "regression" else int(values[0].argmax())
    changes = (values[0, best] - values[1:, best]).tolist()
    return Attribution(config.id2label[best], float(values[0, best]), tuple(zip(words, changes, strict=True)))
