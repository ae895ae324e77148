"""The end of a run of `recipes/sft_classify.py`: a language model that writes the label, saved and measured.

Everything but the engine is as at the end of a classification run (`text_outcome.py`): the same metrics, the
same baselines, the same card. The logits are the labels' log-probabilities, so that probabilities,
calibration and confusions mean the same on both.

What is measured is what `load_generator` opens: the adapter merged, in the dtype of the run, which
`label_prompt.json` states. In half precision merging an adapter changes its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.generators import Base
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig
from qwen_task_heads.inference.decision_schema import write_decision
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.reports.card_facts import Trained
from qwen_task_heads.reports.finishing import first_notes
from qwen_task_heads.reports.records import keep_reference
from qwen_task_heads.reports.text_report import TextRun, record_texts
from qwen_task_heads.verification.reference import is_quantized, take_answer_reference


def finish_answers(
    model: Any, *, scorer: LabelScorer, tokenizer: Any, folder: str | Path, run: TextRun, base: Base
) -> dict[str, Any]:
    """Save the model and everything that is known about it; print the summary; return the metrics.

    Args:
        model: a causal language model, or a `PeftModel` around one, whose adapter is merged afterwards unless
            the base is quantized.
        scorer: of the run; it goes on with `model`, whose weights are whole also where they were sharded.
        tokenizer: the model's own.
        folder: where the model goes; also `label_prompt.json`, and `decision.json` where every label is one
            token; the rest as of `finish_texts`.
        run: the account of the run.
        base: what the model was trained from, which an adapter names.
    """
    from peft import PeftModel

    folder = Path(folder)
    is_adapter = isinstance(model, PeftModel)
    if is_adapter:  # PEFT has the path that was opened, which may be a cache, and no commit
        adapter = model.peft_config[model.active_adapter]
        adapter.base_model_name_or_path = base.name
        adapter.revision = None if base.hub else base.revision
    scorer.model = model.get_base_model().eval() if is_adapter else model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    stated = base.as_dict() if is_adapter else None
    dtype = str(scorer.model.dtype).removeprefix("torch.")
    scorer.prompts.save(folder, base=stated, length_normalized=scorer.length_normalized, dtype=dtype)
    with suppress(TaskHeadsError):  # of labels of several tokens, which `LabelScorer` alone reads
        write_decision(folder, prompts=scorer.prompts)
    labels = scorer.prompts.labels
    config = PooledClassifierConfig(  # what the account asks: a classifier's labels and lengths
        id2label=labels.id2label,
        label2id=labels.label2id,
        problem_type="single_label_classification",
        max_seq_length=scorer.prompts.max_length,
        truncation=scorer.prompts.truncation,
        backbone_revision=base.revision,
    )

    def logits(examples: Sequence[TextExample]) -> torch.Tensor:
        offered = [example.candidates or None for example in examples]
        return scorer.log_scores([example.text for example in examples], candidates=offered)

    # Before the merge: the reference describes the adapter and its base one by one.
    held = [example.text for example in run.sets.dev]
    take = partial(take_answer_reference, model, tokenizer=tokenizer, prompts=scorer.prompts, texts=held)
    keep_reference(folder, take=take)
    if is_adapter and not is_quantized(model):
        model.merge_adapter()
    return record_texts(
        Trained(config=config, is_adapter=is_adapter, answers=True),
        logits=logits,
        folder=folder,
        run=run,
        notes=first_notes(model, run),
    )
