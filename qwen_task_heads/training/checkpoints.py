"""Checkpoints that can be trusted: sealed when complete, verified before a run resumes from them.

Trainer writes a checkpoint in place, file by file. A run killed meanwhile leaves a partial folder which
`get_last_checkpoint` picks, and a missing optimizer, scheduler or RNG file is skipped in silence: the run
resumes, to other weights. Decisions:

- A checkpoint counts only with its seal, `seal.json`: bytes and sha256 of every file, written last, by
  rename, after every process has written its RNG state. Without a seal a folder is the debris of a killed
  run; with a seal that does not fit, it is damaged. Neither is ever resumed from, and either is named.
- Rotation belongs to `VerifiedCheckpointCallback`, because Trainer deletes the old checkpoint before the new one is
  sealed. Pass `save_total_limit` to the callback and leave `TrainingArguments.save_total_limit` at None.
- An output folder is claimed (`.task_heads_run`) before anything is written into it. In a claimed folder
  the debris of a killed run is known to be ours and is cleared; nothing else is ever deleted.
- Resuming from an older checkpoint sets the newer, sealed ones aside (`abandoned-checkpoint-30`).

A resumed run ends with the same bytes as an uninterrupted one if the command, the data, the machine, the
versions, the number of processes and of threads are the same and `resume_hazards` finds nothing. Logged
averages may differ: Trainer restarts them. Not covered: DeepSpeed, folders on a disk per node,
hyper-parameter search, a collator that draws from the global RNG, a run killed after early stopping had ended
it.

No checkpoint holds `training_args.bin`, with the hub token in clear: see `hub_saving`.
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
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.utils import logging

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.training.checkpoint_manifest import (
    SEAL,
    WEIGHTS,
    RunValue,
    disk_problem,
    missing_parts,
    read_seal,
    seal,
    verify,
)
from qwen_task_heads.training.run_checks import check_run, raise_everywhere
from qwen_task_heads.training.run_folders import read_resume
from qwen_task_heads.training.speed import ThroughputCallback

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainingArguments
    from transformers.trainer_utils import TrainOutput

logger = logging.get_logger(__name__)

CLAIM = ".task_heads_run"


def newest_sealed(output_dir: str | Path) -> Path | None:
    """Find the newest checkpoint that verifies; those passed over are logged with the reason.

    Args:
        output_dir: folder with `checkpoint-N` folders; need not exist.
    """
    for _, folder in sorted(_checkpoints(output_dir), reverse=True):
        problems = verify(folder) or missing_parts(folder, processes=read_seal(folder)["processes"])
        if not problems:
            return folder
        reasons = "; ".join(f"{problem.where}: {problem.problem}" for problem in problems[:3])
        logger.warning(f"{folder} is passed over: {reasons}{' ...' if len(problems) > 3 else ''}")
    return None


def resolve_resume(
    value: str | bool | None,
    output_dir: str | Path,
    *,
    processes: int = 1,
    run: Mapping[str, RunValue] | None = None,
) -> str | None:
    """Turn `--resume_from_checkpoint` into a verified checkpoint, or None for a fresh start.

    Args:
        value: None, False or "false" (start afresh); True or "true" (the newest sealed checkpoint of
            `output_dir`; a fresh start where the run was killed before it had one); or a checkpoint's path.
        output_dir: the run's output folder.
        processes: number of processes running now.
        run: what identifies this run, as given to `VerifiedCheckpointCallback`.

    Raises:
        TaskHeadsError: the checkpoint is damaged, unsealed, incomplete, or of another run.
    """
    asked = read_resume(value)
    if asked is False:
        return None
    if isinstance(asked, str):
        problems = verify(asked) or missing_parts(asked, processes=read_seal(Path(asked))["processes"])
        folder = Path(asked)
    else:
        newest = newest_sealed(output_dir)
        if newest is None:
            _refuse_fresh_start(Path(output_dir))
            logger.warning(f"{output_dir} has no sealed checkpoint yet: the run starts from the beginning")
            return None
        folder, problems = newest, []
    if not problems:
        content = read_seal(folder)
        now: dict[str, RunValue] = {"processes": processes, **(run or {})}
        before = {"processes": content["processes"], **content["run"]}
        accepted = "resuming with the command and the data of the first run"
        remedy = "repeat that command, or start afresh in another --output_dir"
        for key in sorted(now.keys() & before.keys()):
            if now[key] != before[key]:
                found = f"sealed with {key} = {shorten(before[key])}, running with {shorten(now[key])}"
                problems.append(Problem(f"{folder}/{SEAL}", found, accepted, remedy))
    if problems:
        raise TaskHeadsError(problems)
    return str(folder)


def refuse_foreign_output(output_dir: str | Path, resume: str | bool | None) -> None:
    """Refuse an output folder with work in it that this run would mix with its own or overwrite.

    Args:
        output_dir: the run's output folder; need not exist.
        resume: the value of `--resume_from_checkpoint`, before `resolve_resume`.

    Raises:
        TaskHeadsError: the folder is not empty and the run does not resume from it; names what is there.
    """
    output, asked = Path(output_dir), read_resume(resume)
    if output.exists() and not output.is_dir():
        raise TaskHeadsError(
            Problem(str(output), "is a file", "a new or empty folder", "choose another --output_dir")
        )
    inside = isinstance(asked, str) and output.resolve() in Path(asked).resolve().parents
    names = sorted(path.name for path in output.iterdir() if path.name != CLAIM) if output.is_dir() else []
    if not names or asked is True or inside:
        return
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    remedy = "choose another --output_dir or move these away"
    if (output / CLAIM).is_file() or any((folder / SEAL).is_file() for _, folder in _checkpoints(output)):
        remedy = f"continue that run with --resume_from_checkpoint true, or {remedy}"
    raise TaskHeadsError(Problem(str(output), f"already holds {shown}", "a new or empty folder", remedy))


def open_output(
    output_dir: str | Path, resume: str | bool | None, *, run: Mapping[str, RunValue] | None = None
) -> str | None:
    """Check and claim the output folder and find where to resume: the one call that a recipe makes.

    Under several processes the first one decides and the others get its answer, or its error. Call it
    after the training arguments were parsed (they start the process group) and before anything is written.

    Args:
        output_dir: the run's output folder; created if need be.
        resume: the value of `--resume_from_checkpoint`.
        run: what identifies the run; give `VerifiedCheckpointCallback` the same.

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
    """`Trainer.train`, without the step that it adds to a run which had ended but for its last files.

    Resumed in mid-epoch, Trainer takes a step before it looks at `max_steps` (transformers 5.23,
    `_run_epoch`). A run that is killed after its last checkpoint would therefore end one step further.

    Args:
        trainer: with a training set that has a length.
        checkpoint: from `open_output`; None starts afresh.
        scored: rows of dev and test that the recipe scores afterwards, for the estimate of the run.

    Raises:
        TaskHeadsError: what `check_run` refuses before the first step.
    """
    args = trainer.args
    sealing = [
        one for one in trainer.callback_handler.callbacks if isinstance(one, VerifiedCheckpointCallback)
    ]
    limit = sealing[0].save_total_limit if sealing else args.save_total_limit
    flow, state = check_run(trainer, save_total_limit=limit), TrainerState()
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    for measuring in trainer.callback_handler.callbacks:
        if isinstance(measuring, ThroughputCallback):
            measuring.announce(trainer, flow, done=state.global_step, scored=scored)
    if checkpoint is None:
        return trainer.train()
    if not 0 < args.max_steps <= state.global_step:
        return trainer.train(resume_from_checkpoint=checkpoint)
    # With no epoch left Trainer loads the checkpoint and goes straight to what follows the last step.
    asked = args.max_steps, args.num_train_epochs
    args.max_steps, args.num_train_epochs = -1, int(state.epoch or 0)
    try:
        return trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        args.max_steps, args.num_train_epochs = asked


class VerifiedCheckpointCallback(TrainerCallback):
    """Seals each checkpoint that Trainer saves, then deletes the ones that are no longer wanted.

    Args:
        save_total_limit: number of newest sealed checkpoints to keep, beside the best one
            (`state.best_model_checkpoint`); None keeps all.
        run: what identifies the run (JSON scalars); `open_output` refuses to resume with other values.

    Raises:
        TaskHeadsError: on every process alike, when a checkpoint is incomplete or cannot be sealed.

    Example:
        >>> callback = VerifiedCheckpointCallback(save_total_limit=2, run={"seed": 0})
    """

    def __init__(
        self, save_total_limit: int | None = None, *, run: Mapping[str, RunValue] | None = None
    ) -> None:
        if save_total_limit is not None and save_total_limit < 1:
            found, accepted = f"found {save_total_limit}", "1 or more, or None"
            raise TaskHeadsError(Problem("save_total_limit", found, accepted, "change it"))
        self.save_total_limit = save_total_limit
        self.run = dict(run or {})

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Refuse Trainer's own rotation; clear debris and set aside what lies ahead of the starting step."""
        problems = []
        if args.save_total_limit is not None:
            found = f"found {args.save_total_limit}: Trainer would delete before the new one is sealed"
            remedy = "give the number to VerifiedCheckpointCallback"
            problems.append(Problem("TrainingArguments.save_total_limit", found, "None", remedy))
        if args.save_on_each_node and _processes() > 1:
            remedy = "use a folder that all nodes share"
            problems.append(Problem("--save_on_each_node", "found true", "false", remedy))
        if not problems and _rank() == 0:
            try:
                _clear_ahead(_output(args), state.global_step)
                self._rotate(_output(args), best=state.best_model_checkpoint)  # a kill may have prevented it
            except OSError as error:
                problems.append(disk_problem(error, Path(error.filename or _output(args))))
        raise_everywhere(problems)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Seal the checkpoint just saved, once all processes have written their part, and rotate."""
        if state.is_hyper_param_search:
            return
        if dist.is_available() and dist.is_initialized():
            dist.barrier()  # every rank writes its own rng_state_*.pth
        problems: list[Problem] = []
        if _rank() == 0:
            folder = _output(args) / f"checkpoint-{state.global_step}"
            problems = missing_parts(folder, processes=_processes(), weights_only=args.save_only_model)
            try:
                if not problems:
                    seal(folder, processes=_processes(), run=self.run)
                    self._rotate(_output(args), best=state.best_model_checkpoint)
            except TaskHeadsError as error:
                problems = list(error.problems)
            except OSError as error:
                problems = [disk_problem(error, Path(error.filename or folder))]
        raise_everywhere(problems)

    def _rotate(self, output: Path, *, best: str | None) -> None:
        """Delete all but the newest sealed checkpoints and the best one."""
        if self.save_total_limit is None:
            return
        sealed = [folder for _, folder in sorted(_checkpoints(output)) if (folder / SEAL).is_file()]
        for folder in sealed[: -self.save_total_limit]:
            if best is None or folder.resolve() != Path(best).resolve():
                _delete(folder)


def resume_hazards(args: TrainingArguments, *, early_stopping: bool = False) -> list[Problem]:
    """Settings under which a killed and resumed run would end with other weights than an uninterrupted one.

    Args:
        args: the training arguments.
        early_stopping: True if the run has an `EarlyStoppingCallback`.

    Returns:
        One problem per setting; empty for the defaults. A recipe shows or refuses them.
    """
    loader = args.accelerator_config
    hazards = [
        (args.save_only_model, "--save_only_model", "no optimizer, scheduler and RNG state is saved"),
        (args.ignore_data_skip, "--ignore_data_skip", "rows already seen in the epoch would be seen again"),
        (
            args.train_sampling_strategy == "group_by_length",
            "--train_sampling_strategy",
            "group_by_length orders the rows by the global RNG, which is restored after the order is drawn",
        ),
        (
            isinstance(loader, AcceleratorConfig) and not loader.use_seedable_sampler,
            "accelerator_config.use_seedable_sampler",
            "the order of rows is drawn from the global RNG, which is restored only afterwards",
        ),
        (
            args.eval_strategy == "epoch" and args.save_strategy == "steps",
            "--eval_strategy",
            "epoch, with save_strategy steps: the last step of an epoch is saved before its evaluation, "
            "which a run resumed there skips",
        ),
        (
            early_stopping and not args.restore_callback_states_from_checkpoint,
            "--restore_callback_states_from_checkpoint",
            "false with early stopping: the patience counter would start again",
        ),
    ]
    accepted, remedy = "a setting that resumes exactly", "change it, or accept other weights on resume"
    return [Problem(where, found, accepted, remedy) for present, where, found in hazards if present]


def _refuse_fresh_start(output: Path) -> None:
    """Without a usable checkpoint, start afresh only where nothing but our own debris would be lost."""
    checkpoints = [folder for _, folder in sorted(_checkpoints(output))]
    damaged = [problem for folder in checkpoints if (folder / SEAL).exists() for problem in verify(folder)]
    if damaged:
        raise TaskHeadsError(damaged)
    if not output.is_dir() or not any(output.iterdir()):
        return
    finished = [path.name for path in output.iterdir() if path.is_file() and WEIGHTS.fullmatch(path.name)]
    if not (output / CLAIM).is_file() or finished:
        names = ", ".join(sorted(path.name for path in output.iterdir() if path.name != CLAIM)[:5])
        found = f"holds {names}, and no sealed checkpoint to resume from"
        remedy = "choose another --output_dir or move these away"
        raise TaskHeadsError(Problem(str(output), found, "a sealed checkpoint or an empty folder", remedy))


def _clear_ahead(output: Path, step: int) -> None:
    """Before training from `step`: delete our unsealed debris, rename sealed checkpoints that lie ahead."""
    for number, folder in sorted(_checkpoints(output)):
        if not (folder / SEAL).is_file():
            if (output / CLAIM).is_file():
                logger.warning(f"{folder} is the debris of a killed run and is deleted")
                _delete(folder)
        elif number > step:
            aside, count = output / f"abandoned-{folder.name}", 2
            while aside.exists():
                aside, count = output / f"abandoned-{folder.name}-{count}", count + 1
            logger.warning(f"{folder} lies ahead of step {step}, where this run starts; it becomes {aside}")
            os.rename(folder, aside)


def _delete(folder: Path) -> None:
    # The seal goes first: killed half-way, the rest is debris and nobody takes it for a checkpoint.
    (folder / SEAL).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    output = Path(output_dir)
    if not output.is_dir():
        return []
    folders = [path for path in output.iterdir() if path.is_dir()]
    matches = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folders]
    return [(int(match[1]), path) for match, path in matches if match]


def _output(args: TrainingArguments) -> Path:
    return Path(args.output_dir or "trainer_output")  # Trainer's own default


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
