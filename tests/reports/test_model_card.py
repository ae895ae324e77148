"""Model cards: escaping of 200 hostile strings in every free-text field, sections, facts of the owner."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from problem_assertions import raises_problem
from rendered_card import Rendered

from qwen_task_heads import build
from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.data.text_datasets import TextSets
from qwen_task_heads.data.title_datasets import TitleSets
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.export.servers import RUN_WITH, Served
from qwen_task_heads.hubcode.hashes_task_heads import hash_files, write_manifest
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.reports.card_facts import NOTHING_STATED, CardFacts, licence_fields
from qwen_task_heads.reports.finishing import FinishedTraining, Trained, describe_run
from qwen_task_heads.reports.kept_card import kept_card
from qwen_task_heads.reports.markdown import code, escape, fenced, format_value, link, one_line
from qwen_task_heads.reports.model_card import FOLDER, model_card, render
from qwen_task_heads.reports.records import RunRecord, write_json
from qwen_task_heads.reports.title_card import accuracy_rows

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
GOLDEN = Path(__file__).parents[1] / "golden" / "0.1"
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


def training(text: str, sets: Any, *, facts: CardFacts | None = None, **changes: Any) -> FinishedTraining:
    """Return a training with a text in every field; the address has more words, else it would be a link."""
    facts = facts or CardFacts(
        license=f"other:x{text}",
        dataset_license=text,
        dataset_url=f"https://x {text} !",
        intended_use=text,
        citation=text,
        language="en",
    )
    settings = {"dataset_name": text, "test_dataset": text, text: text}
    fields = {
        "settings": {**settings, **facts.stated()},
        "log_history": [],
        "seconds": 12.3,
        "seed": 0,
        "backbone": text[:NAME],  # a model was loaded by it
    }
    return FinishedTraining(sets=sets, **{**fields, **changes})


def title_record(
    model: Trained, text: str, *, prompt: str = "", facts: CardFacts | None = None, **changes: Any
) -> RunRecord:
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
    run, plots = training(text, sets, facts=facts, **changes), {"Training": "training.png"}
    return describe_run(model, run, name=Path("runs", text).name, metrics=metrics, plots=plots)


def text_record(model: Trained, text: str, *, facts: CardFacts | None = None) -> RunRecord:
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
        "problem_type": "single_label_classification",
        "labels": list(names),
        "train": {"rows": 9, **RAN},
        "data": SETS,
        "test": {
            "this model": {**dict.fromkeys(CLASSES, BOTH), "per_class": [own] * 3},
            text: {"accuracy": BOTH},
        },
        "notes": [text],
    }
    run = training(text, sets, facts=facts, truncation=text)
    return describe_run(model, run, name=Path("runs", text).name, metrics=metrics, plots={})


@pytest.mark.parametrize("kind", ["titles", "texts"])
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_hostile_strings_are_escaped(models, kind, every):
    assert len(HOSTILE) == len(set(HOSTILE)) == 200
    make, model = ((title_record, models[0]), (text_record, models[1]))[kind == "texts"]
    calm = Rendered(model_card(make(model, "calm")))
    for text in HOSTILE[(kind == "texts") % every :: every]:  # the two cards use different strings
        shown, card = one_line(text), model_card(make(model, text))
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
    record = title_record(models[0], text)
    rows = [{"artefact": text, "largest_difference": "8.1e-07", "bound": "1.0e-04"}]
    card, verified = model_card(record), model_card(record, parity=rows)
    before, after = Rendered(card), Rendered(verified)
    (table,) = after.titles["Parity"]
    assert table[0] == ["artefact", "largest difference", "bound"]
    assert table[1] == [one_line(text), "8.1e-07", "1.0e-04"]
    assert {k: v for k, v in after.titles.items() if k != "Parity"} == before.titles
    assert card.split("---\n", 2)[1] == verified.split("---\n", 2)[1]
    merged = model_card(replace(record, form="merged"), parity=rows)
    assert Rendered(merged).titles == after.titles
    assert ModelCard(merged).data.base_model_relation == "finetune"


def test_the_card_of_a_merged_or_stock_model_names_its_format(models):
    record = text_record(replace(models[1], is_adapter=True), "calm")
    assert "PEFT's loaders on the base in a stock class" in model_card(record)
    merged, stock = (model_card(replace(record, form=form)) for form in ("merged", "stock"))
    assert "PEFT" not in merged + stock
    assert "\nA full model on `calm`" in model_card(text_record(models[1], "calm"))
    assert "\nA full model, merged from an adapter, on `calm`" in merged
    assert 'pipeline("text-classification", model=".", trust_remote_code=True)' in merged
    assert "\nA full model in a stock class of transformers, on `calm`" in stock
    assert 'classify = pipeline("text-classification", model=".")\nclassify(["A text"], top_k=None)' in stock
    assert "trust_remote_code" not in stock
    gguf = model_card(replace(record, form="gguf"), repo_id="me/it")
    assert "\nA full model in a GGUF file for llama.cpp, on `calm`" in gguf
    assert 'AutoTokenizer.from_pretrained("me/it")' in gguf
    assert "trust_remote_code" not in gguf
    assert "\nvalues = answer" in gguf
    titles = model_card(replace(title_record(models[0], "calm"), form="gguf"))
    assert "\n*values, reference = answer" in titles
    for prompt, asked in (
        ("", '["A plain title", "Another title"]'),
        ("An article", '{"text": "The text", "text_pair": "A plain title"}'),
    ):
        titles = model_card(replace(title_record(models[0], "calm", prompt=prompt), form="stock"))
        assert f'function_to_apply="none")\nscore({asked})\n' in titles


def test_a_merged_generative_classifier_has_its_own_loader(models):
    record = text_record(replace(models[1], is_adapter=True, is_generative=True), "calm")
    merged = model_card(replace(record, form="merged"), repo_id="me/it")
    assert 'LabelScorer.from_pretrained("me/it")' in merged
    assert "AutoModelForSequenceClassification" not in merged
    assert "A full model, merged from an adapter, on `calm`" in merged


def test_the_card_of_a_repo_names_it_and_its_branch(models):
    record = text_record(models[1], "calm")
    card = model_card(record, repo_id="me/t", revision="v9", rows=False)
    page, data = Rendered(card), ModelCard(card).data
    assert (page.heading, data.model_name) == ("me/t", "me/t")
    assert 'from_pretrained("me/t", revision="v9", trust_remote_code=True)' in card
    assert '"."' not in card
    assert ("errors.md" in card, "errors.md" in model_card(record, repo_id="me/t")) == (False, True)
    assert "modelscope" not in card
    there = model_card(record, repo_id="me/t", hub="modelscope", revision="v9")
    assert 'folder = snapshot_download("me/t", revision="v9")' in there


def section_on_servers(card):
    return card.partition("## Serving")[2].partition("\n## ")[0]


HEAD = Served(architecture="PooledClassifier", dtype="bfloat16")
STOCK = Served(architecture="Qwen2ForSequenceClassification", max_length=40)


@pytest.mark.parametrize(
    ("form", "served", "there", "absent"),
    [
        ("saved", HEAD, ["qth serve --model me/t\n", "VLLM_PLUGINS=qwen_task_heads vllm serve me/t "], []),
        ("merged", HEAD, ["--dtype bfloat16\n", f"run with {RUN_WITH['vllm']}"], ["truncate_prompt"]),
        ("stock", STOCK, ["vllm serve me/t ", "-len 40\n", '"truncate_prompt_tokens": -1'], ["qth serve"]),
        ("saved", replace(HEAD, is_adapter=True), ["qth serve", "--form merged"], ["vllm serve"]),
        ("saved", replace(HEAD, bidirectional=True), ["qth serve", "both sides"], ["vllm serve"]),
        ("saved", None, [], ["## Serving"]),
    ],
)
def test_the_section_on_servers_has_the_commands_of_the_form(models, form, served, there, absent):
    record = replace(text_record(models[1], "calm"), form=form)
    card = model_card(record, repo_id="me/t", served=served)
    assert [part for part in there if part not in card] == []
    assert [part for part in absent if part in card] == []
    section = section_on_servers(card)
    assert section.count("curl ") == (served is not None) * (1 + (form != "stock" and "vllm serve" in card))
    for line in section.splitlines():
        if line.startswith("curl "):
            words = shlex.split(line)
            assert json.loads(words[words.index("-d") + 1])["model"] == "me/t"


def test_the_section_on_servers_names_hub_branch_and_pairs(models):
    record = replace(text_record(models[1], "calm"), has_pairs=True)
    card = model_card(record, repo_id="me/t", hub="modelscope", revision="v9", served=HEAD)
    assert "qth serve --model me/t --hub modelscope --revision v9\n" in card
    assert "vllm serve FOLDER " in card
    assert '"text_pair": "Another text"' in card
    card = model_card(record, repo_id="me/t", revision="v9", served=HEAD)
    assert "vllm serve me/t --runner pooling --dtype bfloat16 --revision v9\n" in card
    stock = model_card(replace(record, form="stock"), repo_id="me/t", served=STOCK)
    assert "vllm serve" not in stock
    generative = replace(record, is_generative=True)
    assert "qth predict --model me/t " in model_card(generative, repo_id="me/t")
    # the card of a folder is named, also if it was edited
    here = model_card(record, served=HEAD)
    assert "vllm serve . " in here
    named = kept_card(f"{here}\nMy words.\n", repo_id="me/t", hub="huggingface", facts=NOTHING_STATED)
    section = named.partition("## Serving")[2].partition("\n## ")[0]
    assert (
        section
        == model_card(record, repo_id="me/t", served=HEAD).partition("## Serving")[2].partition("\n## ")[0]
    )


def test_the_card_of_a_repo_with_onnx_files_has_their_code(models):
    record = text_record(models[1], "calm")
    assert "onnxruntime" not in model_card(record)
    once = model_card(record, onnx=True)
    branch = model_card(record, onnx=True, repo_id="me/t", revision="v9")
    assert 'snapshot_download("me/t", revision="v9", ign' in branch
    assert "int8" not in once
    assert "the softmax over the logits" in once
    both = model_card(record, onnx=True, int8=True)
    assert both.count("## ONNX\n") == both.count("InferenceSession") == 1
    assert both.index("## ONNX\n") < both.index("## Parity\n")
    assert "`onnx/model_int8.onnx`" in both
    assert 'batch = tokenizer(["A text"], padding=True, truncation=True' in both
    assert Rendered(both).titles == Rendered(model_card(record)).titles
    titles = title_record(models[0], "calm", prompt="An article")
    asked = 'tokenizer(["The text"], ["A plain title"], padding=True, truncation="only_first", '
    for form in ("saved", "stock"):
        card = model_card(replace(titles, form=form), onnx=True)
        assert asked in card
        assert "of two titles, P(A preferred)" in card


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
    data = {
        name: {**entry, "cut": name in ("dev", "test") and f"{name}_dataset" not in changes}
        for name, entry in SETS.items()
    }
    metrics = {
        "problem_type": "single_label_classification",
        "labels": ["a", "b", "c"],
        "train": {"rows": 9, **RAN},
        "data": data,
        "dev": {"this model": dict.fromkeys(CLASSES, BOTH)},
        "test": found,
        "notes": [],
        "verdict": changes.pop("verdict", None),
        "lookup": changes.pop("lookup", {}),
    }
    log = [
        {"step": 10, "loss": 1.0},
        *({"step": step, "eval_accuracy": value} for step, value in ((10, 0.4), (20, 0.612), (30, 0.612))),
    ]
    picked = changes.pop("picked", True)
    settings = {"metric_for_best_model": "eval_accuracy", "greater_is_better": True, **changes}
    run = training("calm", sets, settings=settings, log_history=log, picked=picked)
    return model_card(describe_run(model, run, name="a", metrics=metrics, plots={}))


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
    card = evaluated(replace(models[1], is_generative=True, is_adapter=True))
    assert "`LabelScorer.predict(texts, abstain=0.5)` can abstain" in card
    assert 'LabelScorer.from_pretrained(".")\nscorer.predict(["A text"])' in card
    assert "`Scorer" not in card
    assert "A new\nversion" not in card
    assert "A new\nversion of the following files was downloaded" in evaluated(models[1])


def test_unstated_facts_are_not_inferred(models):
    card = model_card(title_record(models[0], "calm", facts=NOTHING_STATED))
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
        record = title_record(models[0], "calm", settings={"dataset_name": name, "hub": hub})
        front = ModelCard(model_card(record)).data.to_dict()
        assert front.get("datasets") == expected, name
        for repo in front.get("datasets", []):
            validate_repo_id(repo)


FACTS = CardFacts(
    license="other:Ours | v1",
    language=["zh", "en"],
    dataset_license="CC BY 4.0. With credit",
    dataset_url="https://example.org/a",
    dataset_id="me/data",
    intended_use="For | tests. Only \\1.",
    citation="@misc{x,\n  title={A \\g<0> title}\n}",
)


@pytest.mark.parametrize("make", [title_record, text_record])
def test_facts_stated_when_publishing_equal_those_stated_for_the_run(models, make):
    model = models[make is text_record]
    of_run = CardFacts(license="mit", language="fr", citation="@misc{old}", intended_use="old")
    published = make(model, "a", facts=of_run).published(form="saved", facts=FACTS)
    assert model_card(published) == model_card(make(model, "a", facts=FACTS))
    assert published.settings["language"] == ["zh", "en"]
    again = published.published(form="saved", facts=CardFacts(dataset_license="MIT", license="mit"))
    assert "Licence of the data: MIT. Source: <https://example.org/a>\n" in model_card(again)
    assert "license_name" not in model_card(again)


def test_a_card_that_was_edited_keeps_its_text(models):
    """Placeholders of the package are filled in, and other facts appended; the metadata are updated."""
    record = text_record(replace(models[1], is_adapter=True), "calm", facts=NOTHING_STATED)
    edited = model_card(record).replace("## Limitations", "## My words\n\n| not | parsed |\n\n## Limitations")
    rows = [{"artefact": "merged", "bound": "1.0e-05"}]
    place = {"repo_id": "me/t", "hub": "huggingface", "form": "merged"}
    found = kept_card(edited, **place, facts=FACTS, parity=rows, against="compared", onnx=True)
    data, page = ModelCard(found).data, Rendered(found)
    assert (data.model_name, data.license, data.language) == ("me/t", "other", ["zh", "en"])
    assert (data.base_model_relation, data.datasets) == ("finetune", ["me/data"])
    assert page.heading == "me/t"
    assert "| not | parsed |" in found
    assert "Licence: Ours \\| v1." in found
    assert "Licence of the data: CC BY 4.0. With credit." in found
    assert "Licence: not stated" not in found
    assert page.titles["Parity"] == [[["artefact", "bound"], ["merged", "1.0e-05"]]]
    headings = [line for line in found.splitlines() if line.startswith("## ")]
    assert headings[1:3] == ["## How to load it", "## How to load it as trained"]
    assert headings[-2:] == ["## ONNX", "## Terms and citation"]
    terms = found.partition("## Terms and citation")[2]
    for part in ("For | tests", "<https://example.org/a>", "@misc{x,"):
        assert part.replace("|", "\\|") in terms
    assert '"."' not in found


@pytest.mark.parametrize("kind", ["adapter", "full", "generative"])
def test_a_card_of_version_0_1_is_published_with_its_text(kind):
    text = (GOLDEN / kind / "README.md").read_text(encoding="utf-8")
    place, rows = {"repo_id": "me/t", "hub": "modelscope"}, [{"artefact": kind, "bound": "none"}]
    facts = CardFacts(license="mit", intended_use="For news.")
    found = kept_card(text, **place, facts=facts, parity=rows, against="compared")
    assert set(text.splitlines()) - set(found.splitlines()) <= {
        f"# {kind}", f"- name: {kind}", *(line for line in text.splitlines() if '"."' in line),
        *(line for line in text.splitlines() if "Licence: not stated" in line or "comparison." in line),
        "the trained model, and writes the differences here.", "---",
        *text.split("---\n")[1].splitlines(),
    }  # fmt: skip
    page = Rendered(found)
    assert page.heading == ModelCard(found).data.model_name == "me/t"
    assert page.titles["Parity"] == [[["artefact", "bound"], [kind, "none"]]]
    assert found.count("## Parity") == 1
    assert 'snapshot_download("me/t")' in found
    assert 'from_pretrained("me/t"' in found
    assert "Licence: mit." in found
    assert found.endswith("For news.\n")


def test_a_card_without_metadata_gets_them_only_if_facts_are_stated():
    place = {"repo_id": "me/t", "hub": "huggingface"}
    assert kept_card("# My own words\n", **place, facts=NOTHING_STATED) == "# My own words\n"
    found = kept_card("# My own words\n", **place, facts=CardFacts(license="mit"))
    assert ModelCard(found).data.license == "mit"
    assert "# My own words\n" in found


OWN = "# My own words\n\n## Load\n\nAs you like.\n\n---\n\nkey: value\n\n---\n"
STATED = CardFacts(license="mit", dataset_id="me/data")


@pytest.mark.parametrize(
    ("front", "kept"),
    [
        ("", []),
        ("---\n---\n", []),
        ("---\n# Notes\n---\n", ["# Notes"]),
        ("\ufeff---\nthumbnail: a.png\n---\n", ["thumbnail: a.png"]),
        ("---\nthumbnail: a.png  # of last year\n# Notes\n---\n", ["of last year", "# Notes"]),
        ("---\ndatasets: me/other\nday: 2020-01-01\n---\n", ["- me/other", "day: 2020-01-01"]),
        ("---\nlicence: {name: mine}\nmodel_name: 3\n---\n", ["  name: mine"]),
    ],
)
@pytest.mark.parametrize("form", ["saved", "stock"])
def test_no_text_of_a_card_by_hand_is_lost(front, kept, form):
    place = {"repo_id": "me/t", "hub": "modelscope", "form": form}
    found = kept_card(front + OWN, **place, facts=STATED)
    data = ModelCard(found).data
    assert (data.license, data.datasets[0]) == ("mit", "me/data")
    assert OWN.rstrip() in found
    assert all(part in found.split("\n---\n")[0] for part in kept)
    # a section of another name has the code that loads this form, in place of a replaced heading
    assert ('from_pretrained("me/t"' in found) == (form == "stock")
    assert 'snapshot_download("me/t")' in found
    unchanged = kept_card(front + OWN, repo_id="me/t", hub="huggingface", facts=NOTHING_STATED)
    assert "3" in front or unchanged == (front + OWN).removeprefix("\ufeff")


@pytest.mark.parametrize(
    "front",
    [
        "---\nlicense: [mit\n---\n",
        "---\n- a\n---\n",
        "---\nHello\n---\n",
        "---\nlicense: mit\n",
        "---\n1: one\n---\n",
        "---\nlicense:\tmit\n\tx: y\n---\n",
        "---\nmodel-index: nonsense\n---\n",
    ],
)
def test_front_matter_that_cannot_be_read_is_refused(front):
    text = front + ("# My own words\n" if front.count("---") == 1 else OWN)
    with raises_problem("file-format", "README.md", match="front matter"):
        kept_card(text, repo_id="me/t", hub="huggingface", facts=STATED)


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


def test_the_metadata_has_a_base_of_the_hub(models, tmp_path):
    record = title_record(models[0], "calm", backbone="Qwen/Qwen2.5-7B")
    data = ModelCard(model_card(record)).data
    assert (data.base_model, data.base_model_relation) == ("Qwen/Qwen2.5-7B", "finetune")
    (tmp_path / "config.json").write_text("{}")
    local = model_card(title_record(models[0], "calm", backbone=str(tmp_path)))
    assert ModelCard(local).data.base_model is None
    assert str(tmp_path) not in local
    assert tmp_path.name in local


def test_the_card_names_the_reference_of_the_verification(models):
    rows = [{"artefact": "full"}]
    card = model_card(text_record(models[1], "calm"), parity=rows, against=FOLDER)
    assert "compared with the trained model" not in card
    assert "no answers of the training run were recorded" in card


def test_a_record_is_read_as_it_was_written(models, tmp_path):
    record = title_record(models[0], "calm", prompt="An article")
    files = {"README.md": model_card(record), "metrics.json": json.dumps(record.metrics)}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    write_manifest(tmp_path, record.manifest())
    found = RunRecord.read(tmp_path)
    assert found is None  # a manifest that never listed this card has no record
    write_json(tmp_path / "manifest.json", {**record.manifest(), "files": hash_files(tmp_path)})
    found = RunRecord.read(tmp_path)
    assert model_card(found) == files["README.md"]
    write_manifest(tmp_path, json.loads((tmp_path / "manifest.json").read_text()))
    assert RunRecord.read(tmp_path) == found
    (tmp_path / "README.md").write_text("# My own words\n")
    assert RunRecord.read(tmp_path) is None
    write_manifest(tmp_path, json.loads((tmp_path / "manifest.json").read_text()))
    assert RunRecord.read(tmp_path) is None  # the hash of the edited card does not bring the record back
