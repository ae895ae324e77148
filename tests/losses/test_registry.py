"""Tests of the table of losses: every row is documented, and options, help and checks follow from it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from importlib import resources

import pytest
from problem_assertions import raises_problem

from qwen_task_heads.losses.registry import (
    LOSSES,
    TITLE_LOSSES,
    given_options,
    option_problems,
    options_of,
    resolve_loss,
    unused_options,
    with_loss_options,
)
from qwen_task_heads.losses.rows import Loss, LossOption
from qwen_task_heads.training.classifier_arguments import ClassifierArguments
from qwen_task_heads.training.title_arguments import TitleArguments

ROWS = [
    pytest.param(kind, name, loss, id=f"{kind}-{name}")
    for kind, losses in LOSSES.items()
    for name, loss in losses.items()
]
SIGMA = LossOption(name="sigma", field="loss_sigma", help="Steepness.", default=1.0, above=0)


@pytest.mark.parametrize(("kind", "name", "loss"), ROWS)
def test_every_loss_is_documented(kind: str, name: str, loss: Loss) -> None:
    assert (loss.problem_type, loss.name) == (kind, name)
    assert resolve_loss(name, kind) is loss
    assert loss.formula
    assert loss.source
    assert set(loss.needs) <= set(loss.uses)
    doc = inspect.getdoc(loss.function) or ""
    assert "Source:" in doc
    arguments = [*loss.uses, *(option.argument for option in loss.options)]
    assert all(f"{argument}" in doc for argument in arguments)
    if arguments:
        assert "| input | shape |" in doc


@pytest.mark.parametrize(("kind", "name", "loss"), ROWS)
def test_every_option_is_an_argument_with_its_default(kind: str, name: str, loss: Loss) -> None:
    parameters = inspect.signature(loss.function).parameters
    for option in loss.options:
        parameter = parameters[option.argument]
        if option.default is not None and parameter.default is not parameter.empty:
            assert parameter.default == option.default
        if option.default is not None:
            assert option.problems(option.default) == []
    assert ("class_counts" in parameters) is loss.needs_counts


@pytest.mark.parametrize(("kind", "name", "loss"), ROWS)
def test_papers_are_in_the_references(kind: str, name: str, loss: Loss) -> None:
    text = (resources.files("qwen_task_heads.model_cards") / "references.bib").read_text(encoding="utf-8")
    assert not loss.paper or f"{{{loss.paper}," in text


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [(TitleArguments, ("pairs", "groups")), (ClassifierArguments, [*LOSSES][2:])],
    ids=["titles", "texts"],
)
def test_the_arguments_have_a_field_for_every_option(arguments, kinds):
    fields = arguments.__dataclass_fields__
    own = [option for option in options_of(kinds) if not option.is_inherited]
    assert own
    for option in own:
        taking = [row.name for kind in kinds for row in LOSSES[kind].values() if row.takes(option.name)]
        assert all(name in fields[option.field].metadata["help"] for name in taking)
        given = arguments(**{option.field: ["balanced"] if option.per_label else 0.5})
        assert given.loss_options() == {option.name: "balanced" if option.per_label else 0.5}
    assert arguments().loss_options() == {}


def test_a_new_loss_is_a_function_and_a_row(monkeypatch):
    """Its option gets a field of the arguments, with help; its checks apply, and it is called."""
    row = Loss(
        "lambda_rank", "groups", lambda scores, sizes, gains, sigma=1.0: scores * sigma, "-", "Burges 2006",
        uses=("sizes", "gains"), options=(SIGMA,),
    )  # fmt: skip
    monkeypatch.setitem(LOSSES["groups"], "lambda_rank", row)

    @dataclass
    @with_loss_options("pairs", "groups")
    class Arguments:
        loss: str = "bradley_terry"
        after: int = field(default=0)

    names = list(Arguments.__dataclass_fields__)
    assert names == ["loss", "loss_margin", "loss_nu", "loss_sigma", "after"]
    assert "lambda_rank" in Arguments.__dataclass_fields__["loss_sigma"].metadata["help"]
    given = given_options(Arguments(loss_sigma=2.0), ("pairs", "groups"))
    assert given == {"sigma": 2.0}
    assert option_problems(given, row, known=[]) == []
    assert [one.code for one in option_problems({"sigma": 0.0}, row, known=[])] == ["option-range"]
    [problem] = unused_options(given, [LOSSES["pairs"]["soft"]], known=[row])
    assert (problem.code, problem.fix) == ("option-conflict", "drop it, or give --loss lambda_rank")
    assert resolve_loss("lambda_rank", "pairs", "groups")(3.0, sizes=[2], gains=[1.0, 0.0], **given) == 6.0


def test_an_unknown_loss_of_titles_lists_those_of_pairs_and_groups():
    with raises_problem("option-value", "--loss") as problems:
        resolve_loss("hinge", "pairs", "groups")
    assert problems[0].expected == ", ".join(TITLE_LOSSES)
