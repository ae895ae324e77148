"""Checkpoints with a manifest that is verified before a run resumes from them.

Trainer writes a checkpoint in place, file by file. A run that is killed meanwhile leaves a partial folder,
and `get_last_checkpoint` selects it. Missing optimizer, scheduler or RNG files are skipped silently, and the
run resumes to other weights. Design decisions:

- A checkpoint is valid only with its manifest `seal.json`: bytes and sha256 of every file. It is written
  last, by rename, after every process has written its RNG state. A folder without a manifest is an incomplete
  checkpoint of a killed run. A folder that differs from its manifest is corrupted. Runs resume from neither,
  and both are reported.
- `VerifiedCheckpointCallback` deletes old checkpoints, because Trainer deletes them before the new one has a
  manifest. Pass `save_total_limit` to the callback and leave `TrainingArguments.save_total_limit` at None.
- An output folder is marked (`.task_heads_run`) before anything is written into it. Incomplete checkpoints
  are deleted only in marked folders, and nothing else is ever deleted.
- Resuming from an older checkpoint renames the newer, verified ones (`abandoned-checkpoint-30`).

A resumed run ends with the same bytes as an uninterrupted one if the command, the data, the machine, the
versions, the number of processes and of threads are the same and `resume_hazards` finds nothing. Logged
averages may differ, because Trainer restarts them. Not covered: DeepSpeed, folders on a disk per node,
hyper-parameter search, a collator that draws from the global RNG, a run killed after early stopping had ended
it.

Checkpoints do not contain `training_args.bin`, which stores the hub token unencrypted: see `hub_saving`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist
from transformers import TrainerCallback, TrainerState
from transformers.utils import logging

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.training.checkpoint_manifest import (
    CHECKPOINT_MANIFEST,
    WEIGHTS,
    RunValue,
    disk_problem,
    missing_files,
    read_manifest,
    verify,
    write_manifest,
)
from qwen_task_heads.training.run_checks import check_run, raise_everywhere
from qwen_task_heads.training.run_folders import read_resume
from qwen_task_heads.training.speed import ThroughputCallback

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainingArguments
    from transformers.trainer_utils import TrainOutput

logger = logging.get_logger(__name__)

CLAIM = ".task_heads_run"


def newest_verified(output_dir: str | Path) -> Path | None:
    """Return the newest checkpoint that verifies, or None; invalid ones are logged with the reason.

    Args:
        output_dir: folder with `checkpoint-N` folders; need not exist.
    """
    for _, folder in sorted(_checkpoints(output_dir), reverse=True):
        problems = _checkpoint_problems(folder)
        if not problems:
            return folder
        reasons = "; ".join(f"{problem.where}: {problem.problem}" for problem in problems[:3])
        logger.warning(f"{folder} is skipped: {reasons}{' ...' if len(problems) > 3 else ''}")
    return None


def resolve_resume(
    value: str | bool | None,
    output_dir: str | Path,
    *,
    processes: int = 1,
    run: Mapping[str, RunValue] | None = None,
) -> str | None:
    """Return the verified checkpoint of `--resume_from_checkpoint`, or None for a new run.

    Args:
        value: None, False or "false" for a new run; True or "true" for the newest verified checkpoint of
            `output_dir`, or a new run if it was killed before its first one; or the path of a checkpoint.
        output_dir: output folder of the run.
        processes: number of processes running now.
        run: settings that identify the run, as given to `VerifiedCheckpointCallback`.

    Raises:
        TaskHeadsError: the checkpoint is corrupted, incomplete, without a manifest, or of another run.
    """
    asked = read_resume(value)
    if asked is False:
        return None
    if isinstance(asked, str):
        folder = Path(asked)
        problems = _checkpoint_problems(folder)
    else:
        newest = newest_verified(output_dir)
        if newest is None:
            _refuse_fresh_start(Path(output_dir))
            logger.warning(f"{output_dir} has no verified checkpoint yet: the run starts from the beginning")
            return None
        folder, problems = newest, []
    if not problems:
        content = read_manifest(folder)
        now: dict[str, RunValue] = {"processes": processes, **(run or {})}
        before = {"processes": content["processes"], **content["run"]}
        expected = "the command and the data of the first run"
        fix = "repeat that command, or start a new run in another --output_dir"
        for key in sorted(now.keys() & before.keys()):
            if now[key] != before[key]:
                problem = f"saved with {key} = {shorten(before[key])}, running with {shorten(now[key])}"
                problems.append(
                    Problem(
                        f"{folder}/{CHECKPOINT_MANIFEST}", problem, expected, fix, code="checkpoint-foreign"
                    )
                )
    if problems:
        raise TaskHeadsError(problems)
    return str(folder)


def _checkpoint_problems(folder: Path) -> list[Problem]:
    return verify(folder) or missing_files(folder, processes=read_manifest(folder)["processes"])


def refuse_foreign_output(output_dir: str | Path, resume: str | bool | None) -> None:
    """Refuse an output folder with files that this run would overwrite or mix with its own.

    Args:
        output_dir: output folder of the run; need not exist.
        resume: the value of `--resume_from_checkpoint`, before `resolve_resume`.

    Raises:
        TaskHeadsError: the folder is not empty and the run does not resume from it; names its files.
    """
    output, asked = Path(output_dir), read_resume(resume)
    expected, fix = "a new or empty folder", "choose another --output_dir"
    if output.exists() and not output.is_dir():
        raise TaskHeadsError(Problem(str(output), "is a file", expected, fix, code="path-exists"))
    inside = isinstance(asked, str) and output.resolve() in Path(asked).resolve().parents
    names = sorted(path.name for path in output.iterdir() if path.name != CLAIM) if output.is_dir() else []
    if not names or asked is True or inside:
        return
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    problem = f"already contains {', '.join(names[:5])}{more}"
    fix = f"{fix} or move these away"
    if (output / CLAIM).is_file() or any(
        (folder / CHECKPOINT_MANIFEST).is_file() for _, folder in _checkpoints(output)
    ):
        fix = f"continue that run with --resume_from_checkpoint true, or {fix}"
    raise TaskHeadsError(Problem(str(output), problem, expected, fix, code="path-exists"))


def open_output(
    output_dir: str | Path, resume: str | bool | None, *, run: Mapping[str, RunValue] | None = None
) -> str | None:
    """Check and mark the output folder, and return the checkpoint to resume from.

    Under several processes the first one decides, and the others get its result or its error. Call it
    after the training arguments are parsed (they start the process group) and before anything is written.

    Args:
        output_dir: output folder of the run; created if necessary.
        resume: the value of `--resume_from_checkpoint`.
        run: settings that identify the run; pass the same to `VerifiedCheckpointCallback`.

    Returns:
        The checkpoint to pass to `train`, or None.

    Raises:
        TaskHeadsError: as `refuse_foreign_output` and `resolve_resume`.
    """
    answer: list[str | None] = [None]
    problems: list[Problem] = []
    if _rank() == 0:
        try:
            refuse_foreign_output(output_dir, resume)
            answer = [resolve_resume(resume, output_dir, processes=_processes(), run=run)]
            claim = Path(output_dir) / CLAIM
            try:
                claim.parent.mkdir(parents=True, exist_ok=True)
                claim.touch()
            except OSError as error:
                raise TaskHeadsError(disk_problem(error, claim, wanted=0)) from error
        except TaskHeadsError as error:
            problems = list(error.problems)
    raise_everywhere(problems)
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(answer, src=0)
    return answer[0]


def train(trainer: Trainer, *, checkpoint: str | None, scored: int = 0) -> TrainOutput:
    """Call `Trainer.train` without an extra step if the checkpoint is the last one of the run.

    If Trainer resumes within an epoch, it takes a step before it reads `max_steps` (transformers 5.23,
    `_run_epoch`). A run that is killed after its last checkpoint would therefore train for one step more.

    Args:
        trainer: with a training set that has a length.
        checkpoint: from `open_output`; None starts a new run.
        scored: rows of dev and test that the recipe scores afterwards, for the estimate of the run.

    Raises:
        TaskHeadsError: as `check_run`, before the first step.
    """
    args = trainer.args
    callbacks = trainer.callback_handler.callbacks
    saving = [one for one in callbacks if isinstance(one, VerifiedCheckpointCallback)]
    limit = saving[0].save_total_limit if saving else args.save_total_limit
    flow, state = check_run(trainer, save_total_limit=limit), TrainerState()
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    for callback in callbacks:
        if isinstance(callback, ThroughputCallback):
            callback.announce(trainer, flow, done=state.global_step, scored=scored)
    if checkpoint is None:
        return trainer.train()
    if not 0 < args.max_steps <= state.global_step:
        return trainer.train(resume_from_checkpoint=checkpoint)
    # Without remaining epochs Trainer loads the checkpoint and continues after the last step.
    asked = args.max_steps, args.num_train_epochs
    args.max_steps, args.num_train_epochs = -1, int(state.epoch or 0)
    try:
        return trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        args.max_steps, args.num_train_epochs = asked


class VerifiedCheckpointCallback(TrainerCallback):
    """Write a manifest for each checkpoint that Trainer saves, then delete old checkpoints.

    Args:
        save_total_limit: number of newest checkpoints to keep, in addition to the best one
            (`state.best_model_checkpoint`); None keeps all.
        run: settings that identify the run (JSON scalars); `open_output` refuses to resume with other values.

    Raises:
        TaskHeadsError: on every process, if a checkpoint is incomplete or its manifest cannot be written.

    Example:
        >>> callback = VerifiedCheckpointCallback(save_total_limit=2, run={"seed": 0})
    """

    def __init__(
        self, save_total_limit: int | None = None, *, run: Mapping[str, RunValue] | None = None
    ) -> None:
        if save_total_limit is not None and save_total_limit < 1:
            problem, fix = f"found {save_total_limit}", "pass 1, or None to keep all"
            raise TaskHeadsError(
                Problem("save_total_limit", problem, "1 or more, or None", fix, code="option-range")
            )
        self.save_total_limit = save_total_limit
        self.run = dict(run or {})

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Refuse `TrainingArguments.save_total_limit`, and clear checkpoints after the starting step."""
        problems = []
        if args.save_total_limit is not None:
            where = "TrainingArguments.save_total_limit"
            problem = f"found {args.save_total_limit}: Trainer deletes before the new checkpoint is verified"
            fix = "pass the number to VerifiedCheckpointCallback"
            problems.append(Problem(where, problem, "None", fix, code="option-unsupported"))
        if args.save_on_each_node and _processes() > 1:
            fix = "use a folder that all nodes share"
            problems.append(
                Problem("--save_on_each_node", "found true", "false", fix, code="option-unsupported")
            )
        if not problems and _rank() == 0:
            try:
                _clear_ahead(_output(args), state.global_step)
                # A kill may have prevented the last rotation.
                self._rotate(_output(args), best=state.best_model_checkpoint)
            except OSError as error:
                problems.append(disk_problem(error, Path(error.filename or _output(args))))
        raise_everywhere(problems)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Write the manifest of the new checkpoint once all processes have saved, and delete old ones."""
        if state.is_hyper_param_search:
            return
        if dist.is_available() and dist.is_initialized():
            dist.barrier()  # every rank writes its own rng_state_*.pth
        problems: list[Problem] = []
        if _rank() == 0:
            folder = _output(args) / f"checkpoint-{state.global_step}"
            problems = missing_files(folder, processes=_processes(), weights_only=args.save_only_model)
            try:
                if not problems:
                    write_manifest(folder, processes=_processes(), run=self.run)
                    self._rotate(_output(args), best=state.best_model_checkpoint)
            except TaskHeadsError as error:
                problems = list(error.problems)
            except OSError as error:
                problems = [disk_problem(error, Path(error.filename or folder))]
        raise_everywhere(problems)

    def _rotate(self, output: Path, *, best: str | None) -> None:
        """Delete all complete checkpoints other than the newest ones and the best one."""
        if self.save_total_limit is None:
            return
        complete = [
            folder for _, folder in sorted(_checkpoints(output)) if (folder / CHECKPOINT_MANIFEST).is_file()
        ]
        for folder in complete[: -self.save_total_limit]:
            if best is None or folder.resolve() != Path(best).resolve():
                _delete(folder)


def _refuse_fresh_start(output: Path) -> None:
    """Refuse a new run if the folder contains more than incomplete checkpoints of this package."""
    checkpoints = [folder for _, folder in sorted(_checkpoints(output))]
    corrupted = [
        problem
        for folder in checkpoints
        if (folder / CHECKPOINT_MANIFEST).exists()
        for problem in verify(folder)
    ]
    if corrupted:
        raise TaskHeadsError(corrupted)
    if not output.is_dir() or not any(output.iterdir()):
        return
    finished = [path.name for path in output.iterdir() if path.is_file() and WEIGHTS.fullmatch(path.name)]
    if not (output / CLAIM).is_file() or finished:
        names = ", ".join(sorted(path.name for path in output.iterdir() if path.name != CLAIM)[:5])
        problem = f"contains {names}, but no verified checkpoint to resume from"
        fix = "choose another --output_dir or move these away"
        expected = "a verified checkpoint or an empty folder"
        raise TaskHeadsError(Problem(str(output), problem, expected, fix, code="path-exists"))


def _clear_ahead(output: Path, step: int) -> None:
    """Delete incomplete checkpoints of a marked folder, and rename complete ones after `step`."""
    for number, folder in sorted(_checkpoints(output)):
        if not (folder / CHECKPOINT_MANIFEST).is_file():
            if (output / CLAIM).is_file():
                logger.warning(f"{folder} is an incomplete checkpoint of a killed run and is deleted")
                _delete(folder)
        elif number > step:
            aside, count = output / f"abandoned-{folder.name}", 2
            while aside.exists():
                aside, count = output / f"abandoned-{folder.name}-{count}", count + 1
            logger.warning(f"{folder} is after step {step}, where this run starts; it is renamed to {aside}")
            os.rename(folder, aside)


def _delete(folder: Path) -> None:
    # Without its manifest a partially deleted folder is not mistaken for a checkpoint.
    (folder / CHECKPOINT_MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    output = Path(output_dir)
    if not output.is_dir():
        return []
    folders = [path for path in output.iterdir() if path.is_dir()]
    matches = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folders]
    return [(int(match[1]), path) for match, path in matches if match]


def _output(args: TrainingArguments) -> Path:
    return Path(args.output_dir or "trainer_output")  # the default of Trainer


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
