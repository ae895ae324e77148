"""Arguments: what is given wins over the file, the file over the defaults, and nothing unknown passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import TrainerState
from transformers.trainer_utils import IntervalStrategy

from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.tokenization.templates import Template
from qwen_task_heads.training.arguments import HeadModelConfig, run_identity
from qwen_task_heads.training.classifier_arguments import parse_classifier_arguments
from qwen_task_heads.training.grpo_arguments import parse_title_generator_arguments
from qwen_task_heads.training.head_sweep import Combination
from qwen_task_heads.training.sft_arguments import parse_sft_arguments
from qwen_task_heads.training.sweep_arguments import parse_sweep_arguments
from qwen_task_heads.training.sweep_commands import warm_start_command
from qwen_task_heads.training.title_arguments import TitleArguments, TitleConfig, parse_title_arguments

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"
PRESETS = ("quick_start_embedded", "ad_titles_7b", "recommended_7b_16gb", "soft_clicks")
CPU = ["--use_cpu", "true"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_parses_to_its_values(preset, tmp_path):
    path = CONFIGS / f"{preset}.yaml"
    words = ["--config", str(path), "--output_dir", str(tmp_path / "run"), *CPU, "--bf16", "false"]
    parsed = {}
    for group in parse_title_arguments(words):
        parsed.update(vars(group))
    for name, value in yaml.safe_load(path.read_text()).items():
        # trl turns a list of one target into its item
        alike = (value, value[0]) if isinstance(value, list) else (value,)
        assert parsed[name] in alike, name
    assert not (tmp_path / "run").exists()


def test_the_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 3\npooling: mean\nlearning_rate: 5e-5\nhead_sizes: [8, 4]\n")
    titles, training, _ = parse_title_arguments(
        ["--config", str(file), "--output_dir", "x", "--pooling", "max", *CPU]
    )
    assert (titles.pooling, training.seed, training.learning_rate) == ("max", 3, 5e-5)
    assert titles.head_options() == {"pooling": "max", "head_sizes": [8, 4]}


def test_defaults_run_on_a_machine_without_a_gpu(tmp_path):
    titles, training, model = parse_title_arguments(["--output_dir", str(tmp_path), *CPU])
    assert (training.bf16, training.activation_checkpointing) == (False, False)
    assert (model.model_name_or_path, titles.dataset_name) == ("embedded", "embedded")
    assert model.lora_task_type == "SEQ_CLS"
    assert (titles.loss_options(), titles.template()) == ({}, None)
    assert training.load_best_model_at_end
    assert training.metric_for_best_model == "eval_accuracy"


@pytest.mark.parametrize(
    ("given", "template"),
    [
        ({}, None),
        ({"instruction": "Rate: "}, Template(before="Rate: ")),
        ({"between": ""}, Template(between="")),
        ({"boundary": "</s>", "between": " - "}, Template(between=" - ", after="</s>")),
        ({"instruction": ""}, Template()),
    ],
    ids=str,
)
def test_a_template_consists_of_the_given_texts(given, template):
    assert TitleArguments(**given).template() == template


def test_options_of_loss_and_adapter_reach_their_calls():
    assert TitleArguments(loss_margin=0.0, loss_nu=0.3).loss_options() == {"margin": 0.0, "nu": 0.3}
    options = HeadModelConfig(
        use_peft=True,
        lora_r=4,
        lora_alpha=9,
        lora_dropout=0.2,
        use_dora=True,
        use_rslora=True,
        lora_target_modules=["q_proj", "v_proj"],
    ).adapter_options()
    assert options == {
        "r": 4,
        "alpha": 9,
        "dropout": 0.2,
        "dora": True,
        "rslora": True,
        "targets": ["q_proj", "v_proj"],
        "modules_to_save": None,
        "task_type": "SEQ_CLS",
        "embeddings": False,
    }
    assert HeadModelConfig(model_revision="main").load_options()["revision"] is None
    assert HeadModelConfig(model_revision="abc").load_options()["revision"] == "abc"
    assert HeadModelConfig(dtype=None).load_options()["dtype"] == "float32"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--output_dir", "x", "--poolin", "mean"], "--poolin.*pooling"),
        (["--output_dir", "x", "--pooling=nope"], "--pooling.*'nope'"),
        (["--output_dir", "x", "--push_to_hub", "true"], "--hub_model_id"),
        (["--output_dir", "x", "--hub_token", "hf_secret"], "--hub_token"),
        (["--output_dir", "x", "--publish_form", "onnx"], "--publish_form"),
        (
            ["--output_dir", "x", "--push_to_hub", "--hub_model_id", "me/x", "--hub_strategy", "checkpoint"],
            "--hub_strategy",
        ),
        (["--output_dir", "x", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--output_dir", "x", "--eval_strategy", "no"], "--eval_strategy"),
        (["--output_dir", "x", "--completely-else", "1"], "--completely-else"),
    ],
)
def test_unusable_options_are_refused_by_name(words, named):
    with pytest.raises(TaskHeadsError, match=named):
        parse_title_arguments([*words, *CPU])


def test_wrong_choices_are_in_one_error():
    words = ["--output_dir", "x", "--pooling", "a", "--head", "b", "--loss", "c", *CPU]
    with pytest.raises(TaskHeadsError) as caught:
        parse_title_arguments(words)
    assert [problem.where for problem in caught.value.problems] == ["--pooling", "--head", "--loss"]


def identity(folder, **changes):
    words = {"output_dir": folder, "use_cpu": "true"} | changes
    argv = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    return run_identity(*parse_title_arguments(argv))


def test_the_identity_of_a_run_covers_all_options_that_change_its_weights(tmp_path):
    same = identity(tmp_path)
    assert all(value is None or isinstance(value, str | int | float | bool) for value in same.values())
    assert json.loads(json.dumps(same)) == same
    assert " at 0x" not in str(same)  # an address would differ in the next process
    for change in (
        {"seed": 9}, {"learning_rate": 0.5}, {"dataset_name": "x"}, {"pooling": "max"}, {"loss_margin": 1.0},
        {"lora_r": 3, "use_peft": "true"}, {"max_length": 9}, {"per_device_train_batch_size": 3},
        {"head_dropout": 0.5}, {"head_sizes": 8}, {"boundary": "x"}, {"between": "x"},
        {"lora_target_modules": "q_proj", "use_peft": "true"},
        # the learning rate falls towards the end of the run
        {"max_steps": 5}, {"num_train_epochs": 4}, {"warmup_steps": 3}, {"adam_beta2": 0.95},
        {"adam_epsilon": 1e-6}, {"max_grad_norm": 0.5}, {"disable_dropout": "false"}, {"data_seed": 4},
        {"model_revision": "abc"}, {"metric_for_best_model": "eval_loss"},
        {"train_sampling_strategy": "sequential"}, {"neftune_noise_alpha": 5.0},
        {"freeze_backbone": "true"}, {"lora_modules_to_save": "norm", "freeze_backbone": "true"},
        {"load_in_4bit": "true", "use_peft": "true"},
        {"attn_implementation": "eager"}, {"dev_dataset": "x"}, {"min_impressions": 3},
        {"lr_scheduler_kwargs": '{"num_cycles": 2}'},
    ):  # fmt: skip
        assert identity(tmp_path, **change) != same, change


@pytest.mark.parametrize(
    "change",
    [
        {"output_dir": "b"},
        {"logging_steps": 3},
        {"test_dataset": "x"},
        {"save_total_limit": 7},
        {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 5, "save_steps": 5},
        {"resume_from_checkpoint": "true"},
        {"dataloader_num_workers": 1},
        {"num_processes": 1},
        {"push_to_hub": "true", "hub_model_id": "me/x"},
        {"license": "mit"},
        {"run_name": "x"},
        {"disable_tqdm": "true"},
        {"per_device_eval_batch_size": 3},
    ],
    ids=str,
)
def test_options_that_change_no_weight_do_not_prevent_a_resume(tmp_path, change):
    assert identity(tmp_path, **change) == identity(tmp_path)


@pytest.mark.parametrize(
    ("words", "strategy", "steps"),
    [
        ("", "epoch", 500),
        ("--eval_strategy steps --eval_steps 7", "steps", 7),
        ("--eval_strategy steps --logging_steps 6", "steps", 6),
        ("--eval_strategy steps", "steps", 0.1),
        ("--eval_strategy steps --eval_steps 0.1", "steps", 0.1),
        ("--eval_strategy steps --eval_steps 7 --save_steps 14", "steps", 14),
        ("--eval_strategy steps --eval_steps 7 --save_strategy best", "best", 500),
        ("--eval_strategy no --load_best_model_at_end false", "epoch", 500),
        ("--save_strategy steps --save_steps 3 --load_best_model_at_end false", "steps", 3),
    ],
)
@pytest.mark.parametrize("parse", [parse_title_arguments, parse_classifier_arguments])
def test_checkpoints_are_saved_when_dev_is_evaluated(parse, words, strategy, steps):
    _, training, _ = parse([*words.split(), "--output_dir", "x", "--dataset_name", "y", *CPU])
    assert (training.save_strategy, training.save_steps) == (strategy, steps)


@pytest.mark.parametrize("parse", [parse_title_arguments, parse_classifier_arguments, parse_sft_arguments])
@pytest.mark.parametrize("steps", [1, 3, 20, 40, 41, 100, 999, 20_000])
def test_logged_losses_follow_the_length_of_the_run(parse, steps):
    _, training, _ = parse(["--output_dir", "x", "--dataset_name", "y", *CPU])
    state = TrainerState()
    state.compute_steps(training, steps)
    points = steps // state.logging_steps
    assert points == steps if steps <= 40 else 20 <= points <= 50
    _, training, _ = parse(["--output_dir", "x", "--dataset_name", "y", "--logging_steps", "7", *CPU])
    assert training.logging_steps == 7


@pytest.mark.parametrize(
    ("words", "where", "found"),
    [
        ("--eval_strategy no", "--eval_strategy", "'no'"),
        ("--save_strategy no", "--save_strategy", "'no' with --eval_strategy epoch"),
        (
            "--eval_strategy steps --save_strategy epoch",
            "--save_strategy",
            "'epoch' with --eval_strategy steps",
        ),
        ("--eval_strategy steps --eval_steps 7 --save_steps 10", "--save_steps", "found 10 .* 7 steps"),
        ("--eval_strategy steps --eval_steps 0.1 --save_steps 10", "--save_steps", "found 10 .* 0.1 steps"),
    ],
)
def test_a_best_checkpoint_that_cannot_be_saved_is_refused(words, where, found):
    with pytest.raises(TaskHeadsError, match=found) as caught:
        parse_classifier_arguments([*words.split(), "--output_dir", "x", "--dataset_name", "y", *CPU])
    [problem] = caught.value.problems
    assert (problem.where, problem.code) == (where, "option-conflict")
    assert problem.fix.endswith("--load_best_model_at_end false")


def test_strategies_may_be_members_of_their_enum():
    with pytest.raises(TaskHeadsError, match="--eval_strategy"):
        TitleConfig("x", use_cpu=True, eval_strategy=IntervalStrategy.NO)
    assert TitleConfig("x", use_cpu=True, eval_strategy=IntervalStrategy.EPOCH).save_strategy == "epoch"


@pytest.mark.parametrize("name", ["eval_strategy", "save_strategy"])
def test_an_unknown_strategy_names_the_known_ones(name):
    with pytest.raises(TaskHeadsError, match="'no', 'steps', 'epoch'"):
        parse_classifier_arguments([f"--{name}", "sometimes", "--output_dir", "x", *CPU])


@pytest.mark.parametrize("form", ["--config={}", "--config {}"])
def test_a_config_may_be_joined_by_an_equals_sign(tmp_path, form):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 3\n")
    _, training, _ = parse_title_arguments([*form.format(file).split(" "), "--output_dir", "x", *CPU])
    assert training.seed == 3
    file.write_text("sead: 3\n")
    with pytest.raises(TaskHeadsError, match="seed"):
        parse_title_arguments([*form.format(file).split(" "), "--output_dir", "x", *CPU])


def test_bf16_is_on_only_on_gpus(monkeypatch):
    assert TitleConfig("x", use_cpu=True).bf16 is False
    assert TitleConfig("x", use_cpu=True, bf16=False).bf16 is False


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--use_dora"], "--use_dora"),
        (["--trust_remote_code", "true"], "--trust_remote_code"),
        (["--use_rslora"], "--use_rslora"),
        (["--freeze_backbone", "--use_peft"], "--freeze_backbone"),
        (["--lora_r", "64"], "--lora_r: found 64"),
        (["--lora_target_modules", "q_proj", "v_proj"], "--lora_target_modules"),
        (["--use_peft", "--lora_target_parameters", "a.weight"], "--lora_target_parameters"),
        (["--dataloader_drop_last", "true"], "--dataloader_drop_last"),
        (["--prediction_loss_only", "true"], "--prediction_loss_only"),
        (["--batch_eval_metrics", "true"], "--batch_eval_metrics"),
        (["--eval_do_concat_batches", "false"], "--eval_do_concat_batches"),
        (["--max_steps", "0"], "--max_steps"),
        (["--num_train_epochs", "0"], "--num_train_epochs"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps"),
    ],
)
def test_options_that_would_be_ignored_or_train_nothing_are_refused(words: list[str], named: str) -> None:
    with pytest.raises(TaskHeadsError, match=named):
        parse_title_arguments(["--output_dir", "runs/x", "--use_cpu", "true", *words])


@pytest.mark.parametrize("weights", ["balanced", "[1, 2.5]", "[balanced]", "2"])
def test_weights_of_a_config_may_be_a_word_a_number_or_a_list(tmp_path, weights):
    file = tmp_path / "run.yaml"
    file.write_text(f"class_weights: {weights}\ndataset_name: x.jsonl\n")
    texts, *_ = parse_classifier_arguments(["--config", str(file), "--output_dir", "x", *CPU])
    wanted = {"[1, 2.5]": [1.0, 2.5], "2": [2.0]}.get(weights, "balanced")
    given = texts.class_weights
    assert (given[0] if given == ["balanced"] else [float(value) for value in given]) == wanted


@pytest.mark.parametrize("patience", ["0", "-1"])
def test_a_patience_below_one_is_refused(patience):
    words = ["--output_dir", "x", "--dataset_name", "x.jsonl", "--early_stopping_patience", patience, *CPU]
    with pytest.raises(TaskHeadsError, match=patience) as caught:
        parse_classifier_arguments(words)
    [problem] = caught.value.problems
    assert (problem.where, problem.code) == ("--early_stopping_patience", "option-range")


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ([], 2e-3),
        (["--freeze_backbone", "true"], 1e-2),
        (["--model_name_or_path", "me/base"], 5e-5),
        (["--model_name_or_path", "me/base", "--use_peft", "true"], 2e-4),
        (["--model_name_or_path", "me/base", "--learning_rate", "3e-4"], 3e-4),
    ],
)
def test_the_learning_rate_of_a_classifier_depends_on_the_trained_weights(words, rate, tmp_path):
    from qwen_task_heads.training.classifier_arguments import parse_classifier_arguments

    words = ["--dataset_name", "x.jsonl", "--output_dir", str(tmp_path), *CPU, *words]
    assert parse_classifier_arguments(words)[1].learning_rate == rate


def test_a_refused_token_is_not_printed():
    with pytest.raises(TaskHeadsError) as refused:
        parse_title_arguments(["--output_dir", "x", "--hub_token", "hf_secret"])
    assert "hf_secret" not in str(refused.value)


TYPED = {r"Rate:\n": "Rate:\n", r"a\tb": "a\tb", r"\\n": r"\n", r"\d\\": "\\d\\", "real\n": "real\n"}


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("typed", TYPED)
@pytest.mark.parametrize("parse", [parse_title_arguments, parse_classifier_arguments, parse_sweep_arguments])
def test_escaped_line_breaks_of_a_shell_are_unescaped(parse, typed, joined):
    words = ["--output_dir", r"runs\new", *CPU]
    for name in ("instruction", "between", "boundary"):
        words += [f"--{name}={typed}"] if joined else [f"--{name}", typed]
    task, training, model = parse(words)
    meant = TYPED[typed]
    assert (task.instruction, task.between, task.boundary) == (meant,) * 3
    assert training.output_dir == r"runs\new"
    if parse is parse_sweep_arguments:  # the command that is printed reads back as what was meant
        chosen = Combination(layers=(1,), pooling="last", head_sizes=(), loss="cross_entropy")
        printed = warm_start_command(task, training, model, folder="x", chosen=chosen)
        again, *_ = parse_classifier_arguments([*printed[3:], *CPU])
        assert (again.instruction, again.between, again.boundary) == (meant,) * 3


def test_the_instruction_of_a_chat_model_is_unescaped(tmp_path):
    texts, *_ = parse_sft_arguments(["--instruction", r"Sort:\n", "--output_dir", str(tmp_path), *CPU])
    assert texts.instruction == "Sort:\n"
    options = ["--reward_model", "x", "--dataset_name", "y", "--output_dir", str(tmp_path), *CPU]
    writer, *_ = parse_title_generator_arguments(
        [*options, "--instruction", r"Title:\n{text}", "--bf16", "false"]
    )
    assert writer.instruction == "Title:\n{text}"


def test_line_breaks_of_a_config_are_not_changed(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"instruction": "Rate:\n", "between": r"\n", "boundary": r"a\\b"}))
    task, *_ = parse_title_arguments(["--config", str(file), "--output_dir", "x", *CPU])
    assert (task.instruction, task.between, task.boundary) == ("Rate:\n", r"\n", r"a\\b")


def test_options_fitted_on_dev_are_not_in_the_identity_of_a_run(tmp_path):
    argv = ["--output_dir", str(tmp_path), *CPU]
    plain = run_identity(*parse_classifier_arguments(argv))
    other = run_identity(*parse_classifier_arguments([*argv, "--calibrate", "none", "--thresholds", "f1"]))
    assert plain == other
    assert (
        parse_title_arguments(argv)[0].calibrate == parse_sweep_arguments(argv)[0].calibrate == "temperature"
    )
