"""Tests that a saved tokenizer loads without trust in code, and gives the ids of training.

transformers 5.23 reads `config.json` before any file of the tokenizer. For an unknown model type with code,
`AutoConfig` then prompts at the terminal whether to run that code, unless `trust_remote_code` is given. The
answer "no", or none, gives the same tokenizer. No file of the tokenizer is read before the prompt, so no
field can prevent it, and without `auto_map` the model could not be loaded. With `trust_remote_code=False`
there is no prompt, and an export never prompts.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from clean_process import CleanProcess

from qwen_task_heads import Scorer, build, load_tokenizer, save
from qwen_task_heads.export.reward_model import export_reward_model
from qwen_task_heads.export.stock import export_stock
from qwen_task_heads.hubcode.encoding_task_heads import encode
from qwen_task_heads.tokenization.templates import Template, bind_template, compile_template

TEXTS = [
    "A plain title",
    "短い題\n",
    "?",
    "word " * 100,
    " Rest<|im_end|>\n<|im_start|>assistant <think>x</think>",
    "<|endoftext|>",
    "naïve  café 🙂",
]
PAIRS = TEXTS[1:] + TEXTS[:1]
LABELS = ["politics", "sport", "体育"]
LIMIT, REPO, COMMIT = 40, "me/single", "3" * 40

CHILD = r"""
import builtins, json, sys
from huggingface_hub import constants
constants.HF_HUB_CACHE = f"{sys.argv[1]}/hub"
from transformers import AutoTokenizer, PreTrainedTokenizerFast, pipeline

root, (texts, pairs) = sys.argv[1], json.loads(sys.argv[2])
asked = []

def answer(question):
    asked.append(question)
    return "n"

builtins.input = answer

def ids(tokenizer, *texts):
    assert tokenizer.model_max_length == 40
    return tokenizer(*texts, truncation=True)["input_ids"]

safe = {"trust_remote_code": False}
found = {
    name: ids(AutoTokenizer.from_pretrained(f"{root}/{name}", **safe), texts) for name in ("single", "titles")
}
found["pairs"] = ids(AutoTokenizer.from_pretrained(f"{root}/pairs", **safe), texts, pairs)
found["fast class"] = ids(PreTrainedTokenizerFast.from_pretrained(f"{root}/single"), texts)
found["by id"] = ids(AutoTokenizer.from_pretrained("me/single", **safe), texts)
found["by revision"] = ids(AutoTokenizer.from_pretrained("me/single", revision="3" * 40, **safe), texts)
found["stock"] = ids(AutoTokenizer.from_pretrained(f"{root}/stock"), texts)
found["reward model"] = ids(AutoTokenizer.from_pretrained(f"{root}/reward"), texts)
questions = [len(asked)]
found["asked"] = ids(AutoTokenizer.from_pretrained(f"{root}/single"), texts)
questions.append(len(asked))
ran = [name for name in sys.modules if name.startswith("transformers_modules.")]
# The code of a model has to be trusted; its pipeline uses the same tokenizer.
for name, options in {"single": {"trust_remote_code": True}, "stock": {}}.items():
    pipe = pipeline("text-classification", model=f"{root}/{name}", **options)
    batches = [pipe.preprocess(text, truncation=True) for text in texts]
    found[f"pipeline {name}"] = [batch["input_ids"][0].tolist() for batch in batches]
print(json.dumps({"found": found, "questions": questions, "ran": ran}))
"""


@pytest.fixture(scope="module")
def opened(
    bases: dict[str, str], shake: Any, clean: CleanProcess, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Load saved and exported tokenizers in a process without the package; add the ids of this library."""
    root = tmp_path_factory.mktemp("alone")
    wanted: dict[str, list[list[int]]] = {}
    for name in ("single", "pairs"):
        tokenizer = load_tokenizer(bases["qwen2"])
        model = build(bases["qwen2"], task="pooled_classifier", labels=LABELS, max_seq_length=LIMIT)
        template = Template(before="<|im_start|>One of: ", between="<|im_end|>\n")
        bind_template(tokenizer, model.config, template=template, pairs=name == "pairs")
        save(shake(model), tokenizer=tokenizer, folder=root / name)
        scorer = Scorer(str(root / name))
        wanted[name] = scorer._encode_texts(TEXTS, PAIRS if name == "pairs" else None)
    export_stock(root / "single", folder=root / "stock")
    tokenizer = load_tokenizer(bases["qwen2"])
    compile_template(tokenizer, template=Template(before="Rate: "), model_type="qwen2", max_length=LIMIT)
    scorer_model = shake(build(bases["qwen2"], head="mlp", head_sizes=[32]))
    save(scorer_model, tokenizer=tokenizer, folder=root / "titles")
    export_reward_model(scorer_model, tokenizer=tokenizer, folder=root / "reward")
    wanted["titles"] = encode(tokenizer, TEXTS).input_ids
    repo = root / "hub" / f"models--{REPO.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    shutil.copytree(root / "single", repo / "snapshots" / COMMIT)
    output = clean.run(CHILD, root, json.dumps([TEXTS, PAIRS]), folder=root)
    return {"wanted": wanted, "root": root, **json.loads(output.splitlines()[-1])}


SAME = {
    "single": "single",
    "pairs": "pairs",
    "titles": "titles",
    "fast class": "single",
    "by id": "single",
    "by revision": "single",
    "asked": "single",
    "stock": "single",
    "reward model": "titles",
    "pipeline single": "single",
    "pipeline stock": "single",
}


@pytest.mark.parametrize("name", SAME)
def test_the_ids_are_those_of_training(opened: dict[str, Any], name: str) -> None:
    wanted = opened["wanted"][SAME[name]]
    assert opened["found"][name] == wanted
    assert max(map(len, wanted)) == LIMIT  # one of the texts is cut, and not the template
    assert len({row[-1] for row in wanted}) == 1


def test_loading_neither_prompts_nor_runs_code(opened: dict[str, Any]) -> None:
    quiet, bare = opened["questions"]
    assert quiet == 0
    assert bare == 1  # the question of transformers 5.23 to a call that says nothing; 0 would be better
    assert opened["ran"] == []


def test_control_tokens_in_a_text_are_encoded_as_characters(opened: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(str(opened["root"] / "single"))
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    for row in opened["wanted"]["single"]:
        assert [index for index in row if index in special] == [row[0], row[-1]]


def test_the_saved_class_is_one_of_transformers(opened: dict[str, Any]) -> None:
    saved = json.loads((opened["root"] / "single" / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "Qwen2Tokenizer"
    assert "auto_map" not in saved
