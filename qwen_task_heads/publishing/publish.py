"""Publish a finished run: stage what travels, open it again and compare, look for secrets, send one commit.

Nothing is sent before everything is known to be right: the hub is asked first (login, name, rights, what the
repo is), then the form is made and staged in a temporary folder, then it is proven equal to the trained
model, and what is scanned for secrets is the very folder that is sent.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace as with_changes
from pathlib import Path

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.models import load_tokenizer
from qwen_task_heads.modelscope import HUGGINGFACE, MODELSCOPE
from qwen_task_heads.publishing.formats import (
    MERGED,
    SAVED,
    Finished,
    WithHead,
    finished,
    is_local,
    nobody_has,
)
from qwen_task_heads.publishing.hub import Hub, quiet
from qwen_task_heads.publishing.huggingface import HuggingFace
from qwen_task_heads.publishing.modelscope import ModelScope
from qwen_task_heads.publishing.records import Published
from qwen_task_heads.publishing.staging import check_run, seal, stage
from qwen_task_heads.redaction import scan
from qwen_task_heads.reports.card_facts import NOTHING_STATED, CardFacts, state_facts
from qwen_task_heads.reports.cards import FOLDER, TRAINED, with_onnx, with_parity
from qwen_task_heads.reports.finishing import write_json
from qwen_task_heads.training.publish_arguments import EXPORT_FORMATS
from qwen_task_heads.verification.proofs import Parity, prove

__all__ = ["HUBS", "Hub", "Published", "check_publishable", "publish"]

HUBS: dict[str, type[Hub]] = {HUGGINGFACE: HuggingFace, MODELSCOPE: ModelScope}


def publish(
    folder: str | Path,
    *,
    repo_id: str,
    hub: str = HUGGINGFACE,
    form: str = SAVED,
    private: bool | None = True,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    rows: bool = False,
    onnx: bool = False,
    int8: bool = False,
    verify: bool = True,
    dry_run: str | Path | None = None,
    replace: bool = False,
    facts: CardFacts = NOTHING_STATED,
    token: bool | str | None = None,
    create_pr: bool = False,
    say: Callable[[str], None] = quiet,
) -> Published:
    """Publish the folder of a finished run as one commit, or refuse with reasons and publish nothing.

    Args:
        folder: of the run; left as it is.
        repo_id: `owner/name`; created when absent.
        hub: `huggingface` or `modelscope`.
        form: `saved` (as trained, adapter or full), `merged` (an adapter folded into its base) or `stock`
            (a class of transformers, which servers open).
        private: of a new repo; None for the hub's default. A public one is refused where a private one is
            asked for.
        revision: branch; None for the hub's own.
        tag: of the commit.
        message: of the commit.
        rows: publish `predictions.jsonl` and `errors.md`, which hold texts of the data.
        onnx: add `onnx/model.onnx`.
        int8: add `onnx/model_int8.onnx` too.
        verify: open what is staged again and compare it with the trained model.
        dry_run: stage and prove in this folder, and send nothing.
        replace: the repo's model may be replaced by one of another task or other labels.
        facts: what is stated on the card now, in place of what the run said; the folder's own card stays.
        token: of the hub; None for that of the login.
        create_pr: propose the commit as a pull request of the Hugging Face Hub.
        say: takes a line at the beginning of each phase, such as `print`.

    Raises:
        TaskHeadsError: files that are no longer those of the run, what the hub refuses, an adapter whose base
            nobody else has, a difference to the trained model, a secret, or a failed call.
    """
    folder = Path(folder)
    client = _client(hub, token=token)
    if form not in EXPORT_FORMATS:
        raise TaskHeadsError(
            Problem("--form", f"found {form!r}", ", ".join(EXPORT_FORMATS), "choose one of them")
        )
    run = finished(folder)
    notes = check_run(folder)
    if verify and not run.kept:
        notes += (f"Every artefact was {FOLDER}.",)
    if form == MERGED and not run.is_adapter:
        form = SAVED  # full weights are what merging would give
    if form == SAVED:
        run.check_base()
    if (onnx or int8) and not isinstance(run, WithHead):
        found = "a language model that writes labels"
        raise TaskHeadsError(Problem("--onnx", f"found {found}", "a title scorer or a classifier", "drop it"))
    if dry_run is None:
        client.check(repo_id, private=private, revision=revision, tag=tag, again=True)
    other = revision if revision != client.branch else None  # for which no reader needs to ask
    with tempfile.TemporaryDirectory(prefix="publish-") as root:
        say(f"Staging {folder} as {form} ...")
        made = run.in_form(form, Path(root, form))
        staged = stage(
            made, dry_run or Path(root, "staged"), repo_id=repo_id, hub=hub, rows=rows, revision=other
        )
        state_facts(staged, facts, named=folder)
        if dry_run is None and not replace:
            client.check_task(staged, repo_id=repo_id, revision=revision)
        if (onnx or int8) and isinstance(run, WithHead):
            from qwen_task_heads.export.onnx import export_onnx

            say("Exporting it to ONNX ...")
            export_onnx(
                run.full(dtype="float32"), tokenizer=load_tokenizer(str(folder)), folder=staged, int8=int8
            )
            card = staged / "README.md"
            if card.is_file() and not verify:  # the proof would write it beside its table
                text = with_onnx(card.read_text(encoding="utf-8"), int8=int8)
                card.write_text(text, encoding="utf-8")
        if verify:
            kinds = run.kinds(form) + ["onnx"] * (onnx or int8) + ["onnx_int8"] * int8
            _prove(run, staged, kinds=kinds, repo_id=repo_id, say=say)
        seal(staged)
        if problems := scan(staged):
            raise TaskHeadsError(problems)
        if dry_run is not None:
            did = "Staged and proven equal" if verify else "Staged"
            return Published(repo_id=repo_id, hub=hub, notes=(f"{did} in {staged}.", *notes))
        sent = client.push(
            staged, repo_id=repo_id, private=private, revision=revision, tag=tag, message=message,
            replace=replace, create_pr=create_pr, say=say,
        )  # fmt: skip
        return with_changes(sent, notes=(*sent.notes, *notes))


def check_publishable(backbone: str, *, adapter: bool) -> None:
    """Refuse, before training, a model that nobody else could open once it is published.

    Args:
        backbone: as the user named it: repo id, folder or `embedded`.
        adapter: an adapter will be published as it is, and not merged.

    Raises:
        TaskHeadsError: an adapter on a folder of this machine.
    """
    if adapter and is_local(backbone):
        raise TaskHeadsError(nobody_has("--push_to_hub", backbone))


def _client(hub: str, *, token: bool | str | None = None) -> Hub:
    if hub not in HUBS:
        raise TaskHeadsError(Problem("--hub", f"found {hub!r}", ", ".join(HUBS), "choose one of them"))
    return HUBS[hub](token=token)


def _prove(
    run: Finished, staged: Path, *, kinds: list[str], repo_id: str, say: Callable[[str], None]
) -> None:
    """Compare every artefact with the trained model; write what was found beside it and on the card."""
    reference = run.reference()
    parity = Parity(())
    for kind in kinds:
        say(f"Opening it again as {kind} in a clean process, and comparing ...")
        parity += prove(staged, reference=reference, kind=kind, repo_id=repo_id, named=run.folder)
    against = TRAINED if run.kept else FOLDER
    write_json(staged / "parity.json", {"compared": against, **parity.as_dict()})
    card = staged / "README.md"
    if card.is_file():
        text = with_parity(card.read_text(encoding="utf-8"), parity.card_rows(), against=against)
        card.write_text(text, encoding="utf-8")
