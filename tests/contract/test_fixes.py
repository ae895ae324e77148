"""Every refusal in scope has a test that follows its fix, or a reason why it has none.

The modules of `TESTS` name the sites that they follow.
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
from fixes import PACKAGE, sites_of

SITE = re.compile(r"[\w/]+\.py::[\w.]*::.+")
TESTS = (
    "test_option_fixes",
    "test_model_fixes",
    "test_publishing_fixes",
    "test_reader_fixes",
    "test_text_fixes",
    "test_label_fixes",
    "test_pair_fixes",
    "test_gguf_fixes",
    "test_sweep_fixes",
    "test_command_fixes",
    "test_question_fixes",
)

# Modules whose refusals are followed elsewhere, or not yet.
COMPARED = "what a comparison found; tests/verification/test_parity.py has each beside what passes"
OUTSIDE = {
    "data_checks/": "checks of columns and options; tests/data_checks",
    "labeling/": "audits and reviews; tests/labeling",
    "runs/search.py": "trials of a search; tests/runs/test_search.py",
    "training/adaptation.py": "texts and numbers; tests/training/test_adaptation.py",
    "training/search_options.py": "a search space; tests/training/test_search_options.py",
    "tokenization/": "templates, prompts and rows of a run; tests/tokenization",
    "evaluate_modules/": "arguments of metrics; tests/evaluate_modules",
    "inference/": "opening and asking a model; tests/inference",
    "hubcode/attention_task_heads.py": "arguments of a forward pass",
    "hubcode/encoding_task_heads.py": "arguments of a tokenizer",
    "hubcode/errors_task_heads.py": "calls of other sites, which are followed",
    "hubcode/head_layers_task_heads.py": "an option of a training; tests/hubcode/test_head_layers.py",
    "hubcode/long_rows_task_heads.py": "arguments of a forward pass",
    "hubcode/modeling_task_heads.py": "arguments of a forward pass",
    "hubcode/pipeline_task_heads.py": "arguments of a pipeline",
    "hubcode/questions_task_heads.py": "questions of a config; tests/hubcode/test_questions.py",
    "hubcode/pushing_task_heads.py": "a push without the package; tests/publishing/test_saving_methods.py",
    "verification/differences.py": COMPARED,
    "verification/parity.py": COMPARED,
}
CHECKED = "checked before the first step; its fixes are followed in tests/training"
OUTSIDE |= {f"training/{name}_checks.py": CHECKED for name in ("option", "optimizer", "run")}
# Modules of a run, whose refusals come while it trains, measures or draws.
RUNNING = (
    "metrics/calibration", "metrics/classification", "metrics/questions", "metrics/ranking",
    "metrics/text_baselines",
    "metrics/title_baselines", "reports/plots",
    "losses/class_balance", "losses/groups", "losses/pairs", "losses/rows", "losses/texts",
    "training/callbacks", "training/checkpoint_manifest", "training/checkpoints",
    "training/classifier_trainer", "training/feature_cache", "training/features", "training/frozen_heads",
    "training/hub_saving", "training/title_trainer", "training/updates",
)  # fmt: skip
OUTSIDE |= {f"{name}.py": "comes while a run trains; its test mirrors the module" for name in RUNNING}

PIP = "a package is missing: the fix installs one"
HOSTILE = "a repo not to be used, which is the fix; tests/attacks/test_hostile_repos.py"
WRAPPED = "tells an error of another site, which is followed"
OUTSIDE["serving/"] = "requests, and a server that does not start; tests/serving"
OUTSIDE["demo/"] = "questions of visitors, and a demo that does not start; tests/demo"
ASKED = "a question of a client; tests/hubcode/test_decision.py"
WITHOUT = {
    "hubcode/decision_task_heads.py::HeadDecisionConfig._texts::state": ASKED,
    "hubcode/decision_task_heads.py::HeadDecisionConfig._texts::state#2": ASKED,
    "hubcode/decision_task_heads.py::HeadDecisionConfig.prepare_inputs::request": ASKED,
    "hubcode/decision_task_heads.py::_check::f'question {question.name!r}'": ASKED,
    "gguf_weights.py::require_gguf::where": PIP,
    "pretrained.py::_fetch::--gguf_file": "a hub out of reach, or a file that it has not",
    "training/convex_heads.py::fit_path::rows": "an argument between our own functions",
    "training/convex_heads.py::_axes::features": "a broken backbone; tests/training/test_convex_heads.py",
    "training/convex_heads.py::_Objective.solve::loss": "labels that no reader lets through; tests/training",
    "data/stores.py::no_room::cache_folder()": "a full disk; tests/data/test_stores.py follows it",
    "data/row_reader.py::RowReader.refuse::self.where": WRAPPED,
    "data/row_reader.py::RowReader.refuse_value::row": WRAPPED,
    "sources/hub_datasets.py::_missing::where": PIP,
    "errors.py::error_at::where": WRAPPED,
    "errors.py::least_problems::f'--{name}'": WRAPPED,
    "sources/excel.py::read_excel::path": PIP,
    "sources/table_files.py::read_parquet::path": PIP,
    "generators.py::load_generator::error.where": WRAPPED,
    "hubcode/loading_task_heads.py::_load_adapter::path#3": "a fault of PEFT: the fix upgrades it",
    "hubcode/pooling_task_heads.py::real_tokens::attention_mask": "an argument of a forward pass",
    "hubcode/pooling_task_heads.py::real_tokens::attention_mask#2": "an argument of a forward pass",
    "hubcode/pooling_task_heads.py::question_mean::loss input 'labels'": "an argument of a forward pass",
    "hubcode/pooling_task_heads.py::pool::pooling": "no config has another value",
    "models.py::_base_config::f'{path}/config.json'": WRAPPED,
    "loading_errors.py::as_our_errors::error.where": WRAPPED,
    **{f"repo_checks.py::{name}::where": HOSTILE for name in ("_invalid", "_malformed", "_untrusted")},
    "repo_checks.py::commit_of::path": "a cache that does not record the commit",
    "repo_checks.py::not_there::path#2": "a hub out of reach, or an id that it has not",
    "loading_errors.py::config_problem::config": "a field of another type, which no option can have",
    "reports/comparison_advice.py::_between::comparison": "an argument between our own functions",
    "reports/comparison_runs.py::run_comparison::--engines": WRAPPED,
    "hubs/base.py::Hub.resolve::repo_id": "a hub out of reach; tests/hubs/test_modelscope.py",
    "hubs/modelscope.py::ModelScope.__init__::f'--hub {self.name}'": PIP,
    "export/gguf.py::_verify::where": "what a comparison found; tests/export/test_gguf.py",
    "export/onnx.py::check_packages::onnx": PIP,
    "export/onnx.py::_trace::text_config": "a family that none traces, after an export",
    "export/stock.py::_convert::text_config": "no family of this transformers has another layout",
    "export/shared.py::check_difference::where": "what a comparison found; tests/export/test_stock.py",
    "tracking/open_trackers.py::track::where#2": PIP,
    "training/grpo_arguments.py::_evaluation_problems::f'--{name}'": CHECKED,
    "training/head_sweep.py::sweep_heads::sweep": "an argument between our own functions",
}


def in_scope() -> dict[str, tuple[int, int]]:
    """Every site of the package outside of `OUTSIDE`."""
    modules = [path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py"))]
    chosen = [name for name in modules if not name.startswith(tuple(OUTSIDE))]
    return {site: lines for name in chosen for site, lines in sites_of(name).items()}


def named_in(test: str) -> set[str]:
    """Every text of a test module that has the form of a site."""
    module = importlib.import_module(test)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr | ast.Constant):
            try:
                value = eval(compile(ast.Expression(node), test, "eval"), vars(module))  # of constants
            except NameError:  # of a local variable
                continue
            found |= {value} if isinstance(value, str) and SITE.fullmatch(value) else set()
    return found


@pytest.fixture(scope="module")
def followed() -> set[str]:
    return {site for test in TESTS for site in named_in(test)}


def test_every_refusal_has_a_test_of_its_fix_or_a_reason(followed: set[str]) -> None:
    """Name the site of a new refusal in one of `TESTS`, and type there what its message says."""
    assert sorted(in_scope().keys() - followed - WITHOUT.keys()) == []


def test_what_is_named_is_there(followed: set[str]) -> None:
    modules = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")]
    sites = {site for module in modules for site in sites_of(module)}
    assert sorted(followed - sites) == []
    assert sorted(WITHOUT.keys() - sites) == []
    assert sorted(WITHOUT.keys() & followed) == []
    assert all(any(site.startswith(place) for site in sites) for place in OUTSIDE)


def test_a_new_refusal_is_found(tmp_path: Path) -> None:
    path = tmp_path / "new.py"
    path.write_text(
        "def f(x):\n    raise TaskHeadError('--x', 'a', 'b', 'c')\n\n"
        "class G:\n    def g(self):\n        return [Problem(f'--{n}', '', '', '') for n in 'ab'], "
        "Problem(f'--{n}', '', '', '')\n\n"
        "def h(x):\n    return not_one_of(('--y', x, 'ab'), ('--z', x, 'ab'))\n"
    )
    assert {site.split("::", 1)[1]: lines for site, lines in sites_of(str(path)).items()} == {
        "f::--x": (2, 2),
        "G.g::f'--{n}'": (6, 6),
        "G.g::f'--{n}'#2": (6, 6),
        "h::--y": (9, 9),
        "h::--z": (9, 9),
    }
