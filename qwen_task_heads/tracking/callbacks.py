"""Experiment trackers of a run (`--report_to`): SwanLab, TensorBoard, trackio and wandb, offline by default.

Each class extends the callback of transformers, which logs during training:

- values are cleaned before they are logged (`payload.py`): tokens are removed, and a path is reduced to its
  name;
- the tracker starts offline and inside the output folder, unless the environment or a login says otherwise;
- the tracker stays open after training for the final metrics of the model and of the baselines as
  `final/<split>/<scorer>/<metric>`, the settings, the plots, and the first ten predictions as text;
- if the tracker fails at the end, the run continues: the model is evaluated, saved and published.

Predictions have texts of the data. They are logged to a tracker that stores them on this machine; to any
other only with `--log_predictions true`.
"""

from __future__ import annotations

import copy
import html
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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

from qwen_task_heads.tracking.libraries import (
    SWANLAB_LOCAL,
    WANDB_LOCAL,
    swanlab_mode,
    wandb_mode,
)
from qwen_task_heads.tracking.payload import Cleaner, CleanModel, FinalRecord

WANDB_UPLOADS = {"WANDB_LOG_MODEL": "false", "WANDB_WATCH": "false"}  # with the value that does nothing


class Tracker(TrainerCallback):
    """A tracker of one run: a callback of `Trainer` that also logs the final record.

    Args:
        args: `TrainingArguments` of the run.
        predictions: whether to log example predictions; None for only if they stay on this machine.
        places: paths of the run for its `Cleaner`.
    """

    module: ClassVar[str]
    required_env: ClassVar[Mapping[str, str]] = {}  # environment variables with a single accepted value

    def __init__(self, args: Any, *, predictions: bool | None = None, places: Sequence[Any] = ()) -> None:
        super().__init__()  # the callback of transformers, which imports the library
        self.args = args
        self.folder = Path(args.output_dir)
        self.clean = Cleaner(places=[args.output_dir, *places])
        self.is_started = False
        self._predictions = predictions

    @property
    def predictions(self) -> bool:
        """Whether example predictions are logged; the mode of an open run decides if no option does."""
        return self.is_local(self.args) if self._predictions is None else self._predictions

    @classmethod
    def is_local(cls, args: Any) -> bool:
        """Return whether all logged values stay on this machine."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Start the run before the callback of transformers would."""

    def record(self, final: FinalRecord) -> None:
        """Log the final record."""
        raise NotImplementedError

    def _values(self, final: FinalRecord, *, text: Callable[[str], Any], image: Callable[[str], Any]) -> Any:
        """Return all values of a record by name, with texts and pictures as objects of the library."""
        texts = {name: text(content) for name, content in final.texts.items()}
        return {
            **final.scalars,
            **texts,
            **{f"plots/{path.stem}": image(str(path)) for path in final.pictures},
        }

    def close(self) -> None:
        """End the run."""
        raise NotImplementedError

    def location(self) -> str:
        """Return the command or place to view the run; called while the run is open."""
        raise NotImplementedError

    def on_train_begin(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: object,
    ) -> None:
        """Start the run with cleaned arguments and a cleaned model config."""
        if not state.is_world_process_zero:
            return
        if not self.is_started:
            self.prepare()
        self.is_started = True
        values, clean_args = self.clean.value(args.to_dict()), copy.copy(args)
        clean_args.to_dict = lambda: values  # the callbacks read the arguments through it
        clean_args.run_name = None if args.run_name is None else self.clean.value(args.run_name)
        options = {} if model is None else {"model": CleanModel(model, self.clean)}
        super().on_train_begin(clean_args, state, control, **options)

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Log the cleaned metrics, in the main process."""
        if self.is_started:
            super().on_log(args, state, control, logs=self.clean.value(logs or {}))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Keep the run open for the final metrics; `close` does what transformers does here."""


class TensorBoard(Tracker, TensorBoardCallback):
    """Event files in `<output_dir>/runs` or TENSORBOARD_LOGGING_DIR; always local."""

    module = "tensorboard"
    tb_writer: Any
    logging_dir: Any

    def __init__(self, args: Any, *, predictions: bool | None = None, places: Sequence[Any] = ()) -> None:
        super().__init__(args, predictions=predictions, places=places)
        self.logging_dir = self.logging_dir or str(self.folder / "runs")

    @classmethod
    def is_local(cls, args: Any) -> bool:
        """Return True: event files are local."""
        return True

    def record(self, final: FinalRecord) -> None:
        """Add scalars, texts and images."""
        from matplotlib.image import imread

        for name, value in final.scalars.items():
            self.tb_writer.add_scalar(name, value)
        for name, text in final.texts.items():
            self.tb_writer.add_text(name, text)
        for path in final.pictures:
            pixels = (imread(path)[:, :, :3] * 255).round().astype(np.uint8)  # (H, W, 3)
            self.tb_writer.add_image(f"plots/{path.stem}", pixels, dataformats="HWC")

    def close(self) -> None:
        """Close the event file."""
        if self.tb_writer is not None:
            self.tb_writer.close()
        self.tb_writer = None

    def location(self) -> str:
        """Return the command that shows the run."""
        return f"tensorboard --logdir {self.logging_dir}"


class SwanLab(Tracker, SwanLabCallback):
    """A run in `<output_dir>/swanlab`, unless SWANLAB_MODE is `online`.

    The `local` mode needs the dashboard (`swanlab[dashboard]`). Without it the mode is `offline`, which
    writes the same folder. Both modes log neither the host, the command line, the git remote nor the
    terminal.
    """

    module = "swanlab"

    @classmethod
    def is_local(cls, args: Any) -> bool:
        """Return True unless the mode is `online` (`cloud` in old versions)."""
        return swanlab_mode() in SWANLAB_LOCAL

    def prepare(self) -> None:
        """Start the run, unless one is open in this process."""
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

    def record(self, final: FinalRecord) -> None:
        """Log metrics, `swanlab.Text` and, if pillow is installed, `swanlab.Image`."""
        import swanlab

        final = final if find_spec("PIL") else replace(final, pictures=())
        swanlab.log(self._values(final, text=swanlab.Text, image=swanlab.Image))

    def close(self) -> None:
        """End the run."""
        import swanlab

        swanlab.finish()

    def location(self) -> str:
        """Return the command that shows the run, or uploads it to a server."""
        import swanlab

        mode = swanlab_mode()
        if mode not in ("local", "offline"):
            return f"swanlab, {mode}"
        folder = swanlab.get_run().dir
        return f"swanlab watch {folder.parent}" if mode == "local" else f"swanlab sync {folder}"


class Trackio(Tracker, TrackioCallback):
    """A run in trackio's folder (TRACKIO_DIR), unless a Space or a server is named."""

    module = "trackio"

    @classmethod
    def is_local(cls, args: Any) -> bool:
        """Return whether neither `--trackio_space_id` nor the environment names a Space or server."""
        remote = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
        return not (args.trackio_space_id or remote)

    def record(self, final: FinalRecord) -> None:
        """Log metrics, `trackio.Markdown` and `trackio.Image`."""
        import trackio

        trackio.log(self._values(final, text=trackio.Markdown, image=trackio.Image))

    def close(self) -> None:
        """End the run; the callback of transformers freezes a Space here."""
        TrackioCallback.on_train_end(self, self.args, TrainerState(), TrainerControl())

    def location(self) -> str:
        """Return the command that shows the run."""
        return f"trackio show --project {self.args.project}"


class Wandb(Tracker, WandbCallback):
    """A run in `<output_dir>/wandb`; offline unless WANDB_MODE says otherwise or there is a login.

    The run logs neither the machine nor the terminal, and uploads no model. A model is published by
    `--push_to_hub`, which scans the published files for secrets.
    """

    module = "wandb"
    required_env = WANDB_UPLOADS

    @classmethod
    def is_local(cls, args: Any) -> bool:
        """Return whether the mode is offline, which is the default without a login."""
        return wandb_mode() in WANDB_LOCAL

    def prepare(self) -> None:
        """Start the run, unless one is open in this process."""
        import wandb

        if wandb.run is not None:
            return
        settings = wandb.Settings(
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        wandb.init(
            project=os.environ.get("WANDB_PROJECT") or self.clean.value(self.args.project),
            name=self.clean.value(self.args.run_name or self.folder.name),
            dir=os.environ.get("WANDB_DIR") or str(self.folder),
            mode=os.environ.get("WANDB_MODE") or ("offline" if self.is_local(self.args) else None),
            settings=settings,
        )

    def record(self, final: FinalRecord) -> None:
        """Log metrics, `wandb.Image`, and `wandb.Html`, because a table would have a path of this machine."""
        import wandb

        def text(content: str) -> Any:
            return wandb.Html(f"<pre>{html.escape(content)}</pre>")

        wandb.log(self._values(final, text=text, image=wandb.Image))

    def close(self) -> None:
        """End the run."""
        import wandb

        wandb.finish()

    def location(self) -> str:
        """Return the command that uploads an offline run, or that the run is online."""
        folder = os.environ.get("WANDB_DIR") or str(self.folder)
        return f"wandb sync {folder}/wandb/offline-run-*" if self.is_local(self.args) else "wandb, online"


TRACKERS: dict[str, type[Tracker]] = {
    "swanlab": SwanLab,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
}
