"""The classification recipe: every problem type and method, its presets, and its errors."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import launching
import pytest
import yaml
from launching import MACHINE

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "classify.py"
CONFIGS = ROOT / "recipes" / "configs"
PRESETS = {
    "n24news_7b_lora": ("Qwen/Qwen2.5-7B-Instruct", "85.26"),
    "longnews_05b_full": ("Qwen/Qwen2.5-0.5B-Instruct", ".96"),
    "longnews_distill_15b_lora": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", ".70"),
    "sentiment_3b_r64": ("Qwen/Qwen2.5-3B-Instruct", ".9334"),
    "transcripts_3b_r96": ("Qwen/Qwen2.5-3B-Instruct", ".8848"),
}
MODEL = "this model"
WORDS = {
    "sport": "goal match team coach league",
    "money": "bank price market tax budget",
    "health": "doctor sleep diet heart nurse",
}
FILLER = ["the", "a", "new", "of", "about", "how", "why", "people", "say", "today", "again", "never", "every"]
HEADLINE = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "micro_f1",
    "regression": "spearman",
    "ordinal": "quadratic_kappa",
}

run, finished, refused = (partial(f, RECIPE) for f in (launching.run, launching.finished, launching.refused))
short = partial(launching.short, max_seq_length=48)


def texts(count: int, *, seed: int) -> list[dict[str, object]]:
    """Texts whose words determine their labels, with a target for every problem type."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        name = draw.choice(list(WORDS))
        other = draw.choice(list(WORDS))
        words = draw.choices(WORDS[name].split(), k=3) + draw.choices(FILLER, k=draw.randint(1, 12))
        draw.shuffle(words)
        text = " ".join([*words, f"number {number + 1000 * seed}"])
        place = list(WORDS).index(name)
        rows.append(
            {"text": text, "label": name, "labels": sorted({name, other}), "score": place + draw.random() / 4}
            | {"level": place, "other": f"about {other}"}
        )
    return rows


def write(folder: Path, name: str, rows: list[dict[str, object]]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """One folder of splits per problem type, and one of text pairs."""
    root = tmp_path_factory.mktemp("texts")
    columns = {
        "single_label_classification": {"text": "text", "label": "label"},
        "multi_label_classification": {"text": "text", "labels": "labels"},
        "regression": {"text": "text", "score": "score"},
        "ordinal": {"text": "text", "label": "level"},
        "pairs": {"text_a": "text", "text_b": "other", "label": "label"},
    }
    for split, count in (("train", 96), ("dev", 24), ("test", 30)):
        rows = texts(count, seed=len(split))
        for kind, names in columns.items():
            found = [{name: row[source] for name, source in names.items()} for row in rows]
            write(root / kind, f"{split}.jsonl", found)
    return {kind: root / kind for kind in columns}


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


# --- what a run leaves behind ---


@pytest.fixture(scope="session")
def learned(folders, tmp_path_factory) -> tuple[Path, str]:
    """A run on the embedded backbone, long enough to learn."""
    folder = tmp_path_factory.mktemp("runs") / "news"
    words = short(
        folders["single_label_classification"],
        "embedded",
        folder,
        max_steps=60,
        eval_steps=20,
        save_steps=20,
        pooling="mean",
        learning_rate=3e-3,
    )
    return folder, finished(words, folder.parent / "log")


def test_a_run_learns_and_prints_its_metrics(learned):
    folder, printed = learned
    figures = metrics_of(folder)["test"]
    assert figures[MODEL]["accuracy"]["value"] > 0.8
    assert len(figures) == 3  # the model, TF-IDF, the most frequent label
    shown = f"{figures[MODEL]['accuracy']['value']:.3f}"
    assert shown in printed
    assert shown in (folder / "README.md").read_text(encoding="utf-8")
    for name in WORDS:
        assert name in (folder / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in folder.iterdir()}
    assert {
        "README.md",
        "config.json",
        "metrics.json",
        "manifest.json",
        "predictions.jsonl",
        "errors.md",
        "model.safetensors",
        "tokenizer.json",
        "training.png",
    } <= files


def test_a_run_prints_estimated_and_used_time_and_memory(learned):
    folder, printed = learned
    launching.estimated(metrics_of(folder)["train"], printed)


def test_label_names_are_in_every_file(learned):
    folder, _ = learned
    config = json.loads((folder / "config.json").read_text())
    assert list(config["id2label"].values()) == sorted(WORDS)
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert {row["label"] for row in rows} <= set(WORDS)
    assert all(set(row["probabilities"]) == set(WORDS) for row in rows)
    assert "LABEL_" not in (folder / "README.md").read_text()


def test_the_saved_model_predicts_like_the_run(learned):
    from qwen_task_heads import Scorer

    folder, _ = learned
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    again = Scorer(str(folder)).predict([row["text"] for row in rows])
    for row, answer in zip(rows, again, strict=True):
        assert answer.label == row["label"]
        for name, probability in row["probabilities"].items():
            assert answer.probabilities[name] == pytest.approx(probability, abs=2e-6)


def test_training_continues_with_the_labels_of_the_saved_model(learned, folders, tmp_path, capfd):
    """Rows with fewer labels in another order do not change the labels of the model."""
    folder, _ = learned
    rows = [row for row in texts(60, seed=7) if row["label"] != "health"]
    data = write(tmp_path, "more.jsonl", [{"text": row["text"], "label": row["label"]} for row in rows])
    assert run(*short(data, str(folder), tmp_path / "run", max_steps=2)) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert list(config["id2label"].values()) == sorted(WORDS)
    (tmp_path / "labels.yaml").write_text("[sport, money, health]")
    message = refused(capfd, *short(data, str(folder), tmp_path / "other", labels=tmp_path / "labels.yaml"))
    assert "sport" in message
    assert "money" in message


MORE = ["law", *WORDS, "art"]  # another order than that of the saved model


@pytest.mark.parametrize(
    ("start", "named"),
    [
        ("saved", False),
        pytest.param("saved", True, marks=pytest.mark.slow),
        pytest.param("init_head", False, marks=pytest.mark.slow),
        pytest.param("init_head", True, marks=pytest.mark.slow),
    ],
)
def test_labels_are_added_to_a_saved_model(learned, tmp_path, start, named):
    """Rows of the head are copied by name: before training, old labels have the logits of the old model."""
    from qwen_task_heads import Scorer, load

    folder, _ = learned
    rows = [
        {"text": f"{word} number {number}", "label": name}
        for number in range(16)
        for name, word in zip(MORE, ("court", "goal", "bank", "doctor", "museum"), strict=True)
    ]
    data, options = write(tmp_path, "more.jsonl", rows), {"max_steps": 1, "learning_rate": 1e-9}
    options |= {"eval_steps": 1, "save_steps": 1}
    if named:
        (tmp_path / "labels.yaml").write_text(json.dumps(MORE))
        options["labels"] = tmp_path / "labels.yaml"
    if start == "init_head":
        options |= {"init_head": folder, "pooling": "mean"}
    base = str(folder) if start == "saved" else "embedded"
    printed = finished(short(data, base, tmp_path / "run", **options), tmp_path / "log")
    [line] = [line for line in printed.splitlines() if "are new (" in line]
    assert line.index("'sport'") < line.index("'art'")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    new = MORE if named else [*sorted(WORDS), "art", "law"] if start == "saved" else sorted(MORE)
    assert list(config["id2label"].values()) == new
    assert config["label2id"] == {name: place for place, name in enumerate(new)}
    old, grown = load(str(folder)), load(str(tmp_path / "run"))
    for place, name in enumerate(new):
        row = old.score.weight[old.config.label2id[name]] if name in WORDS else old.score.weight.mean(0)
        assert grown.score.weight[place].sub(row).abs().max() < 1e-6
    [answer] = Scorer(str(tmp_path / "run")).predict(["goal match team"])
    assert set(answer.probabilities) == set(MORE)


# --- every problem type and method ---


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("multi_label_classification", {"pos_weight": "balanced"}),
        pytest.param("regression", {"use_peft": "true", "loss": "huber"}, marks=pytest.mark.slow),
        pytest.param("ordinal", {"problem_type": "ordinal"}, marks=pytest.mark.slow),
        ("pairs", {"class_weights": "balanced", "early_stopping_patience": 3}),
    ],
)
def test_every_problem_type_reports_its_metrics(folders, bases, tmp_path, kind, options):
    folder = tmp_path / "run"
    finished(short(folders[kind], bases["qwen3"], folder, **options), tmp_path / "log")
    found = metrics_of(folder)
    problem = "single_label_classification" if kind == "pairs" else kind
    assert found["problem_type"] == problem
    for scorer, figures in found["test"].items():
        assert HEADLINE[problem] in figures, scorer
    assert (folder / "predictions.jsonl").read_text().count("\n") == 30


METHODS = {
    "windows": {"truncation": "windows", "max_seq_length": 16, "window_overlap": 4, "use_peft": "true"},
    "dora": {"use_peft": "true", "use_dora": "true"},
    "lora on embeddings": {"use_peft": "true", "lora_embeddings": "true"},
    "head only": {"freeze_backbone": "true", "head": "mlp", "head_sizes": [16], "pooling": "attention"},
    "head and tail": {
        "truncation": "head_tail",
        "max_seq_length": 16,
        "bidirectional": "true",
        "loss": "logit_adjusted",
    },
    "labels in the prompt": {
        "instruction": "<|im_start|>user\nOne of {labels}:\n",
        "label_smoothing_factor": 0.1,
    },
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=() if name == "windows" else pytest.mark.slow)
        for name, options in METHODS.items()
    ],
)
def test_every_method_predicts_the_same_after_reloading(folders, bases, tmp_path, options):
    from qwen_task_heads import Scorer

    folder, data = tmp_path / "run", folders["single_label_classification"]
    finished(short(data, bases["qwen2"], folder, **options), tmp_path / "log")
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    again = Scorer(str(folder)).predict([row["text"] for row in rows])
    for row, answer in zip(rows, again, strict=True):
        assert answer.probabilities == pytest.approx(row["probabilities"], abs=2e-6)


# --- the published settings ---


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_states_its_base_and_the_published_metric(preset):
    text = (CONFIGS / f"{preset}.yaml").read_text(encoding="utf-8")
    base, figure = PRESETS[preset]
    assert yaml.safe_load(text)["model_name_or_path"] == base
    assert figure in text
    assert "needs the weights" in text.replace("\n# ", " ")


def preset_words(preset: str, data: Path, base: str, output: Path) -> list[object]:
    """Return the words of a preset on a tiny base of the same architecture, for two steps."""
    words = ["--config", CONFIGS / f"{preset}.yaml", "--model_name_or_path", base, "--dataset_name", data]
    return [*words, "--output_dir", output, "--max_steps", 2, *MACHINE]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_runs(preset, folders, bases, tmp_path):
    """One preset runs under `accelerate launch`, the others in a child process."""
    words = preset_words(preset, folders["single_label_classification"], bases["qwen2"], tmp_path / "run")
    if preset == "longnews_05b_full":
        launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
        command = [*launcher, ROOT / "recipes" / "accelerate" / "single.yaml", RECIPE, *words]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        finished(words, tmp_path / "log")
    found = metrics_of(tmp_path / "run")
    assert found["problem_type"] == "single_label_classification"
    assert found["test"][MODEL]["accuracy"]["n"] == 30
    assert (tmp_path / "run" / "adapter/adapter_config.json").exists() == ("full" not in preset)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda p: p.stem
)
def test_accelerate_reads_every_launch_configuration(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    wanted = {
        "single": "NO",
        "multi_gpu": "MULTI_GPU",
        "fsdp2": "FSDP",
        "zero2": "DEEPSPEED",
        "zero3": "DEEPSPEED",
    }
    assert config.distributed_type == wanted[path.stem]


# --- bad input ---


def test_all_problems_of_all_files_are_in_one_error(bases, tmp_path, capfd):
    rows = [{"text": row["text"], "label": row["label"]} for row in texts(30, seed=1)]
    bad = [*rows, {"text": "", "label": "sport"}, {"text": "a text", "label": None}, {"label": "sport"}]
    train = write(tmp_path, "train.jsonl", bad)
    with train.open("a") as file:
        file.write('{"text": "cut off, "lab')
    dev = write(tmp_path, "dev.jsonl", [*rows, {"text": "new words", "label": "weather"}])
    (tmp_path / "test.jsonl").write_bytes(b"\x00\x01\x02" * 400)
    message = refused(capfd, *short(tmp_path, bases["qwen2"], tmp_path / "run"))
    for where in ("train.jsonl:31", "train.jsonl:32", "train.jsonl:33", "train.jsonl:34", "test.jsonl"):
        assert where in message, message
    assert not (tmp_path / "run").exists()
    for line in (33, 32, 31):
        lines = train.read_text().splitlines()
        train.write_text("\n".join([*lines[: line - 1], *lines[line:]][:30]) + "\n")
    (tmp_path / "test.jsonl").unlink()
    message = refused(capfd, *short(tmp_path, bases["qwen2"], tmp_path / "run"))
    assert f"{dev}:31" in message
    assert "weather" in message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"loss": "bce"}, "--loss"),
        ({"class_weights": [1, 2]}, "--class_weights"),
        ({"truncation": "middle"}, "--truncation"),
        ({"window_overlap": 4}, "--window_overlap"),
        ({"problem_type": "regresion"}, "--problem_type"),
        ({"instruction": "One of {label}: "}, "{label}"),
        ({"instruction": "{descriptions}"}, "descriptions"),
        ({"max_seq_length": 3}, "max_seq_length"),
        ({"early_stopping_patience": 2, "load_best_model_at_end": "false"}, "--early_stopping_patience"),
        ({"bathc": 3}, "--bathc"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusable_options_are_refused_before_anything_runs(folders, bases, tmp_path, capfd, options, named):
    data = folders["single_label_classification"]
    message = refused(capfd, *short(data, bases["qwen2"], tmp_path / "run", **options))
    assert named in message
    assert not list(tmp_path.glob("run/checkpoint-*"))
