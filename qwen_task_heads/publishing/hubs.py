"""Publish a finished run: stage what travels, open it again and compare, look for secrets, send one commit.

Nothing is sent before everything is known to be right: the hub is asked first (login, name, rights), then
the form is made and staged in a temporary folder, then it is proven equal to the trained model, and what
is scanned for secrets is the very folder that is sent.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from qwen_task_heads.backbones import locate
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubs import HUGGINGFACE, MODELSCOPE
from qwen_task_heads.models import load, load_tokenizer, merge
from qwen_task_heads.publishing.cards import with_form, with_parity
from qwen_task_heads.publishing.endings import write_json
from qwen_task_heads.publishing.export import save
from qwen_task_heads.publishing.hub import Hub, Published, refuse
from qwen_task_heads.publishing.hub_huggingface import HuggingFace
from qwen_task_heads.publishing.hub_modelscope import ModelScope
from qwen_task_heads.publishing.secrets import scan
from qwen_task_heads.publishing.staging import files_of, seal, stage, travels
from qwen_task_heads.publishing.stock import export_stock

__all__ = ["HUBS", "Hub", "Published", "check_base", "check_publishable", "publish"]

HUBS: dict[str, type[Hub]] = {HUGGINGFACE: HuggingFace, MODELSCOPE: ModelScope}
SAVED, MERGED, STOCK = "saved", "merged", "stock"
FORMS = (SAVED, MERGED, STOCK)


def publish(
    folder: str | Path,
    *,
    repo_id: str,
    hub: str = HUGGINGFACE,
    form: str = SAVED,
    private: bool = True,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    rows: bool = False,
    onnx: bool = False,
    int8: bool = False,
    verify: bool = True,
    dry_run: str | Path | None = None,
) -> Published:
    """Publish the folder of a finished run as one commit, or refuse with reasons and publish nothing.

    Args:
        folder: of the run; left as it is.
        repo_id: `owner/name`; created when absent.
        hub: `huggingface` or `modelscope`.
        form: `saved` (as trained, adapter or full), `merged` (an adapter folded into its base) or `stock`
            (a class of transformers, which servers open).
        private: of a new repo. A public one is refused where a private one is asked for.
        revision: branch; None for the hub's own.
        tag: of the commit.
        message: of the commit.
        rows: publish `predictions.jsonl` and `errors.md`, which hold texts of the data.
        onnx: add `onnx/model.onnx`.
        int8: add `onnx/model_int8.onnx` too.
        verify: open what is staged again and compare it with the trained model.
        dry_run: stage and prove in this folder, and send nothing.

    Raises:
        TaskHeadsError: what the hub refuses, an adapter whose base nobody else has, a difference to the
            trained model, a secret, or a failed call.
    """
    folder = Path(folder)
    client = _client(hub)
    if form not in FORMS:
        raise refuse("--form", repr(form), ", ".join(FORMS), "choose one of them")
    config = _config(folder)
    is_adapter = (folder / "adapter_config.json").is_file()
    if form == MERGED and not is_adapter:
        form = SAVED  # full weights are what merging would give
    if form == SAVED:
        check_base(folder)
    if dry_run is None:
        client.check(repo_id)
    source_hub = config.get("backbone_hub") or HUGGINGFACE
    with tempfile.TemporaryDirectory(prefix="publish-") as root:
        made = folder if form == SAVED else _make(form, folder, Path(root, form), source_hub=source_hub)
        staged = stage(made, dry_run or Path(root, "staged"), repo_id=repo_id, hub=hub, rows=rows)
        if onnx or int8:
            from qwen_task_heads.publishing.onnx import export_onnx

            model: Any = (
                merge(str(folder), hub=source_hub) if is_adapter else load(str(folder), hub=source_hub)
            )
            export_onnx(model, tokenizer=load_tokenizer(str(folder)), folder=staged, int8=int8)
        if verify:
            kinds = ["adapter" if is_adapter else "full"] if form == SAVED else [form]
            kinds += ["onnx"] * (onnx or int8) + ["onnx_int8"] * int8
            _prove(folder, staged, kinds=kinds, repo_id=repo_id, source_hub=source_hub)
        seal(staged)
        if problems := scan(staged):
            raise TaskHeadsError(problems)
        if dry_run is not None:
            did = "Staged and proven equal" if verify else "Staged"
            return Published(repo_id=repo_id, hub=hub, notes=(f"{did} in {staged}.",))
        return client.push(
            staged, repo_id=repo_id, private=private, revision=revision, tag=tag, message=message
        )


def check_base(folder: str | Path) -> None:
    """Refuse an adapter whose base nobody else has: a folder of this machine.

    Raises:
        TaskHeadsError: such an adapter, or no saved model in the folder.
    """
    folder = Path(folder)
    base = _config(folder).get("backbone_name_or_path")
    if (folder / "adapter_config.json").is_file() and _is_local(base):
        raise TaskHeadsError(_nobody_has(str(folder), base))


def check_publishable(backbone: str, *, adapter: bool) -> None:
    """Refuse, before training, a model that nobody else could open once it is published.

    Args:
        backbone: as the user named it: repo id, folder or `embedded`.
        adapter: an adapter will be published as it is, and not merged.

    Raises:
        TaskHeadsError: an adapter on a folder of this machine.
    """
    if adapter and _is_local(backbone):
        raise TaskHeadsError(_nobody_has("--push_to_hub", backbone))


def _client(hub: str) -> Hub:
    if hub not in HUBS:
        raise refuse("--hub", repr(hub), ", ".join(HUBS), "choose one of them")
    return HUBS[hub]()


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        found, wanted = "no config.json", "the folder that a run finished in"
        raise refuse(str(folder), found, wanted, "check the name")
    return json.loads(path.read_text(encoding="utf-8"))


def _is_local(base: str | None) -> bool:
    path = Path(locate(base or ""))
    return bool(base) and (path.is_absolute() or path.is_dir())


def _nobody_has(where: str, base: str | None) -> Problem:
    return Problem(
        where,
        f"found an adapter of {Path(base or '').name!r}, a folder of this machine",
        "accepted: an adapter of a base that others can fetch by its id, or a full model",
        "publish it merged (--form merged, when training --publish_form merged), or train from a repo id",
    )


def _make(form: str, folder: Path, made: Path, *, source_hub: str) -> Path:
    """The same model in another form, with the account of its run."""
    if form == MERGED:
        save(merge(str(folder), hub=source_hub), tokenizer=load_tokenizer(str(folder)), folder=made)
    else:
        export_stock(str(folder), folder=made, hub=source_hub)
    for name in files_of(folder):
        if travels(name, rows=True, model=False):
            (made / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, made / name)
    card = made / "README.md"
    if card.is_file():
        card.write_text(with_form(card.read_text(encoding="utf-8"), form), encoding="utf-8")
    return made


def _prove(folder: Path, staged: Path, *, kinds: list[str], repo_id: str, source_hub: str) -> None:
    """Compare every artefact with the trained model; write what was found beside it and on the card."""
    from qwen_task_heads.publishing.gate import REFERENCE, prove, read_reference, take_reference

    if (folder / REFERENCE).is_file():
        reference = read_reference(folder)
    else:  # a run of an older version: what our own strict loading opens stands for the trained model
        opened = load(str(folder), hub=source_hub)
        reference = take_reference(opened, tokenizer=load_tokenizer(str(folder)))
    proofs = [prove(staged, reference=reference, kind=kind, repo_id=repo_id) for kind in kinds]
    parity = proofs[0]
    for other in proofs[1:]:
        parity += other
    write_json(staged / "parity.json", parity.as_dict())
    card = staged / "README.md"
    if card.is_file():
        text = with_parity(card.read_text(encoding="utf-8"), parity.card_rows())
        card.write_text(text, encoding="utf-8")
