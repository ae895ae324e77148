"""Benchmark of scoring labels by a trie, against `generate()` and against one row per label.

    python benchmarks/generative.py             # minutes
    python benchmarks/generative.py --full      # all rows and sizes
    python benchmarks/generative.py --only equal --full --device cuda

Prompts have the real parts: chat template, instruction with all labels, texts and labels of a data set under
Qwen's tokenizer. Ids are folded into a vocabulary of 8,192 and weights are random; `speed_workloads.py`
states the reason. Both sides run in one process, in alternating turns (`speed_measure.py`), and encode the
texts themselves.

Peers process one text at a time, as a loop over `generate()` does. Their time per text does not depend on the
number of texts, so that they get fewer texts, and a ratio is one of times per text. Each peer runs in its
fastest setting. `generate()` writes as many tokens as the text's true label and its end; the 512 tokens that
the published script allows are a separate row. Rows of labels are padded into one batch per text, with logits
at the answers only.
"""

from __future__ import annotations

import os

# Set before torch is imported: the time of actively waiting threads would be counted for the other side.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import speed_report
import speed_run
import torch
from speed_measure import Bench, Result, clocked, take_turns
from speed_workloads import END, PAD, VOCABULARY, NoData, backbone, tokenizer
from transformers import DynamicCache, Qwen2ForCausalLM

from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.inference.label_trie import make_trie, score_alone
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.tokenization.label_prompts import INSTRUCTION, AnswerPrompts, Prompts

DATASETS = ("banking77", "fewclue-tnews")
GENERATE, SEPARATE = 20.0, 5.0  # target ratios
LIMIT = 512  # tokens that the published script may write for a label
TOLERANCE = 1e-5
SHORT = "Text: "  # an instruction without the labels, because 23,800 rows are scored separately
HEAD = """# Speed of label scoring

`python benchmarks/generative.py --full`. *ratio* is the time of the peer per text over ours, the median over
at least five turns. *limit* is computed: the tokens of the peer over ours. The overhead of one call per token
can raise a ratio above it. The docstring of that file describes both sides.
"""
Rows = tuple[list[str], list[int]]  # texts and the ids of their labels
Peer = Callable[[LabelScorer, list[str], list[int]], torch.Tensor | None]


class Folded(AnswerPrompts):
    """Prompts of a real tokenizer whose ids are folded into the small vocabulary; its end is `END`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.end = END
        answers = [tuple(fold(ids)) for ids in self.answers]
        if len({*answers}) < len(answers):
            raise NoData("two labels have the same tokens once folded")
        self.answers = [list(ids) for ids in answers]

    def encode(self, texts: Any, **options: Any) -> Prompts:
        """Return the prompts with folded ids."""
        prompts = super().encode(texts, **options)
        return Prompts([fold(row) for row in prompts.input_ids], prompts.cut)


def fold(ids: list[int]) -> list[int]:
    """Map ids into the small vocabulary, without pad and end; equal ids stay equal."""
    return [2 + token % (VOCABULARY - 2) for token in ids]


def read(bench: Bench, name: str, count: int) -> tuple[LabelMap, Rows]:
    """Return the labels of a data set, and texts with the ids of their labels, shuffled once."""
    folder = bench.data_dir / name
    if not (folder / "class.txt").is_file():
        raise NoData(f"{name} is not in {bench.data_dir}")
    lines = (folder / "test_public.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    random.Random(0).shuffle(rows)
    labels = LabelMap.read(folder / "class.txt")
    return labels, ([row["text"] for row in rows[:count]], [int(row["label"]) for row in rows[:count]])


def scorer(bench: Bench, labels: LabelMap, **options: Any) -> LabelScorer:
    """Return a label scorer with a random language model of the small shape."""
    torch.manual_seed(0)
    config = backbone("small")
    config.eos_token_id = END
    model = Qwen2ForCausalLM(config).eval().to(bench.device)
    model.generation_config.pad_token_id = PAD
    prompts = Folded(tokenizer(bench), labels, model_type="qwen2", **options)
    return LabelScorer(model, prompts=prompts, progress=False)


def generate(ours: LabelScorer, texts: list[str], targets: list[int]) -> None:
    """Generate the answer of each text separately, with as many tokens as its true label and its end."""
    write(ours, texts, [len(ours.answers[target]) for target in targets])


def generate_limit(ours: LabelScorer, texts: list[str], targets: list[int]) -> None:
    """Generate 512 tokens for each text separately."""
    write(ours, texts, [LIMIT] * len(texts))


def write(ours: LabelScorer, texts: list[str], sizes: list[int]) -> None:
    """Generate the given number of tokens for each text; random weights would not generate an end token."""
    for row, size in zip(ours.prompts.encode(texts).input_ids, sizes, strict=True):
        ids = torch.tensor([row], device=ours.model.device)
        options = {"max_new_tokens": size, "min_new_tokens": size, "do_sample": False, "use_cache": True}
        ours.model.generate(ids, attention_mask=torch.ones_like(ids), **options)


@torch.inference_mode()
def separate(ours: LabelScorer, texts: list[str], targets: list[int]) -> torch.Tensor:
    """Return log-scores (n, L), with one left-padded batch per text of its prompt with each label."""
    longest = max(map(len, ours.answers))
    scores = []
    for row in ours.prompts.encode(texts).input_ids:
        rows = [row + answer for answer in ours.answers]
        ids, mask = padded_left(rows, ours.model.device)
        logits = ours.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=longest + 1,
            use_cache=False,
        ).logits
        scores.append(answers_of(logits[:, :-1], ids[:, -longest:], ours))
    return torch.stack(scores)


@torch.inference_mode()
def cached(ours: LabelScorer, texts: list[str], targets: list[int]) -> torch.Tensor:
    """Return log-scores (n, L): each prompt is encoded once, followed by a batch of the labels."""
    longest, found = max(map(len, ours.answers)), []
    for row in ours.prompts.encode(texts).input_ids:
        cache = DynamicCache()
        ids = torch.tensor([row], device=ours.model.device)
        first = ours.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        cache.batch_repeat_interleave(len(ours.answers))
        # Padded on the right: positions after an answer are not used.
        rows = [answer + [PAD] * (longest - len(answer)) for answer in ours.answers]
        inputs = torch.tensor(rows, device=ours.model.device)
        more = ours.model(input_ids=inputs, past_key_values=cache, use_cache=True).logits
        logits = torch.cat([first.expand(len(rows), -1, -1), more[:, :-1]], dim=1)
        scores = logits.double().log_softmax(-1).gather(2, inputs[..., None])[..., 0]
        sizes = torch.tensor([len(answer) for answer in ours.answers], device=inputs.device)
        real = torch.arange(longest, device=inputs.device) < sizes[:, None]
        found.append(torch.where(real, scores, 0.0).sum(1).cpu())
    return torch.stack(found)


def padded_left(rows: list[list[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, (n, longest)."""
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows], device=device)
    sizes = torch.tensor([len(row) for row in rows], device=device)
    return ids, (torch.arange(longest, device=device) >= longest - sizes[:, None]).long()


def answers_of(logits: torch.Tensor, ids: torch.Tensor, ours: LabelScorer) -> torch.Tensor:
    """Return the log-probabilities (L,) of answers at the end of the rows (L, longest)."""
    scores = logits.double().log_softmax(-1).gather(2, ids[..., None])[..., 0]
    sizes = torch.tensor([len(answer) for answer in ours.answers], device=ids.device)
    real = torch.arange(ids.shape[1], device=ids.device) >= ids.shape[1] - sizes[:, None]
    return torch.where(real, scores, 0.0).sum(1).cpu()


PEERS: tuple[tuple[str, Peer, float | None], ...] = (
    ("generate(), a text at a time", generate, GENERATE),
    (f"generate() of {LIMIT} tokens, as of a model that does not stop", generate_limit, None),
    ("each label its own row, a batch a text", separate, SEPARATE),
    ("labels as rows behind the prompt's cache, a batch a text", cached, None),
)


def speed(bench: Bench) -> Iterator[Result]:
    """Measure the time per text against peers without a trie."""
    many, few = (128, 8) if bench.full else (32, 2)
    for name in DATASETS:
        labels, (texts, targets) = read(bench, name, many)
        ours = scorer(bench, labels, instruction=INSTRUCTION)
        tokens = [len(row) for row in ours.prompts.encode(texts).input_ids]
        settings = {"shape": "small", "labels": len(labels), "texts": many, "peer_texts": few}
        settings |= {
            "tokens_of_a_prompt": round(sum(tokens) / many),
            "of_it_shared": len(ours.prompts.prefix),
        }
        for peer, call, target in PEERS:
            result = against(bench, ours, call, (texts, targets), few=few)
            result.workload, result.settings = f"{len(labels)} labels of {name}", settings
            result.peer, result.target = peer, target
            result.limit = tokens_of(call, tokens, ours, targets)
            yield result


def tokens_of(call: Peer, prompts: list[int], ours: LabelScorer, targets: list[int]) -> float:
    """Return the tokens that a peer computes over those of the trie, from the lengths of the prompts."""
    sizes = [len(answer) for answer in ours.answers]
    count, mean = len(prompts), sum(prompts) / len(prompts)
    peer = {
        generate: mean + sum(sizes[target] for target in targets) / count - 1,
        generate_limit: mean + LIMIT - 1,
        separate: len(sizes) * (mean + max(sizes)),
        cached: mean + len(sizes) * max(sizes),
    }[call]
    shared, nodes = len(ours.prompts.prefix), len(make_trie(ours.answers).tokens)
    return peer / (mean - shared + nodes + shared / count)


def against(bench: Bench, ours: LabelScorer, call: Peer, rows: Rows, *, few: int) -> Result:
    """Measure times per text in alternating turns, and compare the scores if the peer returns any."""
    texts, targets = rows
    theirs, scores = call(ours, texts[:few], targets[:few]), ours.log_scores(texts)
    timing = take_turns(
        bench,
        peer=lambda: clocked(bench, lambda: call(ours, texts[:few], targets[:few])) / few,
        ours=lambda: clocked(bench, lambda: ours.log_scores(texts)) / len(texts),
    )
    result = Result(workload="", peer="", **timing.result_fields())
    if theirs is not None:
        result.difference = float((theirs - scores[:few]).abs().max())
        result.compared = "log-scores"
    return result


def equal(bench: Bench) -> Iterator[Result]:
    """Compare the scores of the trie with separately scored labels, on 200 texts of 119 labels."""
    count = 200 if bench.full else 6
    labels, (texts, _) = read(bench, "fewclue-iflytek", count)
    ours = scorer(bench, labels, instruction=SHORT, max_length=96)
    scores = ours.log_scores(texts)
    separate_scores = score_alone(ours.model, ours.prompts.encode(texts).input_ids, ours.answers)
    same = int((scores.argmax(1) == separate_scores.argmax(1)).sum())
    difference = float((scores - separate_scores).abs().max())
    met = difference <= TOLERANCE and same == count
    yield Result(
        workload=f"trie scores, {len(labels)} labels of fewclue-iflytek",
        peer="every label scored alone",
        ratio=same / count,
        target=1.0,
        difference=difference,
        compared=f"log-scores; the limit is {TOLERANCE:.0e}",
        settings={"shape": "small", "texts": count, "labels": len(labels), "met": met},
        note=f"the ratio is the share of texts with the same best label ({same} of {count}); no times",
    )


SUITE: dict[str, Callable[[Bench], Iterator[Result]]] = {"speed": speed, "equal": equal}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [HEAD, *(f"- {name}" for name in dict.fromkeys(row["machine"] for row in rows)), ""]
    lines += [
        "| workload | against | tokens of a prompt | ratio | goal | limit | met | difference | spread |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        difference = "" if row["difference"] is None else f"{row['difference']:.0e} ({row['compared']})"
        met = speed_report.verdict(row) if row["settings"].get("met", True) else "**no**"
        cells = [row["workload"], row["peer"], str(row["settings"].get("tokens_of_a_prompt", ""))]
        cells += [f"**{speed_report.number(row['ratio'])}**", speed_report.number(row["target"])]
        cells += [speed_report.number(row["limit"]), met]
        spread = "" if row["spread"] is None else f"{row['spread']:.0%}"
        lines.append(f"| {' | '.join([*cells, difference, spread])} |")
    notes = [f"- {row['workload']}: {row['note']}" for row in rows if row["note"]]
    return "\n".join([*lines, "", *notes]) + "\n"


def main() -> None:
    """Measure, print, and write the results."""
    args = speed_run.options(str(__doc__), names=SUITE, results="generative.json").parse_args()
    speed_run.measure(args, {name: SUITE[name] for name in args.only or SUITE})
    if rows := speed_report.read(args.results):
        args.results.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
