"""Options held against what transformers makes of them, and remedies that it takes."""

from __future__ import annotations

import json
import re
import shlex
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EvalPrediction, TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.metrics.classification import BEST_METRIC, DEV_METRICS
from qwen_task_heads.metrics.questions import dev_metrics_of
from qwen_task_heads.training.classifier_arguments import ClassifierConfig, parse_classifier_arguments
from qwen_task_heads.training.grpo_arguments import parse_title_generator_arguments
from qwen_task_heads.training.option_checks import (
    direction_problems,
    metric_problems,
    option_problems,
    prefers_less,
    saving_problems,
    scheduler_problems,
)
from qwen_task_heads.training.sft_arguments import SftClassifyConfig, parse_sft_arguments
from qwen_task_heads.training.title_arguments import TitleConfig, parse_title_arguments

CPU = ["--output_dir", "x", "--use_cpu", "true"]
PARSERS = [parse_title_arguments, parse_sft_arguments, parse_classifier_arguments]


def parsed(parse: Any, words: list[str]) -> Any:
    """Return the training options of a single-label run, after the data are read."""
    _, args, _ = parse(words)
    if parse is parse_classifier_arguments:
        args.choose_metric("single_label_classification")
    return args


def arguments(**options: Any) -> TrainingArguments:
    return TrainingArguments("x", use_cpu=True, **options)


def fixed(problem: Problem) -> dict[str, Any]:
    """Return the options that a fix names."""
    words = shlex.split(re.search(r"(?:give|add) (--.*?)(?:, |$)", problem.fix)[1])  # type: ignore[index]
    values = [json.loads(word) if word.startswith("{") else word for word in words[1::2]]
    return dict(zip((word[2:] for word in words[::2]), values, strict=True))


# --- metrics ---


@pytest.mark.parametrize("prefix", ["", "eval_"])
@pytest.mark.parametrize("parse", PARSERS)
def test_only_metrics_of_the_evaluation_are_accepted(parse: Any, prefix: str) -> None:
    for metric in ("accuracy", "loss"):
        args = parsed(parse, [*CPU, "--metric_for_best_model", prefix + metric])
        assert args.metric_for_best_model == prefix + metric
    with pytest.raises(TaskHeadsError) as refused:
        parsed(parse, [*CPU, "--metric_for_best_model", prefix + "f1"])
    [problem] = refused.value.problems
    assert problem.where == "--metric_for_best_model"
    assert "accuracy" in problem.expected


@pytest.mark.parametrize("problem_type", DEV_METRICS)
def test_a_classifiers_metrics_are_those_of_its_problem_type(problem_type: str) -> None:
    for name in (*DEV_METRICS[problem_type], "loss"):
        args = ClassifierConfig("x", use_cpu=True, metric_for_best_model=name)
        args.choose_metric(problem_type)
        assert args.greater_is_better is (name not in ("loss", "mse", "mae")), name
    args = ClassifierConfig("x", use_cpu=True)
    args.choose_metric(problem_type)
    assert (args.metric_for_best_model, args.greater_is_better) == BEST_METRIC[problem_type]
    foreign = {name for names in DEV_METRICS.values() for name in names} - set(DEV_METRICS[problem_type])
    for name in foreign:
        args = ClassifierConfig("x", use_cpu=True, metric_for_best_model=name)
        with pytest.raises(TaskHeadsError, match="--metric_for_best_model"):
            args.choose_metric(problem_type)


def test_a_given_problem_type_determines_the_metrics_before_the_data() -> None:
    words = [*CPU, "--problem_type", "regression", "--token_dropout", "2", "--metric_for_best_model"]
    with pytest.raises(TaskHeadsError) as refused:
        parse_classifier_arguments([*words, "accuracy"])
    assert {problem.where for problem in refused.value.problems} == {
        "--metric_for_best_model",
        "--token_dropout",
    }
    [problem] = [one for one in refused.value.problems if "metric" in one.where]
    assert "spearman" in problem.expected


def test_the_metrics_of_a_classifier_are_those_it_computes() -> None:
    for problem_type, names in DEV_METRICS.items():
        width = 1 if problem_type in ("regression", "questions") else 2
        truth = {"multi_label_classification": np.eye(2), "regression": np.arange(2.0)}
        labels = truth.get(problem_type, np.arange(2))
        questions = [{"name": "refund", "type": "noul"}]
        compute = dev_metrics_of(problem_type, questions if problem_type == "questions" else ())
        found = compute(EvalPrediction(np.random.rand(2, width), labels))
        assert tuple(found) == names


def test_less_is_better_for_errors() -> None:
    names = ("accuracy", "eval_mse", "mae", "loss", "eval_x_loss", "map")
    assert [*filter(prefers_less, names)] == ["eval_mse", "mae", "loss", "eval_x_loss"]
    assert TitleConfig("x", use_cpu=True, metric_for_best_model="loss").greater_is_better is False
    # what is given counts
    args = SftClassifyConfig("x", use_cpu=True, metric_for_best_model="entropy", greater_is_better=True)
    assert args.greater_is_better is True


def test_a_run_without_an_evaluation_has_no_metric() -> None:
    assert metric_problems(arguments(), ()) == []
    [problem] = metric_problems(arguments(metric_for_best_model="loss"), ())
    assert problem.fix == "drop it"


# --- optimizers ---


@pytest.mark.parametrize("name", [one.value for one in OptimizerNames])
def test_optimizers_run_or_name_what_to_install(name: str) -> None:
    problems = option_problems(arguments(optim=name))
    if name.startswith(("galore", "apollo")) and find_spec(name.split("_")[0] + "_torch"):
        [problem] = problems
        assert problem.where == "--optim_target_modules"
        return
    if not problems:
        return
    [problem] = problems
    assert problem.where == "--optim"
    assert name in problem.problem
    known = ("adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision")  # not on the package index
    assert ("pip install " in problem.fix) is (name not in known)
    assert not re.search(r"pip install \S*\.[, ]", problem.fix)
    assert option_problems(arguments(**fixed(problem))) == []


@pytest.mark.parametrize(
    "name", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"]
)
def test_optimizers_of_torch_and_transformers_run(name: str) -> None:
    assert option_problems(arguments(optim=name)) == []


@pytest.mark.parametrize(
    "options",
    [{"adam_beta1": 2.0}, {"adam_beta2": -0.5}, {"adam_epsilon": -1.0}, {"learning_rate": -1.0}],
    ids=str,
)
def test_a_number_that_no_optimizer_accepts_is_named(options: dict[str, float]) -> None:
    [problem] = option_problems(arguments(**options))
    assert [problem.where] == [f"--{name}" for name in options]
    assert problem.fix == "drop it"


def test_trying_an_optimizer_keeps_the_random_state() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    option_problems(arguments())
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize(
    ("options", "named", "remedy"),
    [
        ({"optim": "sgd", "optim_args": "momentum"}, "momentum", "drop"),
        ({"optim": "sgd", "optim_args": "momentum=high"}, "high", "drop"),
        ({"optim": "sgd", "optim_args": "nesterov=true"}, "nesterov", "drop"),
        ({"optim": "sgd", "optim_args": "momentum=0.9,foo=3"}, "foo", "momentum=0.9"),
        ({"optim": "adamw_torch", "optim_args": "momentum=0.9"}, "momentum", "drop"),
    ],
    ids=str,
)
def test_arguments_of_an_optimizer_are_those_that_it_reads(
    options: dict[str, str], named: str, remedy: str
) -> None:
    [problem] = option_problems(arguments(**options))
    assert problem.where == "--optim_args"
    assert named in problem.problem
    assert remedy in problem.fix
    again = fixed(problem) if "give" in problem.fix else {}
    assert option_problems(arguments(optim=options["optim"], **again)) == []


@pytest.mark.parametrize(
    "given", ["momentum=0.9", "momentum=0", "momentum=0.9, nesterov=true", "dampening=0.1"]
)
def test_arguments_that_are_read_are_accepted(given: str) -> None:
    assert option_problems(arguments(optim="sgd", optim_args=given)) == []


def test_target_modules_require_an_optimizer_that_reads_them() -> None:
    [problem] = option_problems(arguments(optim_target_modules="all-linear"))
    assert problem.where == "--optim_target_modules"


# --- schedules ---


@pytest.mark.parametrize("name", [one.value for one in SchedulerType])
def test_schedules_run_or_name_the_arguments_that_they_need(name: str) -> None:
    options = {"lr_scheduler_type": name, "eval_strategy": "epoch"}
    problems = scheduler_problems(arguments(**options))
    assert bool(problems) is (
        name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay")
    )
    for problem in problems:
        assert problem.where == "--lr_scheduler_kwargs"
        assert scheduler_problems(arguments(**options, **fixed(problem))) == []
    [problem] = [
        one
        for one in scheduler_problems(arguments(**options, lr_scheduler_kwargs={"foo": 1}))
        if "foo, which" in one.problem
    ]
    again = fixed(problem) if "give" in problem.fix else {}
    assert scheduler_problems(arguments(**options, **again)) == []


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("cosine", {"num_cycles": "x"}),
        ("cosine_with_min_lr", {"min_lr": 1e-6, "min_lr_rate": 0.1}),
        ("inverse_sqrt", {"timescale": 0}),
        ("polynomial", {"lr_end": 3.0}),
        ("warmup_stable_decay", {"num_decay_steps": 3, "decay_type": "steep"}),
        ("reduce_lr_on_plateau", {"factor": 3}),
    ],
    ids=str,
)
def test_values_that_a_schedule_cannot_follow_are_refused(name: str, given: dict[str, Any]) -> None:
    options = {"lr_scheduler_type": name, "eval_strategy": "epoch"}
    [problem] = scheduler_problems(arguments(**options, lr_scheduler_kwargs=given))
    again = fixed(problem) if "give" in problem.fix else {}
    assert scheduler_problems(arguments(**options, **again)) == []


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("cosine", {"num_cycles": 2}),
        ("polynomial", {"power": 2, "lr_end": 0}),
        ("cosine_with_min_lr", {"min_lr": 1e-6}),
        ("reduce_lr_on_plateau", {"patience": 2}),
        ("warmup_stable_decay", {"num_decay_steps": 3, "decay_type": "linear"}),
    ],
    ids=str,
)
def test_arguments_of_schedules_are_accepted(name: str, given: dict[str, Any]) -> None:
    options = {"lr_scheduler_type": name, "eval_strategy": "epoch"}
    assert scheduler_problems(arguments(**options, lr_scheduler_kwargs=given)) == []


def test_arguments_that_are_not_a_mapping_are_refused() -> None:
    [problem] = scheduler_problems(arguments(lr_scheduler_kwargs="min_lr=3"))
    assert "JSON" in problem.expected


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_follows_its_metric_in_the_right_direction(name: str) -> None:
    words = [*CPU, "--lr_scheduler_type", name]
    for parse in PARSERS:
        with pytest.raises(TaskHeadsError) as refused:
            parsed(parse, words)
        [problem] = refused.value.problems
        given = json.dumps(fixed(problem)["lr_scheduler_kwargs"])
        for more in (["--lr_scheduler_kwargs", given], ["--metric_for_best_model", "loss"]):
            assert direction_problems(parsed(parse, [*words, *more])) == []
    wrong = {"lr_scheduler_type": name, "eval_strategy": "epoch", "lr_scheduler_kwargs": {"mode": "max"}}
    [problem] = direction_problems(arguments(**wrong))  # the loss
    assert direction_problems(arguments(**{**wrong, **fixed(problem)})) == []


# --- saving, trackers, the writer ---


@pytest.mark.parametrize(
    "options", [{"save_total_limit": 0}, {"save_strategy": "best", "eval_strategy": "no"}], ids=str
)
def test_options_that_save_nothing_are_refused(options: dict[str, Any]) -> None:
    [problem] = saving_problems(arguments(**options))
    again = fixed(problem)
    limit = {"save_total_limit": int(again.pop("save_total_limit"))} if "save_total_limit" in again else {}
    assert saving_problems(arguments(**again, **limit)) == []


def test_a_title_generator_has_no_dev_set() -> None:
    words = [
        "--reward_model",
        "m",
        "--dataset_name",
        "d",
        "--model_name_or_path",
        "b",
        *CPU,
        "--bf16",
        "false",
    ]
    assert parse_title_generator_arguments(words)[1].eval_strategy == "no"
    with pytest.raises(TaskHeadsError) as refused:
        parse_title_generator_arguments([
            *words, "--eval_strategy", "steps", "--eval_steps", "5", "--metric_for_best_model", "reward",
            "--save_total_limit", "0", "--length_penalty", "2",
        ])  # fmt: skip
    assert [problem.where for problem in refused.value.problems] == [
        "--eval_strategy",
        "--metric_for_best_model",
        "--save_total_limit",
        "--length_penalty",
    ]
