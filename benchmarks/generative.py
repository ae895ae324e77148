"""What scoring labels by a trie is worth: against `generate()`, and against each label as a row of its own.

    python benchmarks/generative.py             # minutes
    python benchmarks/generative.py --full      # all rows and sizes
    python benchmarks/generative.py --only equal --full --device cuda

Prompts are the real ones: chat template, instruction with all labels, texts and labels of a data set under
Qwen's tokenizer. Ids are folded into a vocabulary of 8,192 and weights are random, as in
`speed_workloads.py`, which says why. Both sides run in one process, in turn (`speed_measure.py`), and
encode the texts themselves.

Peers answer one text at a time, as a loop over `generate()` does, so their time per text does not hang on how
many there are: they are given fewer texts, and a ratio is one of times per text. Each is given its best:
`generate()` writes as many tokens as the text's true label and its end (the 512 that the published script
allows are a row of their own); rows of labels are padded into one batch a text, with logits at the answers
alone.
"""

from __future__ import annotations

import os

# Before torch is imported: threads that wait actively would be counted as work of the other side.
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

from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.inference.label_trie import make_trie, score_alone
from qwen_task_heads.tokenization.label_prompts import INSTRUCTION, AnswerPrompts, Prompts

SETS = ("banking77", "fewclue-tnews")
GENERATE, SEPARATE = 20.0, 5.0  # times faster, as goals
LIMIT = 512  # tokens that the published script may write for a label
TOLERANCE = 1e-5
SHORT = "Text: "  # an instruction without the labels: 23,800 rows, each scored alone, are enough work
HEAD = """# Scoring labels, measured

`python benchmarks/generative.py --full`. *ratio* is the time of the peer per text over ours, the median over
at least five turns; *limit* is computed, the tokens of the peer over ours: a call a token can carry a ratio
past it. What is on both sides, and what peers are given, stands at the head of that file.
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
        """The prompts, folded."""
        found = super().encode(texts, **options)
        return Prompts([fold(row) for row in found.input_ids], found.cut)


def fold(ids: list[int]) -> list[int]:
    """Ids below the small vocabulary, none of them the pad or the end; equal where they were equal."""
    return [2 + token % (VOCABULARY - 2) for token in ids]


def read(bench: Bench, name: str, count: int) -> tuple[LabelMap, Rows]:
    """The labels of a set, and texts with the ids of their labels, shuffled once."""
    folder = bench.data_dir / name
    if not (folder / "class.txt").is_file():
        raise NoData(f"{name} is not in {bench.data_dir}")
    lines = (folder / "test_public.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    random.Random(0).shuffle(rows)
    labels = LabelMap.read(folder / "class.txt")
    return labels, ([row["text"] for row in rows[:count]], [int(row["label"]) for row in rows[:count]])


def scorer(bench: Bench, labels: LabelMap, **options: Any) -> LabelScorer:
    """A random language model of the small shape over the labels."""
    torch.manual_seed(0)
    config = backbone("small")
    config.eos_token_id = END
    model = Qwen2ForCausalLM(config).eval().to(bench.device)
    model.generation_config.pad_token_id = PAD
    prompts = Folded(tokenizer(bench), labels, model_type="qwen2", **options)
    return LabelScorer(model, prompts=prompts, progress=False)


def generate(ours: LabelScorer, texts: list[str], targets: list[int]) -> None:
    """Write the answer of every text by itself: as many tokens as its true label has, with its end."""
    write(ours, texts, [len(ours.answers[target]) for target in targets])


def ramble(ours: LabelScorer, texts: list[str], targets: list[int]) -> None:
    """Write 512 tokens for every text by itself."""
    write(ours, texts, [LIMIT] * len(texts))


def write(ours: LabelScorer, texts: list[str], sizes: list[int]) -> None:
    """Write that many tokens for each text; random weights would not stop by themselves."""
    for row, size in zip(ours.prompts.encode(texts).input_ids, sizes, strict=True):
        ids = torch.tensor([row], device=ours.model.device)
        options = {"max_new_tokens": size, "min_new_tokens": size, "do_sample": False, "use_cache": True}
        ours.model.generate(ids, attention_mask=torch.ones_like(ids), **options)


@torch.inference_mode()
def separate(ours: LabelScorer, texts: list[str], targets: list[int]) -> torch.Tensor:
    """Log-scores (n, L): of every text one batch of its prompt with each label, padded on the left."""
    longest = max(map(len, ours.answers))
    found = []
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
        found.append(answers_of(logits[:, :-1], ids[:, -longest:], ours))
    return torch.stack(found)


@torch.inference_mode()
def cached(ours: LabelScorer, texts: list[str], targets: list[int]) -> torch.Tensor:
    """Log-scores (n, L): the prompt of every text once, then a batch of the labels behind its cache."""
    longest, found = max(map(len, ours.answers)), []
    for row in ours.prompts.encode(texts).input_ids:
        cache = DynamicCache()
        ids = torch.tensor([row], device=ours.model.device)
        first = ours.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        cache.batch_repeat_interleave(len(ours.answers))
        # on the right: what is behind an answer is not looked at
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
    """Ids and mask, (n, longest)."""
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows], device=device)
    sizes = torch.tensor([len(row) for row in rows], device=device)
    return ids, (torch.arange(longest, device=device) >= longest - sizes[:, None]).long()


def answers_of(logits: torch.Tensor, ids: torch.Tensor, ours: LabelScorer) -> torch.Tensor:
    """Sums (L,) of the log-probabilities of answers that end where the rows (L, longest) end."""
    scores = logits.double().log_softmax(-1).gather(2, ids[..., None])[..., 0]
    sizes = torch.tensor([len(answer) for answer in ours.answers], device=ids.device)
    real = torch.arange(ids.shape[1], device=ids.device) >= ids.shape[1] - sizes[:, None]
    return torch.where(real, scores, 0.0).sum(1).cpu()


PEERS: tuple[tuple[str, Peer, float | None], ...] = (
    ("generate(), a text at a time", generate, GENERATE),
    (f"generate() of {LIMIT} tokens, as of a model that does not stop", ramble, None),
    ("each label its own row, a batch a text", separate, SEPARATE),
    ("labels as rows behind the prompt's cache, a batch a text", cached, None),
)


def speed(bench: Bench) -> Iterator[Result]:
    """Texts per second against three ways to do without the trie."""
    many, few = (128, 8) if bench.full else (32, 2)
    for name in SETS:
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
    """Tokens that a peer computes over those that the trie does; by lengths of prompts."""
    sizes = [len(answer) for answer in ours.answers]
    count, mean = len(prompts), sum(prompts) / len(prompts)
    peer = {
        generate: mean + sum(sizes[target] for target in targets) / count - 1,
        ramble: mean + LIMIT - 1,
        separate: len(sizes) * (mean + max(sizes)),
        cached: mean + len(sizes) * max(sizes),
    }[call]
    shared, nodes = len(ours.prompts.prefix), len(make_trie(ours.answers).tokens)
    return peer / (mean - shared + nodes + shared / count)


def against(bench: Bench, ours: LabelScorer, call: Peer, rows: Rows, *, few: int) -> Result:
    """Times per text, in turn; scores that the peer computes are held against ours."""
    texts, targets = rows
    found, wanted = call(ours, texts[:few], targets[:few]), ours.log_scores(texts)
    timing = take_turns(
        bench,
        peer=lambda: clocked(bench, lambda: call(ours, texts[:few], targets[:few])) / few,
        ours=lambda: clocked(bench, lambda: ours.log_scores(texts)) / len(texts),
    )
    result = Result(workload="", peer="", **timing.figures())
    if found is not None:
        result.difference = float((found - wanted[:few]).abs().max())
        result.compared = "log-scores"
    return result


def equal(bench: Bench) -> Iterator[Result]:
    """The trie against every label scored alone, 200 texts of 119 labels."""
    count = 200 if bench.full else 6
    labels, (texts, _) = read(bench, "fewclue-iflytek", count)
    ours = scorer(bench, labels, instruction=SHORT, max_length=96)
    found = ours.log_scores(texts)
    wanted = score_alone(ours.model, ours.prompts.encode(texts).input_ids, ours.answers)
    same = int((found.argmax(1) == wanted.argmax(1)).sum())
    difference = float((found - wanted).abs().max())
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
    """The rows as a table."""
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
    """Measure, print, and write what was found."""
    args = speed_run.options(str(__doc__), names=SUITE, results="generative.json").parse_args()
    speed_run.measure(args, {name: SUITE[name] for name in args.only or SUITE})
    if rows := speed_report.read(args.results):
        args.results.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
