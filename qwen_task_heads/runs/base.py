"""The life of a run: options, output folder, checkpoints, trackers, record and publishing.

A recipe builds a `Run` of its task from the command line and calls its steps in order. What all runs share is
here; `titles.py`, `texts.py` and `generative.py` add data, model and report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from transformers import TrainerCallback, set_seed

from qwen_task_heads.data_checks.inspection import check_sets, worst_line
from qwen_task_heads.models import adapter_config, load_tokenizer
from qwen_task_heads.publishing.target import PublishTarget, publish_target_of
from qwen_task_heads.reports.finishing import FinishedTraining
from qwen_task_heads.runs.search import pruning_callbacks
from qwen_task_heads.tracking.open_trackers import track
from qwen_task_heads.training.arguments import run_identity
from qwen_task_heads.training.callbacks import check_world
from qwen_task_heads.training.checkpoints import VerifiedCheckpointCallback, open_output
from qwen_task_heads.training.checkpoints import train as train_or_resume
from qwen_task_heads.training.sharding import whole_model
from qwen_task_heads.training.warm_start import take_template


class Run:
    """What the runs of all tasks share.

    Args:
        task: options of the data and the head.
        args: of the trainer, a `TitleConfig`, `ClassifierConfig` or `SFTConfig` of this package.
        model_args: options of the backbone and of LoRA.

    Attributes:
        datasets: train, dev and test, set by `read_datasets` of the task.
        adapter: the PEFT config, or None for training in full.

    Raises:
        TaskHeadsError: another number of processes than `--num_processes`, no right to publish, or a tracker
            that is not installed.
    """

    PROCESSES: ClassVar[int | None] = None  # the only number that the run can use; any if None

    def __init__(self, task: Any, args: Any, model_args: Any) -> None:
        self.task, self.args, self.model_args = task, args, model_args
        args.announce(task, model_args)
        check_world(self.PROCESSES or task.num_processes, running=args.world_size)
        self.target: PublishTarget | None = publish_target_of(task, args, model_args)
        self.trackers = track(args, task=task)
        self.datasets: Any = None
        self.adapter: Any = None
        self.checkpoint: str | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return bool(self.args.process_index == 0)

    def open_output(self) -> None:
        """Claim the output folder or find the checkpoint to resume from, and set the seed.

        Raises:
            TaskHeadsError: files of another run, or a checkpoint of other data or options.
        """
        self.checkpoint = open_output(
            self.args.output_dir, self.args.resume_from_checkpoint, run=self.identity()
        )
        set_seed(self.args.seed)

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a run to be resumed: data and options."""
        options = run_identity(self.task, self.args, self.model_args)
        return {**options, **self.datasets.fingerprint()}

    def print_messages(self, messages: Iterable[object | None]) -> None:
        """Print what was read, and notes on it."""
        if self.is_main:
            notes = [f"note: {message}" for message in messages if message]
            worst = worst_line(check_sets(self.datasets), self.task.dataset_name)
            notes += [f"note: {worst}"] if worst else []
            print("\n".join([*self.datasets.lines, *notes]), flush=True)

    def callbacks(self, *more: TrainerCallback) -> list[TrainerCallback]:
        """Return verified checkpoints, trackers and further callbacks.

        Checkpoints rotate in the callback: Trainer would delete the old one before the new one is complete.
        """
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        checkpoints = VerifiedCheckpointCallback(limit, run=self.identity())
        return [checkpoints, *more, *self.trackers, *pruning_callbacks(self.args)]

    def peft_config(self, model: Any) -> Any:
        """Return the PEFT config of `--use_peft` or `--freeze_backbone`; None for training in full."""
        if self.model_args.use_peft or self.task.freeze_backbone:
            self.adapter = adapter_config(
                model, head_only=self.task.freeze_backbone, **self.model_args.adapter_options()
            )
        return self.adapter

    def train(self, trainer: Any, *, scored: int = 0) -> None:
        """Train, or resume; `scored` rows are measured at the end, for the estimate of time."""
        train_or_resume(trainer, checkpoint=self.checkpoint, scored=scored)

    def collect(self, trainer: Any, make: Callable[[], Any]) -> Any:
        """Return the whole trained model on the main process, and end the other processes' part.

        Args:
            trainer: after training.
            make: builds the model as before training, to collect sharded weights into.
        """
        trained = whole_model(trainer, make=make, peft_config=self.adapter)
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
        return trained

    def finish(self, trainer: Any) -> None:
        """Save, evaluate, report and publish; on the main process."""
        trained = self.collect(trainer, self._build)
        if self.is_main:  # evaluation and publishing may outlast the timeout of other processes
            self._report(trained, trainer)
            self.publish()

    def _build(self) -> Any:
        """Build the model as before training."""
        raise NotImplementedError

    def _report(self, trained: Any, trainer: Any) -> None:
        """Save the trained model and write its report."""
        raise NotImplementedError

    def _finished(self, trainer: Any, *, config: Any, adapter: Any = None, **more: Any) -> FinishedTraining:
        """Return the finished training, from which the report is written."""
        return FinishedTraining.of(
            trainer,
            task=self.task,
            model_args=self.model_args,
            config=config,
            adapter=adapter or self.adapter,
            resumed=self.checkpoint is not None,
            **{"sets": self.datasets, **more},
        )

    def _load_head_model(self, template: Any) -> tuple[Any, Any]:
        """Return a model with its head, and the tokenizer, without a template yet if one is given."""
        model, hub = self._build(), self.task.hub
        if self.target:
            self.target.check_model(model)
        name, revision = self.model_args.model_name_or_path, model.config.backbone_revision
        tokenizer = load_tokenizer(name, revision=revision, hub=hub)
        take_template(tokenizer, None if template else self.task.init_head, hub=hub)
        self._config = model.config
        return model, tokenizer

    def publish(self) -> None:
        """Publish the folder of the run if `--push_to_hub` asks for it."""
        if self.target:
            self.target.push(self.args.output_dir)
