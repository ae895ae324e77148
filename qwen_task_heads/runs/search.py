"""Search the options of a run: `--search 20`, by optuna.

Design:
- Each trial is a process that runs the recipe with its own options and folder, so that a trial that runs out
  of memory or is killed ends alone. The first trial has the options of the command line, so that the result
  is never below it on dev.
- The value of a trial is the best metric on dev (`--metric_for_best_model`), negative if a smaller one is
  better. After each evaluation the process reports its metric, and a trial below the median of the others
  ends (`MedianPruner`).
- Trials are kept in `OUTPUT_DIR-search/trials.log`, or in `--search_storage`, which several machines may
  share. The same command continues a search: an interrupted trial resumes from its last checkpoint.
- The options of the best trial then train the model in `OUTPUT_DIR`, and only that run is reported on test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at
from qwen_task_heads.reports.plots import BLUE, GREY, ORANGE, new_figure, save_figure
from qwen_task_heads.training.search_options import PRUNED, TRIAL, Range, default_space, read_space

LOG, TABLE, PLOT = "trials.log", "trials.json", "trials.png"
STARTUP = 5  # trials before others are pruned, and before they are proposed by a model
OWN = ("search", "search_space", "search_storage")


class PruningCallback(TrainerCallback):
    """Reports each evaluation of a trial, and ends the process if the trial is pruned."""

    def __init__(self, metric: str, *, sign: int) -> None:
        storage, study, number = os.environ[TRIAL].split("\n")
        loaded = open_study(storage, study, seed=0)
        self.metric, self.sign, self.trial = metric, sign, _trial(loaded, int(number))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        """Report the metric of dev."""
        if state.is_world_process_zero and self.metric in (metrics or {}):
            value = self.sign * float(metrics[self.metric])
            best = max(value, self.trial.user_attrs.get("best", value))
            self.trial.set_user_attr("best", best)
            self.trial.set_user_attr("sign", self.sign)
            self.trial.report(value, step=state.global_step)
            if self.trial.should_prune():
                raise SystemExit(PRUNED)


def pruning_callbacks(args: Any) -> list[TrainerCallback]:
    """Return the callback of a trial; none outside of a search."""
    if TRIAL not in os.environ:
        return []
    metric = args.metric_for_best_model
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    return [PruningCallback(name, sign=1 if args.greater_is_better else -1)]


def _search(task: Any, args: Any, model_args: Any, words: Sequence[str]) -> list[str]:
    """Run the trials that are missing, and return the words of the command line with the best options.

    Args:
        task: options with those of the search.
        args: of the trainer.
        model_args: of the backbone.
        words: of the command line.

    Raises:
        TaskHeadsError: see `read_space`; several processes; no trial that ended.
    """
    import optuna

    if args.world_size > 1 or task.search < 1:
        found = f"found {task.search} trials" if task.search < 1 else f"found {args.world_size} processes"
        fix = "start it with qth, on each machine with the same --search_storage"
        raise error_at("--search", found, "1 trial or more, in one process", fix, code="option-value")
    known = [*vars(task), *vars(args), *vars(model_args)]
    known = [name for name in known if not name.startswith("_") and name not in OWN]
    warm = task.init_head is not None
    space = default_space(rate=args.learning_rate, lora=model_args.use_peft, warm_start=warm)
    if task.search_space is not None:
        space = read_space(task.search_space, known)
    folder = Path(f"{args.output_dir}-search")
    folder.mkdir(parents=True, exist_ok=True)
    storage = task.search_storage or str(folder / LOG)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = open_study(storage, Path(args.output_dir).name, seed=args.seed)
    plain = without(words, [*OWN, "output_dir", "resume_from_checkpoint"])
    given = {name: value for group in (task, args, model_args) for name, value in vars(group).items()}
    if not study.trials:
        study.enqueue_trial({name: given[name] for name in space if _within(given[name], space[name])})
    while len(_ended(study)) < task.search:
        trial = _interrupted(study) or study.ask()
        trial.set_user_attr("pid", os.getpid())
        trial.set_user_attr("host", os.uname().nodename)
        options = {name: suggest(trial, name, one) for name, one in space.items()}
        code = _run(trial.number, options, plain, folder, storage=storage, study=study.study_name)
        own = folder / f"trial-{trial.number}"
        value = study.get_trials()[trial.number].user_attrs.get("best") if code == 0 else None
        state = optuna.trial.TrialState
        if code == PRUNED:
            study.tell(trial, state=state.PRUNED)
        elif value is None:
            study.tell(trial, state=state.FAIL)
        else:
            study.tell(trial, value)
        shutil.rmtree(own, ignore_errors=True)  # its log stays
        print(_line(study.get_trials()[trial.number], task.search), flush=True)
        _report(study, folder)
    finished = [one for one in study.trials if one.state == optuna.trial.TrialState.COMPLETE]
    if not finished:
        problem, fix = "no trial ended", f"see {folder}/trial-0.log"
        raise TaskHeadsError(Problem("--search", problem, "a finished trial", fix, code="option-value"))
    best = study.best_trial
    shown = ", ".join(f"{name} {_text(value)}" for name, value in best.params.items())
    print(f"search: best of {len(study.trials)} trials on dev: {_metric(best):.4f} with {shown}", flush=True)
    kept = without(words, [*OWN, *best.params])
    return [*kept, *(word for name, value in best.params.items() for word in (f"--{name}", _text(value)))]


def searched(parse: Callable[..., Any], argv: Sequence[str] | None) -> Any:
    """Parse a command line; with `--search`, search first, and return the options of the best trial.

    Args:
        parse: returns options of the task, the trainer and the model.
        argv: words; None for those of this process.
    """
    task, args, model_args = parsed = parse(argv)
    if task.search is None or TRIAL in os.environ:  # a trial, whose --config may name the search
        return parsed
    words = list(sys.argv[1:] if argv is None else argv)
    return parse(_search(task, args, model_args, words))


def open_study(storage: str, name: str, *, seed: int) -> Any:
    """Open a study; the file of a journal, or an address of optuna (`sqlite:///...`)."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    place: Any = storage if "://" in storage else JournalStorage(JournalFileBackend(storage))
    return optuna.create_study(
        storage=place,
        study_name=name,
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
    )


def suggest(trial: Any, name: str, space: Range) -> Any:
    """Return the value of an option in a trial; that of an interrupted trial again."""
    if space.values:
        return trial.suggest_categorical(name, list(space.values))
    return trial.suggest_float(name, space.low, space.high, log=space.log)


def without(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return a command line without some options and their values.

    Example:
        >>> without(["--search", "20", "--use_peft", "--lora_r=8"], ["search", "lora_r"])
        ['--use_peft']
    """
    kept: list[str] = []
    skipping = False
    for word in words:
        if word.startswith("--"):
            name = word[2:].split("=")[0].replace("-", "_")
            skipping = name in names or name.removeprefix("no_") in names
        if not skipping:
            kept.append(word)
    return kept


def _run(
    number: int, options: Mapping[str, Any], words: Sequence[str], folder: Path, *, storage: str, study: str
) -> int:
    """Run a trial in a process of its own, and return its exit code."""
    own = folder / f"trial-{number}"
    command = [sys.executable, sys.argv[0], *without(words, list(options)), "--output_dir", str(own)]
    command += [word for name, value in options.items() for word in (f"--{name}", _text(value))]
    if any(own.glob("checkpoint-*")):
        command += ["--resume_from_checkpoint", "true"]
    else:
        shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True, exist_ok=True)
    log = folder / f"trial-{number}.log"
    environment = {**os.environ, TRIAL: f"{storage}\n{study}\n{number}"}
    with log.open("ab") as stream:
        return subprocess.run(command, env=environment, stdout=stream, stderr=stream, check=False).returncode


def _ended(study: Any) -> list[Any]:
    return [trial for trial in study.trials if trial.state.is_finished()]


def _interrupted(study: Any) -> Any:
    """Return a trial of this machine whose process has ended without a result, if any."""
    import psutil

    for one in study.trials:
        attributes = one.user_attrs
        mine = attributes.get("host") == os.uname().nodename
        if not one.state.is_finished() and mine and not psutil.pid_exists(int(attributes["pid"])):
            return _trial(study, one.number)
    return None


def _trial(study: Any, number: int) -> Any:
    import optuna

    return optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def _within(value: Any, space: Range) -> bool:
    if space.values:
        return value in space.values
    return isinstance(value, int | float) and space.low <= value <= space.high


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _metric(trial: Any) -> float | None:
    """Return the metric of a finished trial, None for a pruned or failed one."""
    finished = trial.state.name == "COMPLETE"
    return trial.user_attrs["sign"] * trial.value if finished else None


def _line(trial: Any, count: int) -> str:
    shown = ", ".join(f"{name} {_text(one)}" for name, one in trial.params.items())
    value, state = _metric(trial), trial.state.name.lower()
    result = f"{value:.4f} on dev" if value is not None else "failed" if state == "fail" else state
    return f"trial {trial.number + 1} of {count}: {result} with {shown}"


def _report(study: Any, folder: Path) -> None:
    """Write the trials as JSON and as a plot of values by trial and by option."""
    trials = _ended(study)
    done = [one for one in trials if one.state.name == "COMPLETE"]  # a pruned trial has an unfinished value
    rows = [
        {
            "trial": one.number,
            "state": one.state.name.lower(),
            "value": _metric(one),
            "options": one.params,
        }
        for one in trials
    ]
    (folder / TABLE).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if not done:
        return
    names = sorted({name for one in done for name in one.params})
    figure = new_figure(3.2 * (1 + len(names)), 3)
    axes = list(figure.subplots(1, 1 + len(names), sharey=True, squeeze=False)[0])
    best = study.best_trial
    for place, (name, axis) in enumerate(zip(["trial", *names], axes, strict=True)):
        values = [one.number + 1 if not place else one.params.get(name) for one in done]
        shown = values if all(isinstance(one, int | float) for one in values) else list(map(str, values))
        axis.scatter(shown, [_metric(one) for one in done], color=BLUE, s=18)
        mark = shown[[one.number for one in done].index(best.number)]
        axis.scatter([mark], [_metric(best)], color=ORANGE, marker="*", s=90)
        axis.set_xlabel(name, color=GREY if place else "black")
        if name == "learning_rate":
            axis.set_xscale("log")
    axes[0].set_ylabel("metric on dev")
    save_figure(figure, folder / PLOT)
