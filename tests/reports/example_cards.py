"""Render the example cards of `model_cards/examples/` from the records of runs.

`python tests/reports/example_cards.py` renders the cards again after a change of a template. With
`--record` it first trains the models on the samples of the package (some minutes) and writes their records:

    python tests/reports/example_cards.py --record --multi_label goemotions

`goemotions` is a folder with `train.jsonl`, `dev.jsonl` and `test_public.jsonl` (columns `text`, `labels`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qwen_task_heads.export.servers import Served
from qwen_task_heads.reports.card_facts import CardFacts
from qwen_task_heads.reports.model_card import model_card
from qwen_task_heads.reports.records import RunRecord

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "model_cards" / "examples"
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
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    record = RunRecord(**content["record"]).published(form="saved", facts=STATED)
    repo_id = f"your-name/{name.replace('_', '-')}"
    served = Served(**content["served"]) if content["served"] else None
    return model_card(record, repo_id=repo_id, rows=False, parity=content["parity"], served=served)


def names() -> list[str]:
    """Return the names of the examples."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def compare(name: str, run: Path, form: str) -> dict[str, Any]:
    """Return the rows of the verification against the trained model, as `publish` does, and server facts."""
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
        served = Served.find(made)
    return {"parity": parity.card_rows(), "served": asdict(served) if served else None}


def write_records(multi_label: Path) -> None:
    """Train the models and write their records, without plots, which are files of the repo."""
    with tempfile.TemporaryDirectory() as root:
        for name, (recipe, *words) in TRAINED.items():
            folder = Path(root, name)
            command = [sys.executable, str(ROOT / "recipes" / recipe), "--output_dir", str(folder)]
            if name == "multi_label":
                words += ["--dataset_name", str(multi_label / "train.jsonl")]
                words += ["--dev_dataset", str(multi_label / "dev.jsonl")]
                words += ["--test_dataset", str(multi_label / "test_public.jsonl")]
            subprocess.run([*command, *words, *SMALL], check=True, cwd=root)
            record = RunRecord.read(folder)
            assert record is not None
            forms = {name: "saved"} | ({STOCK: "stock"} if name == "full_classifier" else {})
            for made, form in forms.items():
                example = replace(record, form=form, plots={})
                content = {"record": asdict(example), **compare(made, folder, form)}
                text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
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
