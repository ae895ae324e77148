"""Publish a finished run: stage its files, verify them, scan them for secrets, and push one commit.

The hub is checked first: login, repo name, permissions, state of the repo. Then the export format is written
and staged in a temporary folder, and verified against the trained model. The scan for secrets reads the
staged folder itself. Nothing is uploaded before all checks have passed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace as with_changes
from pathlib import Path

from qwen_task_heads.errors import TaskHeadsError, error_at
from qwen_task_heads.hubs import HUGGINGFACE, hub_named
from qwen_task_heads.models import load_tokenizer
from qwen_task_heads.publishing.cards import stage_card
from qwen_task_heads.publishing.formats import (
    MERGED,
    SAVED,
    FinishedRun,
    HeadRun,
    read_run,
    refuse_local_base,
)
from qwen_task_heads.publishing.records import Published
from qwen_task_heads.publishing.staging import check_run, stage, update_manifest
from qwen_task_heads.publishing.upload import check_repo, check_task, discard, upload
from qwen_task_heads.redaction import scan
from qwen_task_heads.reports.card_facts import NOTHING_STATED, CardFacts
from qwen_task_heads.reports.model_card import FOLDER, TRAINED
from qwen_task_heads.reports.records import write_json
from qwen_task_heads.training.publish_arguments import EXPORT_FORMATS
from qwen_task_heads.verification.parity import Parity, verify_artifact


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
    log: Callable[[str], None] = discard,
) -> Published:
    """Publish the folder of a finished run as one commit; if a check fails, publish nothing.

    Args:
        folder: output folder of the run; not changed.
        repo_id: `owner/name`; created if absent.
        hub: a name in `hubs.HUBS`, such as `huggingface` or `modelscope`.
        form: export format: `saved` (as trained, adapter or full), `merged` (the adapter merged into its
            base), `stock` (a class of transformers, which servers open) or `gguf` (a file for llama.cpp).
        private: visibility of a new repo; None for the hub's default. A public repo is refused if a private
            one was requested.
        revision: branch; None for the default branch of the hub.
        tag: tag of the commit.
        message: commit message.
        rows: publish `predictions.jsonl` and `errors.md`, which have texts of the data.
        onnx: add `onnx/model.onnx`.
        int8: add `onnx/model_int8.onnx` too.
        verify: load the staged files again and compare them with the trained model.
        dry_run: stage and verify in this folder, and upload nothing.
        replace: allow replacing a model of another task or with other labels.
        facts: statements for the published card, instead of those of the run; the folder's card is not
            changed.
        token: token of the hub; None for that of the login.
        create_pr: open a pull request with the commit, if the hub has them.
        log: called with one line at the start of each phase, such as `print`.

    Raises:
        TaskHeadsError: files that changed after the run, a refusal of the hub, an adapter on a local base, a
            difference from the trained model, a secret, or a failed call.
    """
    folder = Path(folder)
    client = hub_named(hub)(token=token)
    if form not in EXPORT_FORMATS:
        raise error_at(
            "--form", f"found {form!r}", ", ".join(EXPORT_FORMATS), "choose one of them", code="option-value"
        )
    run = read_run(folder)
    notes = check_run(folder, facts=facts)
    if verify and not run.has_reference:
        notes += (f"Every artifact was {FOLDER}.",)
    if form == MERGED and not run.is_adapter:
        form = SAVED  # the weights are full already
    if form == SAVED and run.is_adapter:
        refuse_local_base(str(folder), run.base)
    if (onnx or int8) and not isinstance(run, HeadRun):
        raise error_at(
            "--onnx",
            "found a generative classifier",
            "a title scorer or a classifier with a head",
            "drop it",
            code="option-unsupported",
        )
    if dry_run is None:
        check_repo(client, repo_id, private=private, revision=revision, tag=tag, again=True)
    branch = revision if revision != client.branch else None  # the card names no default branch
    with tempfile.TemporaryDirectory(prefix="publish-") as root:
        log(f"Staging {folder} as {form} ...")
        made = run.in_form(form, Path(root, form))
        staged = stage(made, dry_run or Path(root, "staged"), hub=hub, rows=rows)
        if dry_run is None and not replace:
            check_task(client, staged, repo_id=repo_id, revision=revision)
        if (onnx or int8) and isinstance(run, HeadRun):
            from qwen_task_heads.export.onnx import export_onnx

            log("Exporting to ONNX ...")
            export_onnx(
                run.full(dtype="float32"), tokenizer=load_tokenizer(str(folder)), folder=staged, int8=int8
            )
        if verify:
            kinds = run.kinds(form) + ["onnx"] * (onnx or int8) + ["onnx_int8"] * int8
            _verify(run, staged, kinds=kinds, repo_id=repo_id, log=log)
        stage_card(
            staged,
            folder=folder,
            repo_id=repo_id,
            hub=hub,
            form=form,
            facts=facts,
            rows=rows,
            revision=branch,
        )
        update_manifest(staged)
        if problems := scan(staged):
            raise TaskHeadsError(problems)
        if dry_run is not None:
            done = "Staged and verified" if verify else "Staged"
            return Published(repo_id=repo_id, hub=hub, notes=(f"{done} in {staged}.", *notes))
        published = upload(
            client,
            staged,
            repo_id=repo_id,
            private=private,
            revision=revision,
            tag=tag,
            message=message,
            replace=replace,
            create_pr=create_pr,
            log=log,
        )
        return with_changes(published, notes=(*published.notes, *notes))


def _verify(
    run: FinishedRun, staged: Path, *, kinds: list[str], repo_id: str, log: Callable[[str], None]
) -> None:
    """Compare every artifact with the trained model, and write `parity.json`."""
    reference = run.reference()
    parity = Parity(())
    for kind in kinds:
        log(f"Loading as {kind} in a clean process and comparing ...")
        parity += verify_artifact(staged, reference=reference, kind=kind, repo_id=repo_id, named=run.folder)
    against = TRAINED if run.has_reference else FOLDER
    write_json(staged / "parity.json", {"compared": against, **parity.as_dict()})
