"""Commands and requests of servers, and files that other versions read alike."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from problem_assertions import raises_problem

from qwen_task_heads import adapter_config, build, load_tokenizer, save
from qwen_task_heads.export.reward_model import export_reward_model
from qwen_task_heads.export.servers import RUN_WITH, Served, serve_command, serve_example
from qwen_task_heads.export.shared import make_portable
from qwen_task_heads.export.stock import export_stock

LABELS = ["card", "cash"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind of model."""
    root, tokenizer = tmp_path_factory.mktemp("servers"), load_tokenizer("embedded")
    classifier = build("embedded", task="pooled_classifier", labels=LABELS, pooling="last")
    half = build("embedded", task="pooled_classifier", labels=LABELS, pooling="last", dtype=torch.bfloat16)
    scorer = build("embedded", pooling="last", head="mlp", head_sizes=[192], head_activation="relu")
    made = {
        "saved": save(classifier, tokenizer=tokenizer, folder=root / "saved"),
        "stock": export_stock(classifier, tokenizer=tokenizer, folder=root / "stock"),
        "half": export_stock(half, tokenizer=tokenizer, folder=root / "half"),
        "reward": export_reward_model(scorer, tokenizer=tokenizer, folder=root / "reward"),
        "titles": save(build("embedded"), tokenizer=tokenizer, folder=root / "titles"),
    }
    return {name: Path(folder) for name, folder in made.items()}


@pytest.mark.parametrize(
    ("kind", "dtype", "path"),
    [
        ("saved", "float32", "/classify"),
        ("stock", "float32", "/classify"),
        ("half", "bfloat16", "/classify"),
        ("reward", "float32", "/pooling"),
        ("titles", "float32", "/rank"),
    ],
)
def test_command_and_request_of_each_kind(folders: dict[str, Path], kind: str, dtype: str, path: str) -> None:
    line = serve_command(folders[kind], name="me/model")
    words = shlex.split(line)
    assert words[words.index("--dtype") + 1] == dtype
    assert words[words.index("serve") + 1] == "me/model"
    assert (words[0] == "VLLM_PLUGINS=qwen_task_heads") == (kind in ("saved", "titles"))
    assert ('{"use_activation": false}' in words) == (kind == "reward")
    example = serve_example(folders[kind], name="me/model").splitlines()
    assert example[0] == line
    curl = shlex.split(example[2])
    body = json.loads(curl[curl.index("-d") + 1])
    assert curl[:2] == ["curl", f"http://localhost:8000{path}"]
    assert (body.get("truncate_prompt_tokens") == -1) == (kind in ("stock", "half", "reward"))
    compile("\n".join(example[4:]), "example", "exec")
    assert json.dumps(body) in example[-2]


def test_a_limit_of_tokens_is_the_limit_of_the_server(tmp_path: Path) -> None:
    model = build("embedded", task="pooled_classifier", labels=LABELS, pooling="last", max_seq_length=40)
    tokenizer = load_tokenizer("embedded")
    tokenizer.model_max_length = 40
    words = shlex.split(serve_command(export_stock(model, tokenizer=tokenizer, folder=tmp_path / "stock")))
    assert words[words.index("--max-model-len") + 1] == "40"


def test_tail_truncation_is_not_left_to_the_server(folders: dict[str, Path], tmp_path: Path) -> None:
    """vLLM truncates the right side, so that a request must not ask it to truncate."""
    folder = Path(shutil.copytree(folders["stock"], tmp_path / "stock"))
    path = folder / "tokenizer_config.json"
    stated = json.loads(path.read_text(encoding="utf-8")) | {"truncation_side": "left"}
    path.write_text(json.dumps(stated), encoding="utf-8")
    assert "truncate_prompt_tokens" not in serve_example(folder)


@pytest.mark.parametrize("kind", ["stock", "reward"])
def test_exports_have_the_names_of_transformers_4(folders: dict[str, Path], kind: str) -> None:
    config = json.loads((folders[kind] / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    stated = json.loads((folders[kind] / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert not isinstance(stated.get("extra_special_tokens"), list)
    assert not (folders[kind] / "chat_template.jinja").exists()


def test_the_files_of_a_chat_model_with_a_scaled_rope(tmp_path: Path) -> None:
    rope = {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0}
    (tmp_path / "config.json").write_text(json.dumps({"rope_parameters": rope}))
    stated = {"extra_special_tokens": ["<a>"], "chat_template": "x", "model_max_length": 9}
    stated["tokenizer_class"] = "TokenizersBackend"  # of Llama, in transformers 5
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    (tmp_path / "chat_template.jinja").write_text("x")
    make_portable(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["rope_theta"], config["rope_scaling"]) == (1e6, {"rope_type": "yarn", "factor": 4.0})
    assert config["rope_parameters"] == rope
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "additional_special_tokens": ["<a>"],
        "model_max_length": 9,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    assert not (tmp_path / "chat_template.jinja").exists()


def test_a_model_of_pairs_is_asked_for_a_pair(tmp_path: Path) -> None:
    from qwen_task_heads import bind_template

    model = build("embedded", task="pooled_classifier", labels=LABELS)
    tokenizer = load_tokenizer("embedded")
    bind_template(tokenizer, model.config, pairs=True)
    folder = save(model, tokenizer=tokenizer, folder=tmp_path / "pairs")
    _, body, _ = Served.read(folder).request("me/model")
    assert list(body["input"][0]) == ["text", "text_pair"]


def test_the_versions_are_those_of_the_results() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "serve_matrix.md"
    [stated] = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("Versions")]
    assert [version for version in RUN_WITH.values() if version not in stated] == []


def test_folders_that_vllm_does_not_load(tmp_path: Path) -> None:
    from peft import get_peft_model

    tokenizer = load_tokenizer("embedded")
    model = build("embedded")
    folder = Path(
        save(get_peft_model(model, adapter_config(model)), tokenizer=tokenizer, folder=tmp_path / "a")
    )
    with raises_problem("model-unsupported", str(folder)) as problems:
        serve_command(folder)
    assert "--form merged" in problems[0].fix
    with raises_problem("model-not-found", str(tmp_path)):
        serve_command(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}')
    with raises_problem("model-type", str(tmp_path)):
        serve_command(tmp_path)
