"""The page as a Gradio app.

Texts of visitors and names of labels are shown by components that render text only: `Textbox`, `Label`,
`Dataframe` of strings, `HighlightedText`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from qwen_task_heads.demo.answers import DemoLimits, DemoModel
from qwen_task_heads.demo.arguments import DemoArguments
from qwen_task_heads.demo.endpoints import add_endpoints, shown
from qwen_task_heads.demo.text_view import TextView
from qwen_task_heads.errors import error_at
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.reports.markdown import code
from qwen_task_heads.serving.arguments import public_name

WAITING = 64  # questions in the queue; further ones are refused
# Long names of labels must not push their probability out of a narrow page.
STYLE = "<style>.confidence-set .text { overflow-wrap: anywhere; text-align: left; min-width: 0 }</style>"


def build_demo(args: DemoArguments) -> gr.Blocks:
    """Load the models and return their page, which `launch` and `mount_gradio_app` of Gradio serve.

    Raises:
        TaskHeadsError: no such model, or a second model of another kind.

    The `app.py` that `qth demo --space` writes is an example.
    """
    limits = DemoLimits(titles=args.max_titles, characters=args.max_characters, words=args.max_words)
    options: dict[str, Any] = {"hub": args.hub, "device": args.device, "dtype": args.dtype, "progress": False}
    scorers = [(args.model, Scorer(args.model, revision=args.revision, **options))]
    if args.compare is not None:
        scorers.append((args.compare, Scorer(args.compare, **options)))
    # Visitors need not know the path of a folder.
    return page_of([DemoModel(scorer, name=public_name(name), limits=limits) for name, scorer in scorers])


def page_of(models: Sequence[DemoModel]) -> gr.Blocks:
    """Return the page of one model, or of two whose answers are next to each other.

    Args:
        models: one or two of the same kind.

    Raises:
        TaskHeadsError: models of different kinds.
    """
    first, *others = models
    if others and others[0].kind != first.kind:
        raise error_at(
            "--compare",
            f"found a {others[0].kind}",
            f"a {first.kind}, as --model",
            "give another model, or start a second demo",
            code="model-type",
        )
    is_regression = first.problem_type == "regression"
    title = (first.kind.replace("classifier", "regressor") if is_regression else first.kind).capitalize()
    page = gr.Blocks(title=title, analytics_enabled=False)
    with page:
        gr.Markdown(f"# {title}\n\n{_about(models)}")
        (_title_page if first.scorer.is_title_scorer else _text_page)(models)
        add_endpoints(models)
        gr.HTML(STYLE)
    return page.queue(max_size=WAITING)


def _about(models: Sequence[DemoModel]) -> str:
    """Return the names and sizes of the models as Markdown."""
    lines = []
    for model in models:
        scorer, facts = model.scorer, []
        if not scorer.is_title_scorer:
            facts.append(model.problem_type.removesuffix("_classification").replace("_", "-"))
            facts += [] if model.problem_type == "regression" else [f"{scorer.config.num_labels:,} labels"]
        facts += [str(scorer.dtype).removeprefix("torch."), f"on {scorer.model.device.type}"]
        lines.append(f"{code(model.name)} ({', '.join(facts)})")
    return " and ".join(lines)


def _columns(models: Sequence[DemoModel]) -> list[gr.Column]:
    """Return one column per model, side by side on a wide page, with its name if there are two."""
    with gr.Row():
        columns = [gr.Column(min_width=320) for _ in models]
    for column, model in zip(columns, models, strict=True):
        with column:
            if len(models) > 1:
                gr.Markdown(f"### {code(model.name)}")
    return columns


def _title_page(models: Sequence[DemoModel]) -> None:
    limits = models[0].limits
    titles = gr.Textbox(
        label="Titles, one per line",
        info=f"At most {limits.titles:,}.",
        lines=6,
        max_lines=20,
        max_length=limits.characters,
    )
    prompt = gr.Textbox(label="Prompt, if the model was trained with one", max_length=limits.characters)
    button = gr.Button("Rank", variant="primary")
    tables = []
    for column in _columns(models):
        with column:
            table = gr.Dataframe(
                headers=["#", "Title", "Score", "P"],
                datatype=["number", "str", "str", "str"],
                column_widths=["10%", "50%", "21%", "19%"],
                label="Ranking; P: probability to be the best of the list",
                interactive=False,
                wrap=True,
                buttons=[],
            )
        tables.append(table)

    def show_ranks(titles: str, prompt: str) -> Any:
        ranked = [model.rank(titles, prompt) for model in models]
        tables = [[[*row[:2], *(f"{value:.3f}" for value in row[2:])] for row in rows] for rows in ranked]
        return tables if len(tables) > 1 else tables[0]

    # One event for all models: Gradio's client may lose the end of one of two streams.
    gr.on(
        [button.click, prompt.submit], shown(show_ranks), [titles, prompt], tables, api_visibility="private"
    )


def _text_page(models: Sequence[DemoModel]) -> None:
    limits = models[0].limits
    text = gr.Textbox(label="Text", lines=4, max_lines=20, max_length=limits.characters)
    second: gr.Textbox | gr.State = gr.State("")
    if models[0].scorer.needs_pairs:
        second = gr.Textbox(label="Second text", lines=2, max_lines=20, max_length=limits.characters)
    with gr.Row():
        predict = gr.Button("Predict", variant="primary")
        attribute = gr.Button("Attribute words")
    views = []
    for column, model in zip(_columns(models), models, strict=True):
        with column:
            views.append(TextView(model))
    controls = [control for view in views for control in view.controls]

    def show_answers(text: str, second_text: str, *settings: Any) -> list[Any]:
        for model in models:
            model.check_text(text, second_text)
        pairs = zip(views, settings[::2], settings[1::2], strict=True)
        return [value for view, *two in pairs for value in view.classified(text, second_text, *two)]

    def show_words(text: str, second_text: str) -> list[Any]:
        return [value for view in views for value in view.attributed(text, second_text)]

    answers = [component for view in views for component in view.answers]
    attributions = [component for view in views for component in view.attributions]
    asked = [text, second]
    predict.click(shown(show_answers), [*asked, *controls], answers, api_visibility="private")
    attribute.click(shown(show_words), asked, attributions, api_visibility="private")
    for view in views:
        for control in view.controls:
            if not isinstance(control, gr.State):
                control.change(
                    shown(view.classified),
                    [*asked, *view.controls],
                    view.answers,
                    trigger_mode="always_last",
                    show_progress="hidden",
                    api_visibility="private",
                )
