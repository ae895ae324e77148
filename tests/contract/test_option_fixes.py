"""The fixes that messages name for refused command lines are typed and accepted."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fixes import Words, changes, made
from transformers import AutoModelForCausalLM, GPT2Config

from qwen_task_heads import adapter_config, bind_template, build, load_tokenizer, save
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.losses.registry import resolve_text_loss
from qwen_task_heads.models import saved_task
from qwen_task_heads.training.classifier_arguments import MAX_SEQ_LENGTH, parse_classifier_arguments
from qwen_task_heads.training.grpo_arguments import parse_title_generator_arguments
from qwen_task_heads.training.sft_arguments import parse_sft_arguments
from qwen_task_heads.training.sweep_arguments import parse_sweep_arguments
from qwen_task_heads.training.title_arguments import parse_title_arguments

KIND = "single_label_classification"
CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none"]


def grpo(argv: Words) -> Any:
    return parse_title_generator_arguments(
        ["--reward_model", "runs/titles", "--dataset_name", "x.jsonl", *argv]
    )


def losses(argv: Words) -> Any:
    """Parse like the sweep after the problem type is known."""
    parsed = parse_sweep_arguments(argv)
    parsed[0].losses_for("single_label_classification")
    return parsed


def title_losses(argv: Words) -> Any:
    """Parse like the sweep over titles after it has read pairs."""
    parsed = parse_sweep_arguments(["--task", "titles", *argv])
    parsed[0].losses_for(has_groups=False)
    return parsed


def built(argv: Words) -> Any:
    """Parse and build the model like the recipe; `BASE` in the words is a small backbone."""
    texts, _, model = parse_classifier_arguments(argv)
    repo = str(model.model_name_or_path)
    usual = {} if saved_task(repo) else {"max_seq_length": MAX_SEQ_LENGTH}
    task = {"task": "pooled_classifier", "labels": ["a", "b", "c"], "problem_type": KIND}
    made = build(repo, **task, **usual | texts.head_options(), **model.load_options())
    tokenizer = load_tokenizer("embedded")
    bind_template(tokenizer, made.config, template=texts.template(), pairs=texts.between is not None)
    if model.use_peft or texts.freeze_backbone:
        adapter_config(made, head_only=texts.freeze_backbone, **model.adapter_options())
    return made


def trained(argv: Words) -> Any:
    """Parse and build the loss like the trainer, for data with three labels."""
    texts = parse_classifier_arguments(argv)[0]
    given = {"num_labels": 3, "class_counts": [3, 4, 5], "rows": 12, "labels": ["a", "b", "c"]}
    return resolve_text_loss(texts.loss, problem_type=KIND, options=texts.loss_options(), **given)


TITLES, TEXTS, SFT, SWEEP = (
    parse_title_arguments,
    parse_classifier_arguments,
    parse_sft_arguments,
    parse_sweep_arguments,
)


@dataclass(frozen=True)
class Case:
    """A command line that is refused at a site, and values that only the user knows."""

    site: str
    parse: Callable[[Words], Any]
    words: str
    typed: dict[str, str] = field(default_factory=dict)
    config: str = ""  # content of a file that --config names

    def __str__(self) -> str:
        return f"{self.site.split('::')[-1]} {self.words or self.config}"


def several(site: str, parse: Callable[[Words], Any], *lines: str) -> list[Case]:
    return [Case(site, parse, line) for line in lines]


ARGUMENTS, LINES, CLASSIFIER, PUBLISH, RUN, SFT_CHECK, SWEEP_CHECK = (
    "training/argument_checks.py::",
    "training/command_lines.py::",
    "training/classifier_arguments.py::check_texts::",
    "training/publish_arguments.py::",
    "training/run_defaults.py::RunDefaults._resolve_saving::",
    "training/sft_arguments.py::_check::",
    "training/sweep_checks.py::check_sweep::",
)
PATIENCE = "training/classifier_arguments.py::_patience_problems::where"
OPTION = "f'--{name}'"
HUBCODE = "hubcode/configuration_task_heads.py::"
CONFIG, POOLED = f"{HUBCODE}TaskHeadConfig.", f"{HUBCODE}PooledClassifierConfig._check"
EXIT = "hubcode/early_exit_task_heads.py::"
CASES = [
    Case(f"{ARGUMENTS}not_one_of::option", TITLES, "--pooling avg"),
    Case(f"{ARGUMENTS}head_problems::--pooling", TEXTS, "--pooling avg"),
    Case(f"{ARGUMENTS}head_problems::--head", TEXTS, "--head mlpp"),
    Case(f"{ARGUMENTS}head_problems::--calibrate", TEXTS, "--calibrate temprature"),
    Case(f"{ARGUMENTS}head_problems::--freeze_backbone", TEXTS, "--freeze_backbone true --use_peft"),
    *several(
        f"{ARGUMENTS}lora_problems::{OPTION}", TEXTS, "--use_dora", "--use_rslora", "--lora_embeddings true",
        "--load_in_4bit", "--load_in_8bit",
    ),
    *several(
        f"{ARGUMENTS}lora_problems::{OPTION}#2", TITLES, "--lora_r 8", "--lora_alpha 8",
        "--lora_dropout 0.1",
        "--lora_target_modules q_proj v_proj", "--lora_modules_to_save score lm_head",
    ),
    Case(f"{ARGUMENTS}lora_problems::--lora_target_parameters", TEXTS,
         "--use_peft --lora_target_parameters q",
         {"name modules by --lora_target_modules": "--lora_target_modules q_proj"}),
    *several(
        f"{ARGUMENTS}training_problems::{OPTION}", TEXTS, "--dataloader_drop_last true",
        "--prediction_loss_only true", "--batch_eval_metrics true", "--eval_do_concat_batches false",
    ),
    *several(
        f"{ARGUMENTS}training_problems::{OPTION}#3", SFT, "--per_device_train_batch_size 0",
        "--per_device_eval_batch_size -1", "--gradient_accumulation_steps 0",
    ),
    *several(
        f"{LINES}unusable::where", TEXTS, "--save_strategy sometimes", "--fp16 true --bf16 true",
        "--warmup_steps -1", "--use_peft --load_in_4bit --load_in_8bit",
    ),
    *several(
        f"{LINES}unusable::where", grpo, "--save_strategy sometimes", "--warmup_steps -1",
    ),
    *several(f"{LINES}unknown_option::where", TITLES, "--poolling mean", "--learning-rates 1e-4"),
    Case(f"{LINES}unknown_option::where", grpo, "--poling x"),
    Case(f"{CLASSIFIER}--problem_type", TEXTS, "--problem_type regresion"),
    Case(f"{CLASSIFIER}--truncation", TEXTS, "--truncation middle"),
    Case(f"{CLASSIFIER}--window_aggregation", TEXTS, "--truncation windows --window_aggregation median"),
    *several(f"{CLASSIFIER}{OPTION}", TEXTS, "--class_weights balance", "--pos_weight 1 0 2"),
    *several(f"{CLASSIFIER}--token_dropout", TEXTS, "--token_dropout 1", "--token_dropout -0.1"),
    *several(f"{CLASSIFIER}{OPTION}#2", TEXTS, "--window_overlap 4", "--window_aggregation max"),
    Case(f"{CLASSIFIER}--thresholds", TEXTS, "--thresholds f1 --problem_type ordinal"),
    *several("metrics/thresholds.py::read_rule::--thresholds", TEXTS, "--thresholds f2",
             "--thresholds precision:90"),
    Case(PATIENCE, TEXTS, "--early_stopping_patience 0"),
    Case(f"{PATIENCE}#2", TEXTS,
         "--early_stopping_patience 2 --load_best_model_at_end false"),
    *several(f"{PUBLISH}card_problems::f'{{prefix}}license'", TEXTS, "--license apache2", "--license house"),
    *several(f"{PUBLISH}card_problems::f'{{prefix}}language'", TEXTS, "--language Chinese", "--language zh?"),
    *several(f"{PUBLISH}card_problems::f'{{prefix}}dataset_url'", TEXTS, "--dataset_url example.org/data",
             "--dataset_url file:///data"),
    *several(f"{PUBLISH}card_problems::f'{{prefix}}dataset_id'", TEXTS, "--dataset_id reviews"),
    Case(f"{PUBLISH}publish_problems::--publish_form", TEXTS, "--publish_form onnx"),
    Case(f"{PUBLISH}publish_problems::--hub_token", TEXTS, "--hub_token hf_x"),
    Case(f"{PUBLISH}publish_problems::--hub_model_id", TEXTS, "--hub_model_id me/x"),
    Case(f"{PUBLISH}publish_problems::--hub_model_id#2", TEXTS, "--push_to_hub true"),
    Case(f"{PUBLISH}publish_problems::--hub_strategy", TEXTS,
         "--push_to_hub true --hub_model_id me/x --hub_strategy all_checkpoints"),
    Case(f"{RUN}--eval_strategy", TEXTS, "--eval_strategy no"),
    *several(f"{RUN}--save_strategy", TITLES, "--save_strategy no",
             "--eval_strategy steps --save_strategy epoch"),
    *several(f"{RUN}--save_steps", SFT, "--eval_strategy steps --eval_steps 4 --save_steps 6",
             "--eval_strategy steps --eval_steps 0.1 --save_steps 50"),
    Case(f"{SFT_CHECK}--truncation", SFT, "--truncation windows"),
    Case(f"{SFT_CHECK}--max_length", SFT, "", config="max_length: null"),
    Case(f"{SFT_CHECK}--lora_task_type", SFT, "--use_peft --lora_task_type SEQ_CLS"),
    *several(
        f"{SFT_CHECK}{OPTION}", SFT, "--assistant_only_loss true", "--padding_free true",
        "--dataset_text_field body", "--chat_template_path x.jinja", "--eos_token x",
        "--freeze_embeddings true", "--use_peft --lora_embeddings true",
    ),
    Case(f"{SFT_CHECK}--completion_only_loss", SFT, "--completion_only_loss false"),
    *several(
        f"{SWEEP_CHECK}{OPTION}", SWEEP, "--pooling mean", "--head mlp", "--head linear",
        "--head_sizes 64 32", "--loss focal", "--backbone_layers 2", "--head_layers 1 2",
        "--freeze_backbone true",
        "--init_head runs/x", "--token_dropout 0.1", "--early_stopping_patience 2",
    ),
    *several(f"{SWEEP_CHECK}f'--{{item.name}}'", SWEEP, "--lr_scheduler_type cosine", "--save_steps 5",
             "--fp16 true", "--optim sgd"),
    Case(f"{SWEEP_CHECK}--use_peft", SWEEP, "--use_peft"),
    Case(f"{SWEEP_CHECK}--save_as", SWEEP, "--save_as lora"),
    Case(f"{SWEEP_CHECK}--feature_dtype", SWEEP, "--feature_dtype float16"),
    Case(f"{SWEEP_CHECK}--poolings", SWEEP, "--poolings mean attention"),
    Case(f"{SWEEP_CHECK}--truncation", SWEEP, "--truncation windows"),
    Case(f"{SWEEP_CHECK}--seeds", SWEEP, "", config="seeds: []"),
    *several(f"{SWEEP_CHECK}--num_train_epochs", SWEEP, "--num_train_epochs 0.5", "--num_train_epochs 2.5"),
    *several(f"{ARGUMENTS}training_problems::{OPTION}#2", SWEEP, "--num_train_epochs 0"),
    *several(f"{ARGUMENTS}training_problems::{OPTION}#2", TEXTS, "--max_steps 0"),
    Case(f"{SWEEP_CHECK}--tolerance", SWEEP, "--tolerance -1"),
    *several("training/head_sweep.py::parse_head::--heads", SWEEP, "--heads mlp", "--heads linear:4",
             "--heads linear mlp:0"),
    *several("training/head_sweep.py::parse_layers::--layers", SWEEP, "--layers 0", "--layers 1+",
             "--layers last", "--layers 1 1.5"),
    *several("training/convex_heads.py::penalty_problems::--penalties", SWEEP, "--penalties -1",
             "--penalties 1 nan", "--task titles --penalties inf"),
    Case("training/convex_heads.py::penalty_problems::--penalties", SWEEP, "", config="penalties: []"),
    *several("training/sweep_arguments.py::parse_sweep_arguments::--task", SWEEP, "--task titel",
             "--task classification"),
    Case("training/sweep_arguments.py::parse_sweep_arguments::--task", SWEEP, "", config="task: titel"),
    *several("training/sweep_arguments.py::_choose_losses::--losses", title_losses,
             "--losses bt", "--losses plackett_luce", "--losses bradley_terry all_pairs"),
    *several("losses/registry.py::unused_options::flag", title_losses,
             "--losses bradley_terry --loss_nu 0.3", "--loss_margin 1"),
    Case("training/sweep_arguments.py::_choose_losses::--losses", losses, "--losses bce"),
    Case("losses/registry.py::unused_options::flag", losses,
         "--losses cross_entropy --focal_gamma 2"),
    *several(f"{CONFIG}_check::field", built, "--head_activation tanhh"),
    Case(f"{CONFIG}_check::head_sizes", built, "--head mlp --head_sizes 8 0"),
    Case(f"{CONFIG}_check::head_sizes#2", built, "--head mlp"),
    Case(f"{CONFIG}_check::head_sizes#3", built, "--head_sizes 8"),
    Case(f"{CONFIG}_check::head_dropout", built, "--head_dropout 1"),
    *several(f"{EXIT}cut_layers::backbone_layers", built, "--backbone_layers 9", "--backbone_layers 0"),
    Case(f"{EXIT}_no_early_exit::where", built, "--backbone_layers 1 --model_name_or_path GPT2"),
    *several(f"{EXIT}check_head_layers::head_layers", built, "--head_layers 2 1", "--head_layers 1 9",
             "--head_layers 0"),
    *several(f"{EXIT}check_head_layers::head_layers#2", built, "--head_layers 1 2 --backbone_layers 1",
             "--head_layers 1 --backbone_layers 2"),
    Case(f"{EXIT}_no_early_exit::where", built, "--head_layers 1 2 --model_name_or_path GPT2"),
    *several(f"{POOLED}::max_seq_length#2", built, "--max_seq_length 3"),
    *several(f"{POOLED}::max_seq_length#3", built,
             "--max_seq_length 16 --instruction " + "_".join(["word"] * 16)),
    *several(f"{POOLED}::truncation", built, "--between x --truncation head_tail"),
    *several(f"{POOLED}::window_overlap", built,
             "--truncation windows --max_seq_length 32 --window_overlap 30"),
    Case("loading_errors.py::config_problem::f'--{error.where}'", built, "--head_dropout 1"),
    Case("tokenization/templates.py::as_option::f'--{error.where}'", built,
         "--between x --truncation head_tail"),
    Case("adapters.py::adapter_config::--lora_task_type", built, "--use_peft --lora_task_type CAUSAL_LM"),
    Case("adapters.py::adapter_config::--lora_modules_to_save", built,
         "--use_peft --lora_modules_to_save embed_tokens"),
    Case("adapters.py::adapter_config::--lora_target_modules", built,
         "--use_peft --lora_target_modules q_porj v_proj"),
    Case("adapters.py::adapter_config::option", built, "--use_peft --model_name_or_path RUN"),
    Case("adapters.py::adapter_config::option", built, "--freeze_backbone true --model_name_or_path RUN"),
    *several("models.py::_load_to_continue::f'--{field}'", built, "--model_name_or_path RUN --pooling max",
             "--model_name_or_path RUN --max_seq_length 32"),
    Case("losses/registry.py::resolve_loss::--loss", trained, "--loss bce"),
    *several("losses/registry.py::unused_options::flag", trained, "--focal_gamma 2",
             "--loss focal --logit_adjustment_tau 1", "--pos_weight balanced"),
    Case("losses/rows.py::LossOption.problems::self.flag", trained, "--loss focal --focal_gamma -1"),
    Case("losses/class_balance.py::read_weights::flag#2", trained, "--class_weights 1 2",
         {"give one per label, in the order of the label ids": "--class_weights 1 2 3"}),
    Case("training/title_arguments.py::check_titles::--loss", TITLES, "--loss bt"),
    Case("training/title_arguments.py::check_titles::--trust_remote_code", TITLES,
         "--trust_remote_code true"),
    Case("training/grpo_arguments.py::TitleGeneratorConfig.__post_init__::option", grpo,
         "--push_to_hub true"),
    Case("training/grpo_arguments.py::TitleGeneratorConfig.__post_init__::option", grpo, "--hub_token hf_x"),
    *several("training/grpo_arguments.py::parse_title_generator_arguments::--length_penalty", grpo,
             "--length_penalty 2"),
]  # fmt: skip


def test_a_missing_config_file_names_the_existing_ones(tmp_path: Path) -> None:
    site = f"{LINES}read_config::str(path)"
    (tmp_path / "mine.yaml").write_text("seed: 3")
    argv = ["--output_dir", str(tmp_path / "run"), *CPU, "--config"]
    with made() as sites:
        [problem] = refusal(TEXTS, [*argv, str(tmp_path / "mnie.yaml")]).problems
    assert site in sites
    [name] = re.findall(r"YAML files there: (\S+)\)", problem.fix)
    assert TEXTS([*argv, str(tmp_path / name)])[1].seed == 3


@pytest.mark.parametrize(
    ("content", "site"),
    [
        ("- seed", f"{LINES}read_config::str(path)#2"),
        ("seed: [", f"{LINES}read_config::str(path)"),
        ("sede: 3", f"{LINES}unknown_option::where"),
    ],
)
def test_a_corrected_config_file_is_read(tmp_path: Path, content: str, site: str) -> None:
    """The message names the file, its content, and the expected form or option."""
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    argv = ["--output_dir", str(tmp_path / "run"), *CPU, "--config", str(path)]
    with made() as sites:
        [problem] = refusal(TEXTS, argv).problems
    assert site in sites
    assert str(path) in problem.where
    name = problem.expected.removeprefix("").split(", ")[0] if "sede" in content else "seed"
    path.write_text(f"{name}: 3")
    assert TEXTS(argv)[1].seed == 3


def refusal(parse: Callable[[Words], Any], argv: Words) -> TaskHeadsError:
    with pytest.raises(TaskHeadsError) as caught:
        parse(argv)
    return caught.value


@pytest.fixture(scope="module")
def models(bases: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the folders of BASE, GPT2 and RUN in a command line."""
    root = tmp_path_factory.mktemp("models")
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=5026))
    gpt2.save_pretrained(root / "gpt2")
    tokenizer = load_tokenizer("embedded")
    labels = {"task": "pooled_classifier", "labels": ["a", "b", "c"], "max_seq_length": 64}
    run = build(bases["qwen2"], problem_type=KIND, **labels)
    bind_template(tokenizer, run.config)
    save(run, tokenizer=tokenizer, folder=root / "run")
    return {"BASE": bases["qwen2"], "GPT2": str(root / "gpt2"), "RUN": str(root / "run")}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_typing_the_fix_of_a_message_succeeds(
    case: Case, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    argv = ["--output_dir", str(tmp_path / "run"), *CPU, *case.words.split()]
    if case.parse is built:
        models = request.getfixturevalue("models")
        argv = ["--model_name_or_path", "BASE", *argv]
        argv = [models.get(word, word) for word in argv]
    if case.config:
        (tmp_path / "run.yaml").write_text(case.config)
        argv += ["--config", str(tmp_path / "run.yaml")]
    with made() as sites:
        error = refusal(case.parse, argv)
    assert case.site in sites
    [problem] = error.problems
    typed = {way: words.split() for way, words in case.typed.items()}
    for changed in changes(problem, argv, typed):
        assert changed != argv
        if changed[-1] == "--help":
            with pytest.raises(SystemExit, match="0"):
                case.parse(changed)
        else:
            case.parse(changed)
