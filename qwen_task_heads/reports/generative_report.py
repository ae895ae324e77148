"""Report of a run of `recipes/sft_classify.py`: save and measure a generative classifier.

Metrics, baselines and card are those of a classification run (`text_report.py`). The logits are the
log-probabilities of the labels, so that probabilities, calibration and confusions are comparable.

The measured model is the one that `load_generator` loads: the adapter merged, in the dtype of the run, which
`label_prompt.json` states. In half precision, merging an adapter changes its predictions.
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
from qwen_task_heads.hubcode.saving_task_heads import is_quantized
from qwen_task_heads.inference.decision_schema import write_decision
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.reports.finishing import FinishedTraining, Trained, initial_messages
from qwen_task_heads.reports.records import keep_reference
from qwen_task_heads.reports.text_report import TextReport
from qwen_task_heads.verification.reference import take_answer_reference


def finish_answers(
    model: Any, *, scorer: LabelScorer, tokenizer: Any, folder: str | Path, run: FinishedTraining, base: Base
) -> dict[str, Any]:
    """Save the model and its report, print the summary, and return the metrics.

    Args:
        model: a causal language model, or a `PeftModel` around one. Its adapter is merged after saving,
            unless the base is quantized.
        scorer: of the run; its model is replaced by `model`, whose weights are not sharded.
        tokenizer: of the model.
        folder: output folder of the model. Also receives `label_prompt.json`, `decision.json` if every label
            is one token, and the files of `finish_texts`.
        run: the finished training.
        base: base of the model, which an adapter names.
    """
    from peft import PeftModel

    folder = Path(folder)
    is_adapter = isinstance(model, PeftModel)
    if is_adapter:  # PEFT records the loaded path, which may be in a cache, and no commit
        adapter = model.peft_config[model.active_adapter]
        adapter.base_model_name_or_path = base.name
        adapter.revision = None if base.hub else base.revision
    scorer.model = model.get_base_model().eval() if is_adapter else model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    dtype = str(scorer.model.dtype).removeprefix("torch.")
    scorer.prompts.save(
        folder,
        base=base.as_dict() if is_adapter else None,
        length_normalized=scorer.length_normalized,
        with_end=scorer.with_end,
        dtype=dtype,
    )
    with suppress(TaskHeadsError):  # labels of several tokens, which only `LabelScorer` supports
        write_decision(folder, prompts=scorer.prompts)
    labels = scorer.prompts.labels
    config = PooledClassifierConfig(  # the labels and lengths that the report needs
        id2label=labels.id2label,
        label2id=labels.label2id,
        problem_type="single_label_classification",
        max_seq_length=scorer.prompts.max_length,
        truncation=scorer.prompts.truncation,
        backbone_revision=base.revision,
    )

    def logits(examples: Sequence[TextExample]) -> torch.Tensor:
        candidates = [example.candidates or None for example in examples]
        return scorer.log_scores([example.text for example in examples], candidates=candidates)

    # Before the merge: the reference describes the adapter and its base separately.
    texts = [example.text for example in run.sets.dev]
    take = partial(take_answer_reference, model, tokenizer=tokenizer, prompts=scorer.prompts, texts=texts)
    keep_reference(folder, take=take)
    if is_adapter and not is_quantized(model.config):
        model.merge_adapter()
    trained = Trained(config=config, is_adapter=is_adapter, is_generative=True)
    messages = initial_messages(model, run)
    return TextReport(trained, run, folder=folder, messages=messages, outputs=logits).write()
