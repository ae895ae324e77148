"""Render the example cards of `model_cards/examples/` from the records of runs.

`python tests/reports/example_cards.py` renders the cards again after a change of a template. With
`--record` it first trains the models on the samples of the package (some minutes) and writes their records:

    python tests/reports/example_cards.py --record --multi_label goemotions

`goemotions` is a folder with `train.jsonl`, `dev.jsonl` and `test_public.jsonl` (columns `text`, `labels`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.text_datasets import TextSets
from qwen_task_heads.data.title_datasets import TitleSets
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig, TitleScorerConfig
from qwen_task_heads.hubs import HUGGINGFACE
from qwen_task_heads.publishing.staging import card_of_repo
from qwen_task_heads.reports import card_facts
from qwen_task_heads.reports.card_facts import CardFacts, Trained
from qwen_task_heads.reports.cards import with_form, with_parity
from qwen_task_heads.reports.finishing import RunRecord
from qwen_task_heads.reports.text_card import text_card
from qwen_task_heads.reports.text_report import TextRun
from qwen_task_heads.reports.title_card import title_card
from qwen_task_heads.reports.title_report import Run

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "model_cards" / "examples"
# Fields of the run record that a card needs
KEPT = ("settings", "log_history", "seconds", "seed", "backbone", "resumed", "picked")
STATED = CardFacts(license="apache-2.0", language="en", intended_use="An example of a model card.")
SMALL = ["--disable_tqdm", "true", "--report_to", "none"]
TRAINED: dict[str, list[str]] = {
    "title_scorer_adapter": ["reward_titles.py", "--use_peft", "true"],
    "full_classifier": ["classify.py", "--pooling", "last"],
    "multi_label": ["classify.py", "--num_train_epochs", "2", "--max_samples", "4000"],
    "generative": ["sft_classify.py"],
}
STOCK = "stock_export"  # of `full_classifier`


def render_example(name: str) -> str:
    """Return the card of an example in its published form."""
    record = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    sets, config = record["sets"], dict(record["config"])
    titles = config.pop("model_type") == TitleScorerConfig.model_type
    trained = Trained(
        config=(TitleScorerConfig if titles else PooledClassifierConfig)(**config),
        is_adapter=record["is_adapter"],
        answers=record["answers"],
    )
    kept = {**record["run"], "card": STATED}
    cuts = {key: sets[key] for key in ("dev_was_cut", "test_was_cut", "test_seen", "lines")}
    page: Callable[..., str] = title_card if titles else text_card
    run: Run | TextRun
    if titles:
        pairs = [PairExample(chosen="a", rejected="b")]
        run = Run(sets=TitleSets(train=pairs, groups=[], dev=pairs, test=pairs, **cuts), **kept)
    else:
        texts = [TextExample(text="a", target=None)]
        labels = LabelMap(tuple(sets["labels"]))
        problem = {"problem_type": sets["problem_type"], "labels": labels}
        text_sets = TextSets(train=texts, dev=texts, test=texts, **problem, **cuts)
        run = TextRun(sets=text_sets, cut=record["cut"], **kept)
    with patch.object(card_facts, "versions", return_value=record["versions"]):
        # Without plots, which are files of the repo
        card = page(trained, Path(record["folder"]), record["metrics"], record["reported"], run, plots={})
    repo = f"your-name/{name.replace('_', '-')}"
    return with_parity(card_of_repo(with_form(card, record["form"]), repo, HUGGINGFACE), record["parity"])


def names() -> list[str]:
    """Return the names of the examples."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def dump(path: str, kind: Callable[..., str]) -> Callable[..., str]:
    """Wrap `title_card` or `text_card` so that it also writes its arguments as a record."""

    def card(model: Any, folder: Path, metrics: Any, reported: str, run: Any, *, plots: Any) -> str:
        sets, config = run.sets, model.config.to_dict()
        known = {field.name for field in fields(type(model.config))} | {"id2label", "label2id"}
        omitted = {"text_config", "probe", "backbone_name_or_path", "backbone_files", "transformers_version"}
        record = {
            "is_adapter": model.is_adapter,
            "answers": model.answers,
            "form": "saved",
            "folder": folder.name,
            "reported": reported,
            "cut": run.cut if isinstance(run, TextRun) else "",
            "config": {"model_type": model.config.model_type}
            | {key: value for key, value in config.items() if key in known - omitted and value is not None},
            "run": {field.name: vars(run)[field.name] for field in fields(RunRecord) if field.name in KEPT},
            "sets": {key: vars(sets)[key] for key in ("lines", "dev_was_cut", "test_was_cut", "test_seen")},
            "versions": card_facts.versions(),
            "metrics": metrics,
            "parity": [],
        }
        if isinstance(run, TextRun):
            record["sets"] |= {"labels": list(sets.labels.names), "problem_type": sets.problem_type}
        Path(path).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return kind(model, folder, metrics, reported, run, plots=plots)

    return card


def train(name: str, words: list[str], runs: Path) -> None:
    """Run a recipe in a process in which the card functions write records."""
    code = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import example_cards as cards\n"
        "from qwen_task_heads.reports import title_report\n"
        "from qwen_task_heads.reports import text_report\n"
        f"path = {str(FOLDER / f'{name}.json')!r}\n"
        "title_report.title_card = cards.dump(path, cards.title_card)\n"
        "text_report.text_card = cards.dump(path, cards.text_card)\n"
        f"sys.argv = [{str(ROOT / 'recipes' / words[0])!r}, *{words[1:]!r}]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    subprocess.run([sys.executable, "-c", code, *SMALL], check=True, cwd=runs, env={**os.environ})


def compare(name: str, run: Path, form: str) -> list[dict[str, str]]:
    """Return the rows of the verification against the trained model, as `publish` does."""
    from qwen_task_heads.publishing.formats import read_run
    from qwen_task_heads.verification.parity import Parity, verify_artifact

    folder = read_run(run)
    with tempfile.TemporaryDirectory() as root:
        made = folder.in_form(form, Path(root, form))
        parity = Parity(())
        for kind in folder.kinds(form):
            parity += verify_artifact(
                made, reference=folder.reference(), kind=kind, repo_id=f"your-name/{name}"
            )
    return parity.card_rows()


def write_records(multi_label: Path) -> None:
    """Train the models and write their records."""
    with tempfile.TemporaryDirectory() as root:
        for name, words in TRAINED.items():
            options = [*words[1:], "--output_dir", str(Path(root, name)), *SMALL]
            if name == "multi_label":
                options += ["--dataset_name", str(multi_label / "train.jsonl")]
                options += ["--dev_dataset", str(multi_label / "dev.jsonl")]
                options += ["--test_dataset", str(multi_label / "test_public.jsonl")]
            train(name, [words[0], *options], Path(root))
            path = FOLDER / f"{name}.json"
            record = json.loads(path.read_text(encoding="utf-8"))
            forms = {name: "saved"} | ({STOCK: "stock"} if name == "full_classifier" else {})
            for made, form in forms.items():
                changed = {**record, "form": form, "parity": compare(made, Path(root, name), form)}
                text = json.dumps(changed, indent=1, ensure_ascii=False) + "\n"
                (FOLDER / f"{made}.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Write the cards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--record", action="store_true", help="train the models and write the records first")
    parser.add_argument("--multi_label", type=Path, help="folder with the multi-label data")
    args = parser.parse_args()
    if args.record:
        write_records(args.multi_label)
    for name in names():
        (FOLDER / f"{name}.md").write_text(render_example(name), encoding="utf-8")
        print(FOLDER / f"{name}.md")


if __name__ == "__main__":
    main()
