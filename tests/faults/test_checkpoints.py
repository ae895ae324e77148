"""Checkpoints of runs that are killed by a signal and resumed by the same command.

Importing trl takes seconds, so a driver forked from the fork server, which has imported it, forks one child
per run. The children train the real `RewardTrainer`; some kill themselves at a chosen event, others are
killed from outside when a file appears. Started as a script, this file is one rank of two processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import launching
import pytest

from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.training.checkpoint_manifest import (
    CHECKPOINT_MANIFEST,
    missing_files,
    verify,
    write_manifest,
)
from qwen_task_heads.training.checkpoints import (
    VerifiedCheckpointCallback,
    newest_verified,
    open_output,
    refuse_foreign_output,
    resolve_resume,
    train,
)
from qwen_task_heads.training.run_checks import resume_hazards

STEPS_PER_EPOCH = 7  # 25 rows, batches of 2, two batches per update: the last update of an epoch has one
SAVE_EVERY = 4


# --- the driver: everything down to `drive` runs in a process of its own ---


def tiny_trainer(output: Path, *, lora: bool, callbacks: list, **changes):
    """Return a RewardTrainer on a random two-layer Qwen2, with every source of randomness enabled."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForSequenceClassification, set_seed
    from trl import RewardConfig, RewardTrainer

    torch.set_num_threads(1)
    set_seed(3)
    words = {word: index for index, word in enumerate(["<pad>", "<eos>", *(f"w{i}" for i in range(62))])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        attention_dropout=0.1,
        num_labels=1,
        pad_token_id=0,
    )
    rows = [
        {
            "chosen_ids": [2 + (7 * i + j) % 62 for j in range(3 + i % 4)],
            "rejected_ids": [2 + i % 62, 3, 1],
            "length": 3 + i % 4,
        }
        for i in range(25)
    ]
    settings = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 3,
        "learning_rate": 1e-2, "warmup_steps": 3, "save_steps": SAVE_EVERY, "eval_strategy": "steps",
        "eval_steps": SAVE_EVERY, "logging_steps": 5, "seed": 3, "max_length": None, "disable_dropout": False,
        "use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": "none",
        "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    return RewardTrainer(
        model=Qwen2ForSequenceClassification(config),
        args=RewardConfig(str(output), **(settings | changes)),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:6]),
        processing_class=tokenizer,
        callbacks=callbacks,
        peft_config=LoraConfig(
            task_type="SEQ_CLS",
            r=2,
            lora_dropout=0.1,
            target_modules=["q_proj", "v_proj"],
            modules_to_save=["score"],
        )
        if lora
        else None,
    )


def command(output: Path, *, lora: bool, kill: dict, **changes) -> None:
    """Start or resume a run; both use the same call."""
    from transformers import TrainerCallback

    class KillsItself(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == kill.get("step_end") and state.is_world_process_zero:
                os.kill(os.getpid(), signal.SIGKILL)

        def on_save(
            self, args, state, control, **kwargs
        ):  # runs after the save of Trainer, before the manifest
            if state.global_step == kill.get("before_manifest"):
                os.kill(os.getpid(), signal.SIGKILL)

    if "path" in kill:
        launching.kill_once_there(output / kill["path"])
    if "audit" in kill:
        event, count = kill["audit"], [0]

        def hook(name, arguments):
            if name == event and str(output) in str(arguments):
                count[0] += 1
                if count[0] == kill.get("nth", 1):
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
    run = {"seed": 3, "data": "rows-v1"}
    if "WORLD_SIZE" in os.environ:  # as in a recipe: the parsed arguments start the process group
        from trl import RewardConfig

        RewardConfig(str(output), use_cpu=True, bf16=False, activation_checkpointing=False)
    checkpoint = open_output(output, kill.get("resume", "true"), run=run)
    (output.parent / f"{output.name}.resumed").write_text(str(checkpoint and Path(checkpoint).name))
    trainer = tiny_trainer(
        output, lora=lora, callbacks=[KillsItself(), VerifiedCheckpointCallback(2, run=run)], **changes
    )
    train(trainer, checkpoint=checkpoint)
    trainer.save_model(str(output))


def run_child(output: Path, *, lora: bool, kill: dict, **changes) -> int:
    """Fork, train, and return the exit status; negative values are signals."""
    child = os.fork()
    if child == 0:
        log = os.open(f"{output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            command(output, lora=lora, kill=kill, **changes)
        except BaseException:  # noqa: BLE001 - a forked child must never return into the driver
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + kill["seconds"] if "seconds" in kill else None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.0002)


def digest_of_weights(output: Path) -> str:
    return hashlib.sha256(next(output.glob("*model.safetensors")).read_bytes()).hexdigest()


def drive(work: Path, scenarios: list[dict]) -> None:
    results = []
    for number, scenario in enumerate(scenarios):
        output, changes = work / f"run-{number}", scenario.get("changes", {})
        started = time.monotonic()
        status = run_child(output, lora=scenario["lora"], kill=scenario["kill"], **changes)
        result = {"name": scenario["name"], "first": status, "seconds": time.monotonic() - started}
        if scenario["kill"]:
            result["second"] = run_child(output, lora=scenario["lora"], kill={}, **changes)
            result["resumed"] = Path(f"{output}.resumed").read_text()
        ok = result.get("second", status) == 0
        result["weights"] = digest_of_weights(output) if ok else Path(f"{output}.log").read_text()[-3000:]
        result["left"] = sorted(path.name for path in output.iterdir())
        results.append(result)
    (work / "results.json").write_text(json.dumps(results, indent=1))


def run_driver(work: Path, scenarios: list[dict]) -> dict[str, dict]:
    """Run the scenarios in a child process, and return its results by scenario."""
    launching.join(launching.fork(drive, work, scenarios, log=work / "log"), work / "log")
    return {result["name"]: result for result in json.loads((work / "results.json").read_text())}


# --- killed, resumed, the same bytes ---


def killed_runs(work: Path, kills: dict[str, tuple[bool, dict]], changes: dict) -> None:
    scenarios = [
        {"name": f"reference-{lora}", "lora": lora, "kill": {}}
        for lora in {lora for lora, _ in kills.values()}
    ]
    scenarios += [{"name": name, "lora": lora, "kill": kill} for name, (lora, kill) in kills.items()]
    results = run_driver(work, [scenario | {"changes": changes} for scenario in scenarios])
    for name, (lora, kill) in kills.items():
        result, reference = results[name], results[f"reference-{lora}"]
        # on a fast machine a run may end before its time is up
        assert result["first"] in ([-signal.SIGKILL, 0] if "seconds" in kill else [-signal.SIGKILL]), name
        assert result["second"] == 0, result["weights"]
        assert result["weights"] == reference["weights"], f"{name}, resumed from {result['resumed']}, differs"
        assert result["left"] == reference["left"], f"{name} left other files"


def test_killed_runs_resume_to_the_same_bytes(tmp_path):
    """In mid-save, and while an old checkpoint is deleted; every other instant is in the sweep below.

    The last of them has trained all its steps: it must not take another one.
    """
    killed_runs(
        tmp_path,
        {
            "in-mid-save": (False, {"path": "checkpoint-8/optimizer.pt"}),
            "rotating": (False, {"audit": "shutil.rmtree"}),
        },
        {"max_steps": 10, "lr_scheduler_type": "constant"},
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_runs_resume_to_the_same_bytes_sweep(tmp_path):
    """Every kind of instant, over three epochs and at their boundaries; the last four at any instant.

    Full weights and adapters take turns, and both meet each kind of instant.
    """
    kills = [{"step_end": step} for step in (1, 3, 7, 9, 14, 15, 20)]
    kills += [{"before_manifest": step} for step in (4, 12, 20)]
    kills += [
        {"path": f"checkpoint-8/{name}"} for name in ("scheduler.pt", "rng_state.pth", "trainer_state.json")
    ]
    kills += [{"path": "checkpoint-4/training_args.bin"}, {"path": "checkpoint-16/seal.json"}]
    kills += [{"path": "checkpoint-21/seal.json"}, {"audit": "os.rename", "nth": 2}, {"audit": "os.remove"}]
    kills += [{"audit": "shutil.rmtree"}, {"audit": "shutil.rmtree", "nth": 4}]  # in mid-run, and at its end
    kills += [{"seconds": seconds / 10} for seconds in (2, 5, 8, 11)]
    killed_runs(tmp_path, {json.dumps(kill): (turn % 2 == 0, kill) for turn, kill in enumerate(kills)}, {})


@pytest.mark.slow
def test_each_hazard_changes_the_weights_and_the_defaults_have_none(tmp_path):
    """Every setting that `resume_hazards` names changes the weights of a resumed run."""
    changes = {
        "evaluation after the save": {"eval_strategy": "epoch", "save_steps": STEPS_PER_EPOCH},
        "order from the global RNG": {"accelerator_config": {"use_seedable_sampler": False}},
        "length groups": {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False},
        "no skipping": {"ignore_data_skip": True},
    }
    scenarios = []
    for name, change in changes.items():
        assert len(resume_hazards(arguments(tmp_path, **change))) == 1
        scenarios.append({"name": f"{name}, whole", "lora": False, "kill": {}, "changes": change})
        scenarios.append({"name": name, "lora": False, "kill": {"step_end": 10}, "changes": change})
    results = run_driver(tmp_path, scenarios)
    for name in changes:
        assert results[name]["second"] == 0
        assert results[name]["weights"] != results[f"{name}, whole"]["weights"]


def arguments(folder: Path, **changes):
    from transformers import TrainingArguments

    return TrainingArguments(str(folder), use_cpu=True, report_to="none", save_total_limit=None, **changes)


def rank(output: Path, kill: dict) -> None:
    """Run one of the processes of a launcher in a child of the fork server."""
    command(output, lora=False, kill=kill)


def ranks(output: Path, kill: dict, processes: int = 2) -> list[tuple[int, str]]:
    """Run the command on several ranks, and return the exit code and the output of each."""
    logs = [output.parent / f"{output.name}-{number}.log" for number in range(processes)]
    launch = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": launching.free_port()}
    started = [
        launching.fork(rank, output, kill, log=log, RANK=str(number), LOCAL_RANK=str(number), **launch)
        for number, log in enumerate(logs)
    ]
    for process in started:
        process.join()
    return [(process.exitcode, log.read_text()) for process, log in zip(started, logs, strict=True)]


@pytest.mark.slow
def test_two_processes_killed_and_resumed(tmp_path):
    """The manifest lists the RNG states of both ranks, and the run resumes after rank 0 was killed.

    Rank 0 is killed under `torchrun`, which ends the other rank; the other runs start as forked ranks.
    """
    for code, printed in ranks(tmp_path / "whole", {}):
        assert code == 0, printed[-3000:]
    variables = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:3])),  # tests/, and the package
    }
    words = [__file__, str(tmp_path / "killed"), json.dumps({"step_end": 6})]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    killed = subprocess.run([*torchrun, *words], env=variables, capture_output=True, check=False)
    assert killed.returncode != 0
    newest = newest_verified(tmp_path / "killed")
    assert newest.name == "checkpoint-4"
    assert {"rng_state_0.pth", "rng_state_1.pth"} < set(
        json.loads((newest / CHECKPOINT_MANIFEST).read_text())["files"]
    )
    [(code, printed)] = ranks(tmp_path / "killed", {}, processes=1)
    assert code != 0
    assert "processes = 2, running with 1" in printed
    for code, printed in ranks(tmp_path / "killed", {}):
        assert code == 0, printed[-3000:]
    assert (tmp_path / "killed.resumed").read_text() == "checkpoint-4"
    assert digest_of_weights(tmp_path / "killed") == digest_of_weights(tmp_path / "whole")
    foreign = ranks(tmp_path / "whole", {"resume": "false"})  # and no rank waits forever
    assert all(code != 0 for code, _ in foreign)
    assert "--output_dir" in foreign[0][1]


def test_hazards(tmp_path):
    assert resume_hazards(arguments(tmp_path)) == []
    assert resume_hazards(arguments(tmp_path, eval_strategy="epoch", save_strategy="epoch")) == []
    assert [problem.where for problem in resume_hazards(arguments(tmp_path, save_only_model=True))] == [
        "--save_only_model"
    ]
    stopping = resume_hazards(arguments(tmp_path), early_stopping=True)
    assert [problem.where for problem in stopping] == ["--restore_callback_states_from_checkpoint"]


# --- every file of a checkpoint, corrupted in turn ---

FILES = {
    "model.safetensors": b"weights" * 40,
    "optimizer.pt": b"moments" * 90,
    "scheduler.pt": b"schedule",
    "rng_state.pth": b"random",
    "trainer_state.json": b"{}",
    "nested/adapter/adapter_config.json": b"{}",
}


def make_checkpoint(folder: Path, *, without: str = "", complete: bool = True) -> Path:
    for name, content in FILES.items():
        if name != without:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    if complete:
        write_manifest(folder)
    return folder


def corrupt(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[:-1])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


@pytest.mark.parametrize("how", ["removed", "cut", "emptied", "flipped"])
@pytest.mark.parametrize("name", [*FILES, CHECKPOINT_MANIFEST])
def test_a_corrupted_checkpoint_is_named_and_skipped(tmp_path, caplog, name, how):
    older = make_checkpoint(tmp_path / "checkpoint-9")
    newer = make_checkpoint(tmp_path / "checkpoint-10")
    corrupt(newer / name, how)
    assert name in "".join(problem.where for problem in verify(newer))
    assert newest_verified(tmp_path) == older  # 9 < 10 as numbers, not as text
    assert f"{newer} is skipped" in caplog.text
    assert resolve_resume("true", tmp_path) == str(older)
    with pytest.raises(TaskHeadsError, match=str(newer)):
        resolve_resume(str(newer), tmp_path)
    corrupt(older / name, how)
    # Corrupted checkpoints alone are no reason to start a new run silently.
    with pytest.raises(TaskHeadsError) as caught:
        resolve_resume("true", tmp_path)
    code = "path-exists" if (name, how) == (CHECKPOINT_MANIFEST, "removed") else "checkpoint-incomplete"
    assert {problem.code for problem in caught.value.problems} == {code}


def test_corrupted_checkpoints_in_a_marked_folder_do_not_start_a_new_run(tmp_path):
    open_output(tmp_path, None)
    corrupt(make_checkpoint(tmp_path / "checkpoint-1") / "optimizer.pt", "cut")
    with pytest.raises(TaskHeadsError, match=r"optimizer\.pt: .*629.*630") as caught:
        open_output(tmp_path, "true")
    assert [problem.code for problem in caught.value.problems] == ["checkpoint-incomplete"]


def test_files_added_after_the_manifest(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint-1")
    (folder / "notes.txt").write_text("a note is not loaded")
    assert verify(folder) == []
    (folder / "adapter_model.safetensors").write_bytes(b"Trainer would load this")
    [problem] = verify(folder)
    assert problem.where == str(folder / "adapter_model.safetensors")
    assert problem.code == "checkpoint-incomplete"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_missing_files_are_named(tmp_path, name):
    folder = make_checkpoint(tmp_path / "checkpoint-1", without=name)
    wanted = "weights" if name == "model.safetensors" else name
    assert [wanted in problem.problem for problem in missing_files(folder)] == [True]
    with pytest.raises(TaskHeadsError, match=wanted):  # with a manifest, but incomplete
        resolve_resume(str(folder), tmp_path)
    only = missing_files(folder, weights_only=True)
    assert bool(only) is (name in ("model.safetensors", "trainer_state.json"))


def test_two_processes_need_two_rng_states(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint-1", complete=False)
    (folder / "rng_state_0.pth").write_bytes(b"random")
    assert [problem.problem for problem in missing_files(folder, processes=2)] == [
        "rng_state_1.pth is missing"
    ]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b'{"format": 1}',
        b'{"format": 2, "processes": 1, "run": {}, "files": {}}',
        b"\xff",
    ],
)
def test_corrupted_manifests(tmp_path, text):
    folder = make_checkpoint(tmp_path / "checkpoint-1")
    (folder / CHECKPOINT_MANIFEST).write_bytes(text)
    assert [(one.where, one.code) for one in verify(folder)] == [
        (str(folder / CHECKPOINT_MANIFEST), "checkpoint-incomplete")
    ]


# --- writes of the manifest that fail ---


def test_full_disk_leaves_no_manifest_and_names_path_and_bytes(tmp_path, monkeypatch):
    """If any fsync or rename fails, no manifest and no temporary file is left, and the older one verifies."""
    older = make_checkpoint(tmp_path / "checkpoint-1")
    real = {"fsync": os.fsync, "replace": os.replace}
    calls, failing = [0], [1]

    def fail(name):
        def call(*arguments):
            calls[0] += 1
            if calls[0] == failing[0]:
                raise OSError(28, os.strerror(28))
            return real[name](*arguments)

        return call

    for name in real:
        monkeypatch.setattr(os, name, fail(name))
    messages = []
    while True:
        newer = make_checkpoint(tmp_path / f"checkpoint-{failing[0] + 1}", complete=False)
        calls[0] = 0
        try:
            write_manifest(newer)
        except TaskHeadsError as error:
            messages.append(str(error))
            code = error.problems[0].code
            assert not (newer / f"{CHECKPOINT_MANIFEST}.tmp").exists()
            assert verify(older) == []
            assert str(newer) in messages[-1]
            assert "No space left on device" in messages[-1]
            assert code == "disk-full"
            failing[0] += 1
        else:
            break
    assert len(messages) == len(FILES) + 4  # files, manifest, rename, its folder, the parent folder
    assert sum("bytes wanted" in message for message in messages) == 4
    assert all(
        verify(folder) == [] for folder in tmp_path.iterdir() if (folder / CHECKPOINT_MANIFEST).exists()
    )


# --- which checkpoint, which folder ---


@pytest.mark.parametrize("value", [None, False, "false", "False", "none", ""])
def test_no_resume(tmp_path, value):
    make_checkpoint(tmp_path / "checkpoint-1")
    assert resolve_resume(value, tmp_path) is None


@pytest.mark.parametrize("value", [True, "true", "True", "auto"])
def test_resume_from_the_newest(tmp_path, value):
    make_checkpoint(tmp_path / "checkpoint-1")
    newest = make_checkpoint(tmp_path / "checkpoint-2")
    make_checkpoint(tmp_path / "checkpoint-3", complete=False)
    assert resolve_resume(value, tmp_path) == str(newest)
    assert resolve_resume(str(tmp_path / "checkpoint-1"), tmp_path) == str(tmp_path / "checkpoint-1")


def test_resume_in_an_empty_folder_starts_a_new_run_and_logs_it(tmp_path, caplog):
    assert resolve_resume("true", tmp_path / "new") is None
    assert "starts from the beginning" in caplog.text


def test_another_command_does_not_resume(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint-1", complete=False)
    write_manifest(folder, processes=1, run={"seed": 1, "data": "a", "gone": 1})
    assert resolve_resume("true", tmp_path, run={"seed": 1, "data": "a", "new": 2}) == str(folder)
    with pytest.raises(TaskHeadsError, match=r"data = 'a', running with 'b'(.|\n)*seed = 1") as caught:
        resolve_resume("true", tmp_path, run={"seed": 2, "data": "b"})
    assert [(problem.where, problem.code) for problem in caught.value.problems] == [
        (f"{folder}/{CHECKPOINT_MANIFEST}", "checkpoint-foreign")
    ] * 2
    with pytest.raises(TaskHeadsError, match="processes = 1, running with 2"):
        resolve_resume("true", tmp_path, processes=2)


def test_foreign_output_is_refused_and_not_changed(tmp_path):
    output = tmp_path / "out"
    assert open_output(output, None) is None  # new: marked
    (output / "checkpoint-3").mkdir()  # a run killed in its first save
    (output / "checkpoint-3" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(TaskHeadsError, match=r"checkpoint-3.*--resume_from_checkpoint true") as caught:
        open_output(output, None)
    assert [(one.where, one.code) for one in caught.value.problems] == [(str(output), "path-exists")]
    assert open_output(output, "true") is None  # only an incomplete checkpoint: a new run
    (output / "model.safetensors").write_bytes(b"a finished model")
    with pytest.raises(TaskHeadsError, match=r"model\.safetensors") as caught:
        open_output(output, "true")
    assert [(one.where, one.code) for one in caught.value.problems] == [(str(output), "path-exists")]
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("years of work")
    for resume in (None, "false", "true", str(make_checkpoint(tmp_path / "checkpoint-1"))):
        with pytest.raises(TaskHeadsError, match=r"chapter1\.tex"):
            open_output(foreign, resume)
    assert [path.name for path in foreign.iterdir()] == ["chapter1.tex"]
    with pytest.raises(TaskHeadsError) as caught:
        refuse_foreign_output(foreign / "chapter1.tex", None)
    assert [one.code for one in caught.value.problems] == ["path-exists"]


def test_resuming_from_an_older_checkpoint_renames_the_newer(tmp_path):
    from transformers import TrainerControl, TrainerState

    open_output(tmp_path, None)
    for step in (1, 2, 3):
        make_checkpoint(tmp_path / f"checkpoint-{step}", complete=step < 3)
    state = TrainerState(global_step=1)
    VerifiedCheckpointCallback().on_train_begin(arguments(tmp_path), state, TrainerControl())
    left = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert left == ["abandoned-checkpoint-2", "checkpoint-1"]  # the incomplete third is deleted
    assert verify(tmp_path / "abandoned-checkpoint-2") == []


def test_incomplete_checkpoints_in_an_unmarked_folder_are_kept(tmp_path):
    from transformers import TrainerControl, TrainerState

    make_checkpoint(tmp_path / "checkpoint-5", complete=False)
    VerifiedCheckpointCallback().on_train_begin(arguments(tmp_path), TrainerState(), TrainerControl())
    assert len(list((tmp_path / "checkpoint-5").iterdir())) == len(FILES)


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    from transformers import TrainerControl, TrainerState

    callback = VerifiedCheckpointCallback(2)
    for step in range(1, 6):
        make_checkpoint(tmp_path / f"checkpoint-{step}", complete=False)
        state = TrainerState(global_step=step, best_model_checkpoint=str(tmp_path / "checkpoint-2"))
        callback.on_save(arguments(tmp_path), state, TrainerControl())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-5",
    ]


def test_an_incomplete_checkpoint_gets_no_manifest_and_deletes_nothing(tmp_path):
    from transformers import TrainerControl, TrainerState

    make_checkpoint(tmp_path / "checkpoint-1")
    make_checkpoint(tmp_path / "checkpoint-2", without="optimizer.pt", complete=False)
    with pytest.raises(TaskHeadsError, match=r"checkpoint-2: optimizer.pt is missing"):
        VerifiedCheckpointCallback(1).on_save(
            arguments(tmp_path), TrainerState(global_step=2), TrainerControl()
        )
    assert newest_verified(tmp_path) == tmp_path / "checkpoint-1"


def test_save_total_limit_of_trainer_is_refused(tmp_path):
    from transformers import TrainerControl, TrainerState

    settings = arguments(tmp_path)
    settings.save_total_limit = 2
    with pytest.raises(TaskHeadsError) as caught:
        VerifiedCheckpointCallback().on_train_begin(settings, TrainerState(), TrainerControl())
    assert [(one.where, one.code) for one in caught.value.problems] == [
        ("TrainingArguments.save_total_limit", "option-unsupported")
    ]
    with pytest.raises(TaskHeadsError) as caught:
        VerifiedCheckpointCallback(0)
    assert [(one.where, one.code) for one in caught.value.problems] == [("save_total_limit", "option-range")]


if __name__ == "__main__":
    command(Path(sys.argv[1]), lora=False, kill=json.loads(sys.argv[2]))
