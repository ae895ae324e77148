"""With the package installed, code of a folder does not run, and no code runs its input.

Imports of published code are checked in `test_architecture.py`. Loading without the package is checked in
`publishing/test_gate.py` and `hubcode/test_reload.py`.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from equality import assert_same_model
from peft import get_peft_model
from sources import MODULES, RECIPES, name_of, tree_of
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from qwen_task_heads import TaskHeadsError, adapter_config, build, load, load_tokenizer, merge, save
from qwen_task_heads.files import check_manifest, hash_files
from qwen_task_heads.hubcode import CODE
from qwen_task_heads.reports.records import write_json

IDS = torch.arange(12).view(2, 6)

# Code of a folder


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_changed_code_does_not_run_with_the_package_installed(
    bases: dict[str, str], tokenizer: Any, shake: Any, tmp_path: Path, kind: str
) -> None:
    model = build(bases["qwen2"])
    if kind == "adapter":
        model = get_peft_model(model, adapter_config(model, r=2))
    folder = save(shake(model), tokenizer=tokenizer, folder=tmp_path / "it")
    write_json(folder / "manifest.json", {"files": hash_files(folder)})
    for file in CODE:
        (folder / file.name).write_text(f"import os\nos.mkdir({str(tmp_path / 'canary')!r})\n")
    # The manifest names all changed files.
    with pytest.raises(TaskHeadsError) as caught:
        check_manifest(str(folder))
    assert sorted(Path(problem.where).name for problem in caught.value.problems) == sorted(
        file.name for file in CODE
    )
    # Without a manifest, the code is not read, with or without trust_remote_code.
    (folder / "manifest.json").unlink()
    loaded = [load(str(folder))]
    for trust in (False, True):
        AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        for auto in (AutoModel, AutoModelForSequenceClassification):
            loaded.append(auto.from_pretrained(folder, trust_remote_code=trust))
        pipeline("text-classification", model=str(folder), trust_remote_code=trust)("A title")
        pipeline("title-ranking", model=str(folder), trust_remote_code=trust)(["A title", "B"])
    load_tokenizer(str(folder))
    if kind == "adapter":
        merge(str(folder))
    for again in loaded:
        assert_same_model(again, model, input_ids=IDS)
    assert not (tmp_path / "canary").exists()


# Code that runs its input

PICKLES = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
RUNS = (
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput",
    "subprocess.getstatusoutput", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all",
    "pickle.load", "pickle.loads", "runpy.run_path", "runpy.run_module",
)  # fmt: skip


def unsafe(tree: ast.Module) -> list[str]:
    """Return every line that trusts remote code, unpickles, evaluates a text or passes it to a shell."""
    found, names = [], {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name] = alias.name
                if alias.name.split(".")[0] in PICKLES:
                    found.append(f"line {node.lineno}: {alias.name}")
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            if (node.module or "").split(".")[0] in PICKLES:
                found.append(f"line {node.lineno}: {node.module}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):  # options of a loader
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in ("trust_remote_code", "shell"):
                    given = {key.value: value}
                    found += _trusting(node.lineno, given)
        if not isinstance(node, ast.Call):
            continue
        head, _, tail = ast.unparse(node.func).partition(".")
        function = ".".join(filter(None, [names.get(head, head), tail]))
        given = {str(keyword.arg): keyword.value for keyword in node.keywords}
        found += _trusting(node.lineno, given)
        if function in RUNS or function == "torch.hub.load":
            found.append(f"line {node.lineno}: {function}")
        if function == "torch.load" and ast.unparse(given.get("weights_only", ast.Constant(0))) != "True":
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
    return found


def _trusting(line: int, given: dict[str, ast.expr]) -> list[str]:
    return [
        f"line {line}: {name}={ast.unparse(value)}"
        for name, value in given.items()
        if name in ("trust_remote_code", "shell", "allow_pickle")
        and isinstance(value, ast.Constant)
        and value.value
    ]


def test_no_code_runs_its_input() -> None:
    found = [(name_of(path), line) for path in [*MODULES, *RECIPES] for line in unsafe(tree_of(path))]
    # The console script runs the recipes that are installed with the package.
    own = [("qwen_task_heads/cli.py", call) for call in ("runpy.run_module", "runpy.run_path")]
    assert sorted((name, line.split(": ")[1]) for name, line in found) == own, found


@pytest.mark.parametrize(
    "line",
    [
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "options = {'trust_remote_code': True}",
        "import torch; torch.load(x)",
        "from torch import load as read; read(x, weights_only=False)",
        "import yaml as y; y.load(x)",
        "eval(x)",
        "exec(x)",
        "from os import system; system(x)",
        "import pickle",
        "from joblib import load",
        "subprocess.run(x, shell=True)",
        "np.load(x, allow_pickle=True)",
    ],
)
def test_the_scan_finds_unsafe_lines(line: str) -> None:
    assert unsafe(ast.parse(line))
    safe = "torch.load(x, weights_only=True); yaml.safe_load(x); f(trust_remote_code=trust)"
    assert unsafe(ast.parse(safe)) == []
