"""Trackers of a run (`--report_to`): SwanLab, TensorBoard, trackio and wandb, offline where they can be.

What a tracker hears during training is what transformers' own callback tells it. Each class here is that
callback, prepared and finished around it:

- what it hears is cleaned (`tracked.py`): no token, and a path is told by its name;
- it starts offline and inside the output folder, unless the environment or a login says otherwise;
- it stays open after training, for what is measured at the end: figures of the model and of the baselines as
  `final/<split>/<scorer>/<figure>`, the settings, the plots, and the first ten predictions as text;
- when it fails at the end, the run goes on: it is measured and saved, and may be published yet.

Rows are somebody's data. Predictions go to a tracker that keeps them on this machine; to one that sends them
away only with `--log_predictions true`.
"""

from __future__ import annotations

import copy
import html
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.integrations.integration_utils import (
    SwanLabCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.tracking.libraries import (
    SWANLAB_HERE,
    WANDB_HERE,
    failures_of,
    swanlab_mode,
    wandb_mode,
)
from qwen_task_heads.tracking.payload import Cleaner, ShownModel, Told, told_at_end

NOT_OURS = ("kubeflow",)  # added by transformers inside such a job; hears of progress alone
WANDB_UPLOADS = {"WANDB_LOG_MODEL": "false", "WANDB_WATCH": "false"}  # with the value that does nothing


class Tracker(TrainerCallback):
    """A tracker of one run: a callback of `Trainer`, and what is told when the run is measured.

    Args:
        args: `TrainingArguments` of the run.
        predictions: log example predictions; None where the tracker keeps them on this machine.
        places: paths of the run, known to its `Cleaner`.
    """

    module: ClassVar[str]
    settled: ClassVar[Mapping[str, str]] = {}  # variables of the environment that have one accepted value

    def __init__(self, args: Any, *, predictions: bool | None = None, places: Sequence[Any] = ()) -> None:
        super().__init__()  # transformers' callback, which imports the library
        self.args = args
        self.folder = Path(args.output_dir)
        self.clean = Cleaner(places=[args.output_dir, *places])
        self.is_started = False
        self._asked = predictions

    @property
    def predictions(self) -> bool:
        """Whether it is told example predictions, as of now: a run that is open says where it goes."""
        return self.is_local(self.args) if self._asked is None else self._asked

    @classmethod
    def is_local(cls, args: Any) -> bool:
        """Whether nothing that it is told leaves this machine."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Start the run before transformers' callback would."""

    def record(self, told: Told) -> None:
        """Tell what was measured."""
        raise NotImplementedError

    def close(self) -> None:
        """End the run."""
        raise NotImplementedError

    def line(self) -> str:
        """Where to look, for the screen; asked while the run is open."""
        raise NotImplementedError

    def on_train_begin(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: object,
    ) -> None:
        """Start the run, with arguments and a model whose settings are clean."""
        if not state.is_world_process_zero:
            return
        if not self.is_started:
            self.prepare()
        self.is_started = True
        told, shown = self.clean.value(args.to_dict()), copy.copy(args)
        shown.to_dict = lambda: told  # all that the callbacks send of the arguments comes through it
        shown.run_name = None if args.run_name is None else self.clean.value(args.run_name)
        seen = {} if model is None else {"model": ShownModel(model, self.clean)}
        super().on_train_begin(shown, state, control, **seen)

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Pass the figures on, from the first process."""
        if self.is_started:
            super().on_log(args, state, control, logs=self.clean.value(logs or {}))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Stay open: the run is measured after training. `close` does what transformers does here."""


class TensorBoard(Tracker, TensorBoardCallback):
    """Event files in `<output_dir>/runs`, or where TENSORBOARD_LOGGING_DIR says; always local."""

    module = "tensorboard"
    tb_writer: Any
    logging_dir: Any

    def __init__(self, args: Any, *, predictions: bool | None = None, places: Sequence[Any] = ()) -> None:
        super().__init__(args, predictions=predictions, places=places)
        self.logging_dir = self.logging_dir or str(self.folder / "runs")

    @classmethod
    def is_local(cls, args: Any) -> bool:
        """Always."""
        return True

    def record(self, told: Told) -> None:
        """Add summaries."""
        from matplotlib.image import imread

        for name, value in told.scalars.items():
            self.tb_writer.add_scalar(name, value)
        for name, text in told.texts.items():
            self.tb_writer.add_text(name, text)
        for path in told.pictures:
            pixels = (imread(path)[:, :, :3] * 255).round().astype(np.uint8)  # (H, W, 3)
            self.tb_writer.add_image(f"plots/{path.stem}", pixels, dataformats="HWC")

    def close(self) -> None:
        """Close the event file."""
        if self.tb_writer is not None:
            self.tb_writer.close()
        self.tb_writer = None

    def line(self) -> str:
        """The command that shows it."""
        return f"tensorboard --logdir {self.logging_dir}"


class SwanLab(Tracker, SwanLabCallback):
    """A run in `<output_dir>/swanlab`, unless SWANLAB_MODE says `online`.

    Its `local` mode needs the dashboard (`swanlab[dashboard]`); without it the mode is `offline`, which
    writes the same folder. Neither reads the host, the command line, the git remote or the terminal.
    """

    module = "swanlab"

    @classmethod
    def is_local(cls, args: Any) -> bool:
        """Unless it was told to go online (`cloud` of old versions)."""
        return swanlab_mode() in SWANLAB_HERE

    def prepare(self) -> None:
        """Start it, or take the run that somebody has started in this process."""
        import swanlab

        if swanlab.has_run():
            return
        probe = swanlab.Settings.Probe(runtime=False, git=False, requirements=False, swanlab=False)
        settings = swanlab.Settings(
            interactive=False, probe=probe, terminal=swanlab.Settings.Terminal(proxy_type="none")
        )
        resume = {"id": os.environ["SWANLAB_RUN_ID"]} if os.environ.get("SWANLAB_RUN_ID") else {}
        swanlab.init(
            mode=swanlab_mode(),
            log_dir=os.environ.get("SWANLAB_LOG_DIR") or str(self.folder / "swanlab"),
            project=os.environ.get("SWANLAB_PROJECT") or self.clean.value(self.args.project),
            name=self.clean.value(self.args.run_name or self.folder.name),
            settings=settings,
            **resume,
        )

    def record(self, told: Told) -> None:
        """Log figures, `swanlab.Text` and, where pillow is installed, `swanlab.Image`."""
        import swanlab

        written = {name: swanlab.Text(text) for name, text in told.texts.items()}
        drawn = {f"plots/{path.stem}": swanlab.Image(str(path)) for path in told.pictures}
        swanlab.log({**told.scalars, **written, **(drawn if find_spec("PIL") else {})})

    def close(self) -> None:
        """End the run."""
        import swanlab

        swanlab.finish()

    def line(self) -> str:
        """The command that shows it, or sends it to a server that shows it."""
        import swanlab

        mode = swanlab_mode()
        if mode not in ("local", "offline"):
            return f"swanlab, {mode}"
        folder = swanlab.get_run().dir
        return f"swanlab watch {folder.parent}" if mode == "local" else f"swanlab sync {folder}"


class Trackio(Tracker, TrackioCallback):
    """A run in trackio's own folder (TRACKIO_DIR), unless a Space or a server is named."""

    module = "trackio"

    @classmethod
    def is_local(cls, args: Any) -> bool:
        """Where neither `--trackio_space_id` nor the environment names another place."""
        elsewhere = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
        return not (args.trackio_space_id or elsewhere)

    def record(self, told: Told) -> None:
        """Log figures, `trackio.Markdown` and `trackio.Image`."""
        import trackio

        written = {name: trackio.Markdown(text) for name, text in told.texts.items()}
        drawn = {f"plots/{path.stem}": trackio.Image(str(path)) for path in told.pictures}
        trackio.log({**told.scalars, **written, **drawn})

    def close(self) -> None:
        """End the run; transformers freezes a Space here."""
        TrackioCallback.on_train_end(self, self.args, TrainerState(), TrainerControl())

    def line(self) -> str:
        """The command that shows it."""
        return f"trackio show --project {self.args.project}"


class Wandb(Tracker, WandbCallback):
    """A run in `<output_dir>/wandb`; offline unless WANDB_MODE says otherwise or there is a login.

    It reads neither the machine nor the terminal, and uploads no model: a model is published by
    `--push_to_hub`, which looks into what leaves.
    """

    module = "wandb"
    settled = WANDB_UPLOADS

    @classmethod
    def is_local(cls, args: Any) -> bool:
        """Without a login, or told to be offline."""
        return wandb_mode() in WANDB_HERE

    def prepare(self) -> None:
        """Start it, or take the run that somebody has started in this process."""
        import wandb

        if wandb.run is not None:
            return
        settings = wandb.Settings(
            console="off", disable_git=True, disable_code=True, x_disable_meta=True,
            x_disable_machine_info=True, x_save_requirements=False,
        )  # fmt: skip
        wandb.init(
            project=os.environ.get("WANDB_PROJECT") or self.clean.value(self.args.project),
            name=self.clean.value(self.args.run_name or self.folder.name),
            dir=os.environ.get("WANDB_DIR") or str(self.folder),
            mode=os.environ.get("WANDB_MODE") or ("offline" if self.is_local(self.args) else None),
            settings=settings,
        )

    def record(self, told: Told) -> None:
        """Log figures, `wandb.Image`, and `wandb.Html`: a table would name a folder of this machine."""
        import wandb

        written = {name: wandb.Html(f"<pre>{html.escape(text)}</pre>") for name, text in told.texts.items()}
        drawn = {f"plots/{path.stem}": wandb.Image(str(path)) for path in told.pictures}
        wandb.log({**told.scalars, **written, **drawn})

    def close(self) -> None:
        """End the run."""
        import wandb

        wandb.finish()

    def line(self) -> str:
        """Where it is."""
        folder = os.environ.get("WANDB_DIR") or str(self.folder)
        return f"wandb sync {folder}/wandb/offline-run-*" if self.is_local(self.args) else "wandb, online"


TRACKERS: dict[str, type[Tracker]] = {
    "swanlab": SwanLab,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
}


def track(args: Any, *, task: Any) -> list[Tracker]:
    """Trackers of a run, as callbacks for its trainer; `record_of` finds them there at the end.

    Nothing is started and nothing written before training begins. `args.report_to` is emptied, so that
    transformers does not add its own callbacks beside these.

    Args:
        args: `TrainingArguments` of the run.
        task: the options of a recipe (a `DataArguments`); its `log_predictions`.

    Raises:
        TaskHeadsError: a tracker that is not known or not installed, all of them at once.

    Example:
        >>> from transformers import TrainingArguments
        >>> from qwen_task_heads.tracking.callbacks import track
        >>> from qwen_task_heads.training.arguments import DataArguments
        >>> track(TrainingArguments("runs/x", report_to="none", use_cpu=True), task=DataArguments())
        []
    """
    asked = [name for name in args.report_to if name not in NOT_OURS]
    chosen = [name for name in asked if name in TRACKERS]
    accepted = "none, " + ", ".join(TRACKERS)
    problems = [
        Problem("--report_to", f"found {name!r}", accepted, "choose among them")
        for name in asked
        if name not in TRACKERS
    ]
    missing = [name for name in chosen if find_spec(TRACKERS[name].module) is None]
    if missing:
        found = f"found {', '.join(missing)}, not installed"
        pip = 'pip install "qwen-task-heads[track]", or pip install ' + " ".join(missing)
        problems.append(Problem("--report_to", found, "trackers that are installed", pip))
    for name in chosen:
        for variable, idle in TRACKERS[name].settled.items():
            if (found := os.environ.get(variable, idle)) != idle:
                remedy = "unset it; a model is published by --push_to_hub"
                problems.append(Problem(variable, f"found {found!r}", f"{idle}", remedy))
    if problems:
        raise TaskHeadsError(problems)
    args.report_to = [name for name in args.report_to if name in NOT_OURS]
    about: dict[str, Any] = {"predictions": task.log_predictions, "places": [*vars(task).values()]}
    return [TRACKERS[name](args, **about) for name in dict.fromkeys(chosen)]


def finish_trackers(
    trackers: Sequence[Tracker],
    *,
    folder: Path,
    metrics: Mapping[str, Any],
    settings: Mapping[str, Any],
    reported: str,
) -> None:
    """Tell the trackers of a finished run what was measured, end them all, and say where to look.

    One that fails is told of in a line with its reason: no dashboard is worth the end of a run.

    Args:
        trackers: from `track`.
        folder: of the run, with `predictions.jsonl` and plots.
        metrics: as `metrics.json` holds them.
        settings: as `manifest.json` holds them.
        reported: the split of the predictions.
    """
    about: dict[str, Any] = {"folder": folder, "metrics": metrics, "settings": settings, "reported": reported}
    told = [told_at_end(**about, predictions=one.predictions, clean=one.clean) for one in trackers]
    for tracker, measured in zip(trackers, told, strict=True):
        failures = failures_of(tracker.module)
        try:
            if not tracker.is_started:  # a run without `Trainer`: a sweep
                tracker.on_train_begin(tracker.args, TrainerState(), TrainerControl())
            tracker.record(measured)
            print(f"Tracked: {tracker.line()}", flush=True)
        except failures as error:
            _tell_failure(tracker, error)
        try:
            tracker.close()
        except failures as error:
            _tell_failure(tracker, error)


def _tell_failure(tracker: Tracker, error: Exception) -> None:
    reason = " ".join(tracker.clean.text(f"{type(error).__name__}: {error}").split())
    print(f"Not tracked: {tracker.module} failed at the end ({reason[:300]})", flush=True)
