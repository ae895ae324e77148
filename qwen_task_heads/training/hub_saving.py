"""Methods of Trainer to save and push, for a model with a task head.

transformers omits config and code of an adapter, pushes `training_args.bin` with the hub token unencrypted,
and writes a card of placeholders. With `HubSaving`, `save_model`, `create_model_card`, `push_to_hub` and
`TrainingArguments(push_to_hub=True)` write the folder of `save_pretrained` and run the checks of `publish`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress, logging

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.head_rows import drop_calibration
from qwen_task_heads.hubcode.folder_task_heads import is_checkpoint, write_card, write_gitignore
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.hubcode.pushing_task_heads import name_folder
from qwen_task_heads.training.sharding import is_in_lockstep

logger = logging.get_logger(__name__)

TRAINING_ARGS = "training_args.bin"
# Values logged by an evaluation that are not metrics.
NO_METRICS = ("runtime", "samples_per_second", "steps_per_second", "num_tokens", "epoch")


class WithoutTrainingArgs:
    """Mixin of a Trainer that removes `training_args.bin` from every saved folder.

    The file is a pickle with the unencrypted hub token. Neither loading nor resuming reads it.
    """

    args: Any

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / TRAINING_ARGS).unlink(missing_ok=True)
            if not is_checkpoint(folder):
                write_gitignore(folder)


class HubSaving(WithoutTrainingArgs):
    """Mixin of a Trainer of a `PooledClassifier` or `TitleScorer`, or of a `PeftModel` around one."""

    model: Any
    state: Any
    accelerator: Any
    processing_class: Any
    hub_model_id: str | None
    push_in_progress: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.task_head._hf_peft_config_loaded:  # Trainer cannot resume from its checkpoints
            problem, expected = "found a model that has loaded its adapter", "a full model, or a PeftModel"
            fix = "merge it (qwen_task_heads.merge), or train the plain backbone with peft_config"
            raise TaskHeadsError(Problem("model", problem, expected, fix, code="model-type"))
        if self.processing_class is not None:
            self.task_head.tokenizer = self.processing_class
            self.task_head.config.text_config.pad_token_id = self.processing_class.pad_token_id

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train like the parent, after the calibration of the previous weights is removed from the config."""
        drop_calibration(self.task_head.config)
        return super().train(*args, **kwargs)  # type: ignore[misc]

    @property
    def task_head(self) -> TaskHeadModel:
        """Model with the head, without the adapter and the wrappers of distributed training."""
        model = self.accelerator.unwrap_model(self.model)
        return model if isinstance(model, TaskHeadModel) else model.get_base_model()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate like the parent; the metrics of the dev set are stored for the card of these weights."""
        if eval_dataset is not None and not isinstance(eval_dataset, (str, dict)):
            eval_dataset = self.encode_rows(eval_dataset)
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # type: ignore[misc]
        own = eval_dataset is None and metric_key_prefix == "eval"
        if own and self.args.should_save and not is_in_lockstep(self):
            named = {key.removeprefix("eval_"): value for key, value in metrics.items()}
            self.task_head.record_evaluation(
                {
                    key: float(value)
                    for key, value in named.items()
                    if isinstance(value, (int, float)) and key not in NO_METRICS
                }
            )
        return metrics

    def encode_rows(self, data: Any) -> Any:
        """Return a dataset as token ids; encoded datasets are returned unchanged."""
        raise NotImplementedError

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the card of the model into the output folder, with the metrics that exist for its weights.

        The card of a finished recipe is kept. Base and task are read from the model. `finetuned_from`,
        `tasks`, `model_name` and `dataset_args` exist in the signature of the parent and are ignored.

        Args:
            language, license, tags: fields of the metadata.
            dataset_tags: ids of the datasets on the hub.
            dataset: used if `dataset_tags` is not given.
        """
        if not self.args.should_save:
            return
        facts = {"language": language, "license": license, "tags": tags, "datasets": dataset_tags or dataset}
        lists = {"tags", "datasets"}
        write_card(
            self.task_head,
            self.args.output_dir,
            is_adapter=self.accelerator.unwrap_model(self.model) is not self.task_head,
            facts={
                name: [value] if name in lists and isinstance(value, str) else value
                for name, value in facts.items()
                if value
            },
        )

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repo, after checks of login, name, write permission and the model in the repo."""
        if not self.args.should_save:
            return
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        token = token or self.args.hub_token
        private = self.args.hub_private_repo if private is None else private
        self.args.hub_model_id = self.task_head.publisher.check(
            self.model, repo_id=name, token=token, private=private
        )
        super().init_hf_repo(token=token, private=private)  # type: ignore[misc]

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model, verify the saved folder in a clean process, and push it as one commit.

        Args:
            commit_message, token, revision, private: as in the parent.
            blocking: False returns a completed `Future`.
            **kwargs: of `create_model_card`.

        Raises:
            TaskHeadsError: as `publish`; nothing was uploaded.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)  # type: ignore[attr-defined]
        self.save_model(_internal_call=True)  # type: ignore[attr-defined]
        if not self.args.should_save:
            return None
        if kwargs:
            self.create_model_card(**kwargs)
        self._finish_current_push()  # type: ignore[attr-defined]
        commit = self.task_head.publisher.push(
            self.args.output_dir,
            repo_id=self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
            commit_message=commit_message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            private=self.args.hub_private_repo if private is None else private,
            trained=self.accelerator.unwrap_model(self.model),
            tokenizer=self.processing_class,
        )
        if blocking:
            return commit
        done: Future[Any] = Future()
        done.set_result(commit)
        return done

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the current model, and the checkpoint if the strategy includes it, in the background."""
        args = self.args
        if not args.should_save or args.hub_strategy == HubStrategy.END:
            return
        if (
            not args.hub_always_push
            and self.push_in_progress is not None
            and not self.push_in_progress.is_done()
        ):
            return
        if is_in_lockstep(self):
            logger.warning_once("Weights are sharded: the model is pushed only at the end of training.")
            return
        from huggingface_hub import HfApi

        self.callback_handler.on_push_begin(args, self.state, self.control)  # type: ignore[attr-defined]
        folder = Path(tempfile.mkdtemp(prefix="push-"))
        self._save(str(folder))
        name_folder(folder, str(self.hub_model_id))
        message = f"Training in progress, step {self.state.global_step}"
        send: Callable[..., Any] = partial(
            HfApi(token=args.hub_token).upload_folder,
            repo_id=str(self.hub_model_id),
            run_as_future=True,
            revision=args.hub_revision,
        )
        job = send(folder_path=folder, commit_message=message, ignore_patterns=[".gitignore"])
        job.add_done_callback(lambda _: shutil.rmtree(folder))
        jobs = [job]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = args.hub_strategy == HubStrategy.CHECKPOINT
            place = "last-checkpoint" if last else Path(checkpoint_folder).name
            jobs.append(
                send(
                    folder_path=checkpoint_folder, path_in_repo=place, commit_message=f"{message}, checkpoint"
                )
            )
        if self.push_in_progress is None or self.push_in_progress.is_done():
            self.push_in_progress = PushInProgress(jobs)
        else:
            self.push_in_progress.jobs.extend(jobs)
