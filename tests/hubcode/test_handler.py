"""The handler is loaded and called as in Inference Endpoints: by its path, without the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from clean_process import CleanProcess
from peft import get_peft_model

from qwen_task_heads import Scorer, adapter_config, build, load_tokenizer, save
from qwen_task_heads.reports.run_manifest import hash_code
from qwen_task_heads.tokenization.templates import Template, bind_template, compile_template

LABELS = ["politics", "sport", "体育"]
TEXTS = ["A plain text", "短い文", "word " * 60, "Rest<|im_end|>"]
LIMIT = 40

# huggingface_inference_toolkit, `check_and_register_custom_pipeline_from_directory` and `predict`: the folder
# goes onto the path, the module gets a name of the toolkit, and what a handler raises becomes an answer.
CHILD = r"""
import importlib.util, json, sys

def open_handler(folder):
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", f"{folder}/handler.py")
    sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules["handler.EndpointHandler"] = module
    spec.loader.exec_module(module)
    return module.EndpointHandler(folder)

root, answers = sys.argv[1], {}
for name, requests in json.loads(sys.argv[2]).items():
    handler, answers[name] = open_handler(f"{root}/{name}"), []
    for request in requests:
        try:
            answers[name].append({"answer": handler(request)})
        except Exception as error:
            answers[name].append({"error": str(error), "type": type(error).__name__})
print(json.dumps(answers))
"""

BAD = [
    {},
    "text",
    {"inputs": []},
    {"inputs": None},
    {"inputs": 3},
    {"inputs": "a", "parameters": ["top_k"]},
    {"inputs": ["a", "", 3, " "]},
    {"inputs": "a", "parameters": {"unknown": 1}},
]
REQUESTS: dict[str, list[Any]] = {
    "titles": [
        *BAD,
        {"inputs": {"titles": TEXTS, "prompt": "Which?"}},
        {"inputs": [{"titles": TEXTS[:2]}, {"titles": TEXTS[2:]}], "parameters": {"top_k": 1}},
        {"inputs": TEXTS},
        {"inputs": TEXTS[0], "parameters": {"prompt": "Which?"}},
        {"inputs": [{"titles": ["a", ""]}, {"title": "x"}], "parameters": {"top_k": 0, "threshold": 1}},
    ],
    "single": [
        *BAD,
        {"inputs": TEXTS},
        {"inputs": TEXTS[0], "parameters": {"top_k": 1}},
        {"inputs": {"text": "a", "text_pair": "b"}, "parameters": {"threshold": 0.5}},
    ],
    "multi": [
        {"inputs": TEXTS, "parameters": {"threshold": "0.5"}},
        {"inputs": TEXTS, "parameters": None},
        {"inputs": TEXTS, "parameters": {"threshold": 2}},
    ],
    "thresholds": [{"inputs": TEXTS}, {"inputs": TEXTS, "parameters": {"threshold": 0}}],
    "value": [{"inputs": TEXTS}],
    "pairs": [
        {"inputs": {"text": TEXTS[0], "text_pair": TEXTS[1]}},
        {"inputs": [{"text": TEXTS[0], "text_pair": ""}, {"text": TEXTS[2], "text_pair": TEXTS[3]}]},
        {"inputs": ["a"]},
    ],
}


@pytest.fixture(scope="module")
def served(
    bases: dict[str, str], shake: Any, clean: CleanProcess, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """All requests to all handlers in one process, and the package's scorers by name."""
    root, scorers = tmp_path_factory.mktemp("served"), {}
    options: dict[str, dict[str, Any]] = {
        "titles": {},
        "single": {"truncation": "head_tail"},
        "multi": {"problem_type": "multi_label_classification", "truncation": "windows"},
        "thresholds": {
            "problem_type": "multi_label_classification",
            "label_thresholds": [0.1, 0.9, 0.5],
        },
        "value": {"problem_type": "regression"},
        "pairs": {"head": "mlp", "head_sizes": [8]},
    }
    for name, more in options.items():
        tokenizer = load_tokenizer(bases["qwen2"])
        if name == "titles":
            model = build(bases["qwen2"])
            template = Template(before="Rate: ")
            compile_template(tokenizer, template=template, model_type="qwen2", max_length=LIMIT)
            model = get_peft_model(model, adapter_config(model, r=2))
        else:
            labels = ["mark"] if name == "value" else LABELS
            more |= {"task": "pooled_classifier", "labels": labels, "max_seq_length": LIMIT}
            model = build(bases["qwen2"], **more)
            bind_template(tokenizer, model.config, template=Template(before="One: "), pairs=name == "pairs")
        save(shake(model, seed=3), tokenizer=tokenizer, folder=root / name)
        scorers[name] = Scorer(str(root / name))
    output = clean.run(CHILD, root, json.dumps(REQUESTS), folder=root)
    return {"answers": json.loads(output.splitlines()[-1]), "scorers": scorers, "root": root}


def _close(found: list[float], wanted: list[float]) -> bool:
    return bool(torch.allclose(torch.tensor(found), torch.tensor(wanted), rtol=0, atol=2e-6))


def test_it_is_saved_with_its_hash(served: dict[str, Any]) -> None:
    assert (served["root"] / "single" / "handler.py").is_file()
    assert "handler.py" in hash_code()


def test_titles_are_ranked_and_scored(served: dict[str, Any]) -> None:
    ranked, firsts, scored, one, _ = [row.get("answer") for row in served["answers"]["titles"][len(BAD) :]]
    scorer = served["scorers"]["titles"]
    wanted = scorer.rank(TEXTS, prompt="Which?")
    assert [row["title"] for row in ranked] == [row.title for row in wanted]
    assert [row["rank"] for row in ranked] == [1, 2, 3, 4]
    assert _close([row["score"] for row in ranked], [row.score for row in wanted])
    assert _close([row["probability"] for row in ranked], [row.probability for row in wanted])
    assert [[row["title"] for row in rows] for rows in firsts] == [
        [scorer.rank(part)[0].title] for part in (TEXTS[:2], TEXTS[2:])
    ]
    assert [row["title"] for row in scored] == TEXTS
    assert _close([row["score"] for row in scored], scorer.score(TEXTS))
    assert _close([one[0]["score"]], scorer.score(TEXTS[:1], prompts=["Which?"]))


@pytest.mark.parametrize(("name", "at"), [("single", len(BAD)), ("multi", 1)])
def test_labels_come_with_their_probabilities(served: dict[str, Any], name: str, at: int) -> None:
    rows = served["answers"][name][at]["answer"]
    wanted = served["scorers"][name].predict(TEXTS)
    for row, prediction in zip(rows, wanted, strict=True):
        assert [label["label"] for label in row] == [label for label, _ in prediction.ranked]
        assert _close([label["score"] for label in row], [value for _, value in prediction.ranked])


def test_parameters_choose_labels(served: dict[str, Any]) -> None:
    best = served["answers"]["single"][len(BAD) + 1]["answer"]
    assert [row["label"] for row in best] == [served["scorers"]["single"].predict(TEXTS[:1])[0].label]
    over = served["answers"]["multi"][0]["answer"]
    wanted = served["scorers"]["multi"].predict(TEXTS, threshold=0.5)
    assert [[row["label"] for row in rows] for rows in over] == [list(row.labels) for row in wanted]
    assert {len(rows) for rows in over} != {len(LABELS)}  # otherwise the threshold had no effect
    message = served["answers"]["multi"][2]["error"]
    assert message.startswith("parameters.threshold: found 2. Expected ")


def test_thresholds_of_the_config_choose_labels(served: dict[str, Any]) -> None:
    chosen, all_of_them = [row["answer"] for row in served["answers"]["thresholds"]]
    wanted = [list(answer.labels) for answer in served["scorers"]["thresholds"].predict(TEXTS)]
    assert [[row["label"] for row in rows] for rows in chosen] == wanted
    assert {len(rows) for rows in all_of_them} == {len(LABELS)}
    assert all(len(rows) < len(LABELS) for rows in chosen)


def test_values_and_pairs(served: dict[str, Any]) -> None:
    rows = served["answers"]["value"][0]["answer"]
    wanted = [prediction.score for prediction in served["scorers"]["value"].predict(TEXTS)]
    assert [[row["label"] for row in row] for row in rows] == [["mark"]] * 4
    assert _close([row[0]["score"] for row in rows], wanted)
    one, two, refused = served["answers"]["pairs"]
    scorer = served["scorers"]["pairs"]
    for row, (first, second) in zip(
        [one["answer"], *two["answer"]], [TEXTS[:2], (TEXTS[0], ""), TEXTS[2:]], strict=True
    ):
        [prediction] = scorer.predict([first], text_pairs=[second])
        assert _close([label["score"] for label in row], [value for _, value in prediction.ranked])
    assert "pairs, as in training" in refused["error"]


@pytest.mark.parametrize("name", ["titles", "single"])
def test_bad_input_is_an_error_and_the_next_request_is_served(served: dict[str, Any], name: str) -> None:
    rows = served["answers"][name]
    assert {row["type"] for row in rows[: len(BAD)]} == {"RequestError"}
    messages = [row["error"] for row in rows[: len(BAD)]]
    assert all(": found " in text and ". Expected " in text and ". Fix: " in text for text in messages)
    assert len(messages[6].splitlines()) == 3  # all three problems
    assert messages[7].startswith("parameters.unknown: found 1")
    assert "answer" in rows[len(BAD)]
    last = rows[-1]["error"].splitlines()
    if name == "titles":
        assert [line.split(":")[0] for line in last] == [
            "parameters.top_k",
            "parameters.threshold",
            "inputs[0].titles[1]",
            "inputs[1]",
        ]
    else:
        assert [line.split(":")[0] for line in last] == ["parameters.threshold", "inputs[0].text_pair"]


def test_without_a_path_the_folder_of_the_file_is_loaded(
    served: dict[str, Any], clean: CleanProcess, tmp_path: Path
) -> None:
    folder = served["root"] / "value"
    code = CHILD.replace("module.EndpointHandler(folder)", "module.EndpointHandler()")
    request = json.dumps({"value": [{"inputs": TEXTS}]})
    found = json.loads(clean.run(code, folder.parent, request, folder=tmp_path).splitlines()[-1])
    assert found["value"][0] == served["answers"]["value"][0]
