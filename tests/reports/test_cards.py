"""Model cards: escaping of 200 hostile strings in every free-text field, sections, facts of the owner."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from rendered_card import Rendered

from qwen_task_heads import build
from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.text_datasets import TextSets
from qwen_task_heads.data.title_datasets import TitleSets
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.reports.card_facts import NOTHING_STATED, CardFacts, Trained, state_facts
from qwen_task_heads.reports.cards import (
    FOLDER,
    licence_fields,
    metadata,
    render,
    with_form,
    with_parity,
)
from qwen_task_heads.reports.markdown import code, escape, fenced, format_value, link, one_line
from qwen_task_heads.reports.text_card import text_card
from qwen_task_heads.reports.text_report import TextRun
from qwen_task_heads.reports.title_card import accuracy_rows, title_card
from qwen_task_heads.reports.title_report import Run

PIECES = (
    "---", "\n---\n", "```", "`", "|", "<script>alert(1)</script>", "<img src=x onerror=alert(1)>",
    "{{ 7*7 }}", "{% raw %}", "![x](http://example.org/x.png)", "[a](javascript:alert(1))", "# head",
    "## Parity", "key: value", "'", '"', "\\", "\r\n", "\t", "\u2028", "\x85", "&lt;", "- item", "null",
    "yes", "1e3", "<!-- -->", "~~~", "休", "%s", "!!python/object:os.system", "a\x00b", "\u202etxt.exe\u202c",
    "\u2066x\u2069", "x" * 3000, "https://evil.example/a", "www.evil.example", "me@evil.example",
    "<https://evil.example>", "👩‍👩‍👧", "| a | b |\n|---|---|\n| c | d |", "1. one", "2) two", "$$x$$",
    "~~gone~~", "**bold** _it_", "\ud800", "\ufeff", "license: evil", "...", "[ref]: http://evil.example",
    "[^1]", "$(id)", "==", "+ plus", "&#60;b&#62;", "</table>", "\\\\", "a\\|b",
)  # fmt: skip
SINGLES = [*filter(one_line, PIECES), *(f"before {piece} after" for piece in PIECES)]
COUPLES = [f"{first} {second}{first}" for first, second in itertools.product(PIECES, PIECES)]
COUPLES = [text for text in COUPLES if one_line(text)]
HOSTILE = [*SINGLES, *COUPLES[:: len(COUPLES) // (200 - len(SINGLES))]][:200]
NAME = 200  # characters that a file name can have
ENTRY = {"value": 0.61234, "low": 0.55, "high": None, "n": 1841, "n_groups": 220}
BOTH = {**ENTRY, "high": 0.6781}
REWARD = {"reward_mean": 0.1, "reward_std": 1.5, "reward_length_mean": 40.0, "reward_length_slope": 0.01}
NAMED = ("pair_accuracy", "log_loss", "ece", "length_spearman")
CLASSES = ("accuracy", "macro_f1", "weighted_f1", "log_loss", "ece")
RAN = {"seconds": 12.3, "resumed": False, "device": "CPU (1 thread)", "processes": 1}
SETS = {
    name: {"pairs": 9, "rows": 9, "sha256": "0" * 64, "cut": name == "dev"}
    for name in ("train", "dev", "test")
}


@pytest.fixture(scope="module")
def models(bases):
    """Return an untrained title scorer and an untrained classifier: a card reads their configs only."""
    labels = ["a", "b", "c"]
    found = build(bases["qwen2"]), build(bases["qwen2"], task="pooled_classifier", labels=labels)
    return tuple(Trained.of(model) for model in found)


def record(text: str, card: CardFacts | None = None) -> dict[str, object]:
    """Return the fields of both run records; the address has more words, else it would be a link."""
    facts = card or CardFacts(
        license=f"other:x{text}",
        dataset_license=text,
        dataset_url=f"https://x {text} !",
        intended_use=text,
        citation=text,
        language="en",
    )
    return {
        "settings": {"dataset_name": text, "test_dataset": text, text: text},
        "log_history": [],
        "seconds": 12.3,
        "seed": 0,
        "backbone": text[:NAME],  # a model was loaded by it
        "card": facts,
    }


def title_page(model, text: str, *, prompt: str = "", card: CardFacts | None = None) -> str:
    pair = PairExample(chosen="a", rejected="b", prompt=prompt)
    sets = TitleSets(train=[pair], groups=[], dev=[pair], test=[pair], lines=[text], dev_was_cut=True)
    metrics = {
        "train": {"pairs": 9, **RAN, "device": text},
        "data": SETS,
        "test": {"this model": dict.fromkeys(NAMED, BOTH), text: {"pair_accuracy": ENTRY}},
        "notes": [text],
        "reward": REWARD,
    }
    model.config.backbone_revision = text
    run = Run(sets=sets, **record(text, card))
    return title_card(model, Path("runs", text), metrics, "test", run, plots={"Training": "training.png"})


def text_page(model, text: str, *, card: CardFacts | None = None) -> str:
    row = TextExample(text="a", target=0)
    names = (one_line(text) or "x", "b", "c")
    sets = TextSets(
        train=[row],
        dev=[row],
        test=[row],
        problem_type="single_label_classification",
        labels=LabelMap(names, descriptions=(text, "", "")),
        lines=[text],
        dev_was_cut=True,
    )
    own = {"label": text, "precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 4}
    metrics = {
        "train": {"rows": 9, **RAN},
        "data": SETS,
        "test": {
            "this model": {**dict.fromkeys(CLASSES, BOTH), "per_class": [own] * 3},
            text: {"accuracy": BOTH},
        },
        "notes": [text],
    }
    run = TextRun(sets=sets, cut=text, **record(text, card))
    return text_card(model, Path("runs", text), metrics, "test", run, plots={})


@pytest.mark.parametrize("kind", ["titles", "texts"])
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_hostile_strings_are_escaped(models, kind, every):
    assert len(HOSTILE) == len(set(HOSTILE)) == 200
    make, model = ((title_page, models[0]), (text_page, models[1]))[kind == "texts"]
    calm = Rendered(make(model, "calm"))
    for text in HOSTILE[(kind == "texts") % every :: every]:  # the two cards use different strings
        shown, card = one_line(text), make(model, text)
        # one front matter with the values
        assert card.startswith("---\n")
        assert len(re.findall(r"^---\s*$", card, re.MULTILINE)) == 2, text
        front = ModelCard(card, ignore_metadata_errors=False).data.to_dict()
        index = front["model-index"][0]
        assert index["name"] == one_line(Path("runs", text).name)
        assert index["results"][0]["dataset"]["name"] == shown
        assert index["results"][0]["metrics"][0]["value"] == 0.6123
        assert front["base_model"] == one_line(text[:NAME])
        licence = licence_fields(f"other:x{text}")
        assert {name: front[name] for name in licence} == licence
        assert set(front) <= {
            "language",
            "license",
            "license_name",
            "library_name",
            "metrics",
            "pipeline_tag",
            "tags",
            "base_model",
            "base_model_relation",
            "model-index",
        }
        # the same tags as in a calm card: no HTML, link, image, table or list of the text
        page = Rendered(card)
        assert page.tags == calm.tags, text
        assert page.heading == one_line(Path("runs", text).name)
        assert not re.search(r"://|www\.|\w@\w", re.sub(r"https://doi\.org/\S+", "", " ".join(page.texts))), (
            text
        )
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", card), text
        # the same metrics
        cells = page.titles["Evaluation"][0]
        assert shown in cells[2] + cells[0]
        if kind == "titles":
            assert cells[1] == ["this model", "0.612", "0.550 to 0.678", "1,841", "220"]
            assert cells[2][1:] == ["0.612", "0.550 to –", "1,841", "220"]
        else:
            assert cells[1] == ["accuracy", *["0.612 (0.550 to 0.678)"] * 2]
            assert page.titles["Labels"][0][1] == [
                "0",
                shown,
                shown or "–",
                "0.500",
                "0.250",
                "0.333",
                "4",
            ]
        assert [shown, shown] in page.titles["Training"][0]


@pytest.mark.parametrize("text", HOSTILE[::9])
def test_parity_and_export_format_change_no_other_section(models, text):
    card = title_page(models[0], text)
    rows = [{"artefact": text, "largest_difference": 8.1e-07, "bound": 1e-4, "same": True, "none": None}]
    verified = with_parity(with_parity(card, [], [text]), rows, [text, "a note"])
    before, after = Rendered(card), Rendered(verified)
    (table,) = after.titles["Parity"]
    assert table[0] == ["artefact", "largest difference", "bound", "same", "none"]
    assert table[1] == [one_line(text), "8.1e-07", "0.0001", "yes", "–"]
    assert {k: v for k, v in after.titles.items() if k != "Parity"} == before.titles
    assert card.split("---\n", 2)[1] == verified.split("---\n", 2)[1]
    merged = with_form(verified, "merged")
    assert {k: v for k, v in Rendered(merged).titles.items()} == after.titles
    assert ModelCard(merged).data.base_model_relation == "finetune"


def test_the_card_of_a_merged_or_stock_model_names_its_format(models):
    card = text_page(replace(models[1], is_adapter=True), "calm")
    assert with_form(card, "saved") == card
    assert "PEFT's loaders on the base in a stock class" in card
    merged, stock = with_form(card, "merged"), with_form(card, "stock")
    assert "PEFT" not in merged + stock
    assert "\nA full model on `calm`" in with_form(text_page(models[1], "calm"), "merged")
    assert "\nA full model, merged from an adapter, on `calm`" in merged
    assert 'pipeline("text-classification", model=".", trust_remote_code=True)' in merged
    assert "\nA full model in a stock class of transformers, on `calm`" in stock
    assert 'classify = pipeline("text-classification", model=".")\nclassify(["A text"], top_k=None)' in stock
    assert "trust_remote_code" not in stock
    for prompt, asked in (
        ("", '["A plain title", "Another title"]'),
        ("An article", '{"text": "The text", "text_pair": "A plain title"}'),
    ):
        titles = with_form(title_page(models[0], "calm", prompt=prompt), "stock")
        assert f'function_to_apply="none")\nscore({asked})\n' in titles


def test_the_card_of_a_repo_with_onnx_files_has_their_code(models):
    rows = [{"artefact": name, "agreement": "100.0%"} for name in ("adapter", "onnx", "onnx_int8")]
    card = text_page(models[1], "calm")
    assert "onnxruntime" not in with_parity(card, rows[:1])
    once = with_parity(card, rows[:2])
    branch = with_parity(card.replace('"."', '"me/t", revision="v9"'), rows[:2])
    assert 'snapshot_download("me/t", revision="v9", ign' in branch
    assert "int8" not in once
    assert "the softmax over the logits" in once
    both = with_parity(once, rows)
    assert both.count("## ONNX\n") == both.count("InferenceSession") == 1
    assert both.index("## ONNX\n") < both.index("## Parity\n")
    assert "`onnx/model_int8.onnx`" in both
    assert 'batch = tokenizer(["A text"], padding=True, truncation=True' in both
    assert {k: v for k, v in Rendered(both).titles.items() if k != "Parity"} == Rendered(card).titles
    pairs = with_parity(with_form(title_page(models[0], "calm", prompt="An article"), "stock"), rows)
    asked = 'tokenizer(["The text"], ["A plain title"], padding=True, truncation="only_first", '
    assert asked in with_parity(title_page(models[0], "calm", prompt="An article"), rows)
    assert 'tokenizer(["The text"], ["A plain title"], ' in pairs
    assert "of two titles, P(A preferred)" in pairs


def evaluated(model, *, ours: float = 0.61234, baseline: float = 0.5, **changes):
    """Return the card of a classifier with one baseline and three evaluations on dev in its log."""
    row = TextExample(text="a", target=0)
    sets = TextSets(
        train=[row],
        dev=[row],
        test=[row],
        problem_type="single_label_classification",
        labels=LabelMap(("a", "b", "c")),
        lines=[],
        dev_was_cut="dev_dataset" not in changes,
        test_was_cut="test_dataset" not in changes,
    )
    own = {"label": "a", "precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 4}
    figures = {**{name: {**BOTH, "value": ours} for name in CLASSES}, "per_class": [own] * 3}
    found = {
        "this model": figures,
        "a | baseline": {"accuracy": {**BOTH, "value": baseline}},
        "none": {"accuracy": {**ENTRY, "value": None}},
    }
    metrics = {
        "train": {"rows": 9, **RAN},
        "data": SETS,
        "dev": {"this model": dict.fromkeys(CLASSES, BOTH)},
        "test": found,
        "notes": [],
        "verdict": changes.pop("verdict", None),
        "lookup": changes.pop("lookup", {}),
    }
    fields = record("calm")
    fields["log_history"] = [
        {"step": 10, "loss": 1.0},
        *({"step": step, "eval_accuracy": value} for step, value in ((10, 0.4), (20, 0.612), (30, 0.612))),
    ]
    fields["settings"] = {"metric_for_best_model": "eval_accuracy", "greater_is_better": True}
    picked = changes.pop("picked", True)
    fields["settings"] |= changes
    return text_card(model, Path("a"), metrics, "test", TextRun(sets=sets, picked=picked, **fields), plots={})


@pytest.mark.parametrize(
    ("word", "low", "sentence"),
    [
        ("above", 0.02, "this model is above it: +0.112 (95% paired interval +0.020 to +0.200)."),
        ("level", -0.02, "this model is **level with it**: +0.112 (95% paired interval -0.020 to +0.200)."),
        ("below", None, "this model is **below it**: +0.112 (no interval)."),
    ],
)
def test_the_comparison_with_the_baselines_is_a_sentence(models, word, low, sentence):
    found = {
        "split": "test",
        "metric": "accuracy",
        "baseline": "a | baseline",
        "value": 0.5,
        "difference": 0.1123,
        "low": low,
        "high": None if low is None else 0.2,
        "word": word,
    }
    page = evaluated(models[1], verdict=found)
    assert f"The best baseline on test is “a \\| baseline” (accuracy 0.500); {sentence}" in page
    assert "Another baseline" not in page
    other = {**found, "baseline": "TF-IDF, linear", "word": "above", "low": 0.02, "high": 0.2}
    page = evaluated(models[1], verdict={**found, "beside": other})
    assert "Another baseline is “TF-IDF, linear” (accuracy 0.500); this model is above it" in page


def test_the_card_states_the_coverage_of_the_lookup(models):
    report = {"coverage": 0.9, "rows": 10, "known": 9, "accuracy": 1.0, "chance": 0.5, "leaks": True}
    assert "lookup of train rows knows 9 of 10 rows of test (90.0%)" in evaluated(
        models[1], lookup={"test": report}
    )
    assert "lookup" not in evaluated(models[1], lookup={"test": {**report, "known": 0}})


def test_the_selected_checkpoint_is_stated_if_log_and_metrics_agree(models):
    step = "by a hash: step 20, with accuracy 0.612 there."
    assert step in evaluated(models[1])
    assert step in evaluated(models[1], metric_for_best_model="accuracy")
    without_step = "from the training data by a hash."
    for other in ({"metric_for_best_model": "eval_loss"}, {"metric_for_best_model": None}):
        assert without_step in evaluated(models[1], **other)
    assert "no checkpoint was selected" in evaluated(models[1], picked=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BOTH, "value", 0.55)  # not the best metric of the log
        assert without_step in evaluated(models[1])


def test_settings_without_effect_are_omitted(models):
    without_effect = {
        "mix_ratio": 2.0,
        "window_aggregation": "mean",
        "window_overlap": 8,
        "truncation": "head",
        "head": "linear",
        "head_activation": "relu",
        "streaming": False,
        "token_dropout": 0.0,
        "min_impressions": 0,
        "max_p_value": 1.0,
        "label_smoothing_factor": 0.0,
        "dev_fraction": 0.1,
        "dev_dataset": "dev.jsonl",
        "test_fraction": 0.15,
        "test_dataset": "test.jsonl",
    }
    in_effect = {
        "mix_ratio": 2.0,
        "mix": "more.jsonl",
        "window_aggregation": "mean",
        "window_overlap": 8,
        "truncation": "windows",
        "head": "mlp",
        "head_activation": "relu",
        "streaming": True,
        "token_dropout": 0.1,
        "min_impressions": 9,
        "max_p_value": 0.1,
        "label_smoothing_factor": 0.1,
        "dev_fraction": 0.1,
        "test_fraction": 0.15,
    }
    always = {"setting", "metric_for_best_model"}

    def shown(**settings):
        (table,) = Rendered(evaluated(models[1], **settings)).titles["Training"]
        return {row[0] for row in table}

    assert shown(**without_effect) == always | {"truncation", "head", "dev_dataset", "test_dataset"}
    assert shown(**in_effect) == always | set(in_effect)
    assert shown(picked=False) == {"setting"}


def test_the_card_of_a_generative_classifier_names_its_loader(models):
    card = evaluated(replace(models[1], answers=True, is_adapter=True))
    assert "`LabelScorer.predict(texts, abstain=0.5)` can abstain" in card
    assert 'LabelScorer.from_pretrained(".")\nscorer.predict(["A text"])' in card
    assert "`Scorer" not in card
    assert "A new\nversion" not in card
    assert "A new\nversion of the following files was downloaded" in evaluated(models[1])


def test_unstated_facts_are_not_inferred(models):
    run = {**record("calm"), "card": CardFacts()}
    pair = PairExample(chosen="a", rejected="b")
    sets = TitleSets(train=[pair], groups=[], dev=[pair], test=[], lines=[], dev_was_cut=False)
    metrics = {
        "train": {"pairs": 1, **RAN},
        "data": SETS,
        "dev": {"this model": dict.fromkeys(NAMED, BOTH)},
        "notes": [],
        "reward": REWARD,
    }
    card = title_card(models[0], Path("a"), metrics, "dev", Run(sets=sets, **run), plots={})
    assert "Licence: not stated." in card
    assert "Licence of the data: not stated." in card
    assert not {"license", "language", "datasets"} & set(yaml.safe_load(card.split("---\n", 2)[1]))


def test_only_hub_ids_are_datasets_of_the_metadata(models):
    for name, hub, expected in (
        ("me/titles", "huggingface", ["me/titles"]),
        ("me/titles", "modelscope", None),
        ("titles.jsonl", "huggingface", None),
        ("../titles", "huggingface", None),
    ):
        found = {**record("calm"), "settings": {"dataset_name": name, "hub": hub}, "card": CardFacts()}
        pair = PairExample(chosen="a", rejected="b")
        sets = TitleSets(train=[pair], groups=[], dev=[pair], test=[pair], lines=[], dev_was_cut=False)
        metrics = {
            "train": {"pairs": 1, **RAN},
            "data": SETS,
            "test": {"this model": dict.fromkeys(NAMED, BOTH)},
            "notes": [],
            "reward": REWARD,
        }
        card = title_card(models[0], Path("a"), metrics, "test", Run(sets=sets, **found), plots={})
        front = ModelCard(card).data.to_dict()
        assert front.get("datasets") == expected, name
        for repo in front.get("datasets", []):
            validate_repo_id(repo)


@pytest.mark.parametrize("page", [title_page, text_page])
@pytest.mark.parametrize("before", [{}, {name: "old" for name in ("dataset_license", "intended_use")}])
def test_facts_stated_when_publishing_equal_those_stated_for_the_run(models, tmp_path, page, before):
    model = models[page is text_page]
    facts = CardFacts(
        license="other:Ours | v1",
        language=["zh", "en"],
        dataset_license="CC BY 4.0. With credit",
        dataset_url="https://example.org/a",
        dataset_id="me/data",
        intended_use="For | tests. Only \\1.",
        citation="@misc{x,\n  title={A \\g<0> title}\n}",
    )
    of_run = CardFacts(license="mit", language="fr", citation="@misc{old}", **before)
    expected = ModelCard(page(model, "a", card=facts))
    (tmp_path / "README.md").write_text(page(model, "a", card=of_run), encoding="utf-8")
    manifest = {"seed": 1, "settings": {"license": "mit", "citation": "@misc{old}"}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    state_facts(tmp_path, NOTHING_STATED, named="runs/a")
    assert "license: mit" in (tmp_path / "README.md").read_text("utf-8")
    state_facts(tmp_path, facts, named="runs/a")
    found = ModelCard((tmp_path / "README.md").read_text("utf-8"))
    assert found.text.split() == expected.text.split()
    for name in ("license", "license_name", "language", "model-index"):
        assert found.data.to_dict()[name] == expected.data.to_dict()[name]
    assert "me/data" in found.data.datasets
    settings = json.loads((tmp_path / "manifest.json").read_text())["settings"]
    assert (settings["license"], settings["language"]) == ("other:Ours | v1", ["zh", "en"])
    state_facts(tmp_path, CardFacts(dataset_license="MIT", license="mit"), named="runs/a")
    once_more = (tmp_path / "README.md").read_text("utf-8")
    assert "Licence of the data: MIT. Source: <https://example.org/a>\n" in once_more
    assert "license_name" not in once_more


def test_a_card_without_the_lines_of_facts_is_refused_with_all_of_them(tmp_path):
    facts = CardFacts(license="mit", intended_use="x", dataset_url="https://x.org", citation="@misc{x}")
    with pytest.raises(TaskHeadsError, match="license, dataset_url") as caught:
        state_facts(tmp_path, facts, named="runs/a")
    [problem] = caught.value.problems
    assert (problem.where, problem.code) == ("runs/a/README.md", "path-not-found")
    (tmp_path / "README.md").write_text("# My own words\n")
    with pytest.raises(TaskHeadsError, match="license") as caught:
        state_facts(tmp_path, facts, named="runs/a")
    assert [problem.code for problem in caught.value.problems] == ["file-format"] * 4
    assert {problem.where for problem in caught.value.problems} == {"runs/a/README.md"}
    assert (tmp_path / "README.md").read_text() == "# My own words\n"


def test_intended_use_is_stated_on_a_card_of_version_0_1_0(tmp_path):
    """Its section was named "Intended use and limits", with the limitations as a list."""
    old = "# a\n\n## Intended use and limits\n\nIt is meant for texts.\n\n- A limit.\n"
    (tmp_path / "README.md").write_text(old)
    state_facts(tmp_path, CardFacts(intended_use="For news."), named="runs/a")
    card = (tmp_path / "README.md").read_text()
    assert "## Intended use and limits\n\nFor news.\n\nIt is meant for texts.\n\n- A limit.\n" in card


def test_invalid_facts_are_refused_together():
    with pytest.raises(TaskHeadsError) as caught:
        CardFacts(
            license="apache2", language=("en", "English", "en_US"), dataset_url="nonsense", dataset_id="no id"
        )
    names = ["license", "language", "language", "dataset_url", "dataset_id"]
    assert [problem.where for problem in caught.value.problems] == names
    assert [problem.fix for problem in caught.value.problems[:2]] == [
        "give license apache-2.0",
        "give language en",
    ]
    for unknown in ("Ours", "other:", "other: "):
        with pytest.raises(TaskHeadsError, match=r"an id of the hub's list, or other:NAME"):
            CardFacts(license=unknown)
    for known in ("Apache-2.0", "other", "other:Ours, v1!", "", None):
        assert CardFacts(license=known).license == known
    assert CardFacts(language="zh").language == ("zh",)


def test_licences_are_ids_or_other():
    assert licence_fields(None) == licence_fields(" ") == {}
    assert licence_fields("CC-BY-4.0") == {"license": "cc-by-4.0"}
    assert licence_fields("other: Ours, v1!") == {"license": "other", "license_name": "ours-v1"}
    assert licence_fields("other:proprietary") == {"license": "other", "license_name": "proprietary"}
    assert licence_fields("apache-2") == {"license": "other", "license_name": "apache-2"}
    assert licence_fields("Llama3.1") == {"license": "llama3.1"}
    assert licence_fields("other") == {"license": "other"}


def test_spans_links_and_blocks():
    assert escape("a_b 0.5 R&D 1. x") == "a_b 0.5 R&D 1. x"
    assert escape("1. x") == r"1\. x"
    assert code("a``b`") == "``` a``b` ```"
    assert link("https://example.org/a?b=c") == "<https://example.org/a?b=c>"
    for url in ("javascript:alert(1)", "https://a b", "http://a/<b>", "ftp://x", "https://x/\u202e"):
        assert not link(url).startswith("<") or url.endswith("\u202e"), url
    assert fenced("@a{x,\n  y = {`````}\n---\n# b}") == "``````\n@a{x,\n  y = {`````}\n  ---\n  # b}\n``````"


def test_values_have_fixed_digits_and_none_is_a_dash():
    assert format_value(0.61234) == "0.612"
    assert format_value(0.6, digits=1) == "0.6"
    assert format_value(-0.0001) == "0.000"
    assert format_value(None) == "–"
    (row,) = accuracy_rows({"x": ENTRY})
    assert row == {
        "name": "x",
        "value": "0.612",
        "low": "0.550",
        "high": "–",
        "n": "1,841",
        "n_groups": "220",
    }


def test_a_missing_field_is_an_error():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render("title_scorer", metadata="")


def test_the_metadata_has_a_base_of_the_hub():
    front = {
        "name": "a",
        "relation": "adapter",
        "task": "text-ranking",
        "tags": ["title-scorer"],
        "dataset": "d",
        "dataset_type": "pairs",
        "split": "test",
        "metrics": [("accuracy", "pair accuracy", 0.61234)],
    }
    read = yaml.safe_load(metadata(base="Qwen/Qwen2.5-7B", **front))
    assert read["base_model"] == "Qwen/Qwen2.5-7B"
    assert read["base_model_relation"] == "adapter"
    assert "base_model" not in metadata(base=None, **front)


def test_parity_is_appended_to_a_card_without_the_section():
    assert with_parity("# a\n", []).startswith("# a\n\n## Parity\n\nEach artefact")
    itself = with_parity("# a\n", [], against=FOLDER)
    assert "trained model" not in itself
    assert "no answers of the training run were recorded" in itself
