"""The cards of `model_cards/examples/` are what the code renders from the records of their runs."""

from __future__ import annotations

import example_cards
import pytest
from huggingface_hub import ModelCard
from rendered_card import Rendered

KINDS = {"title_scorer_adapter", "full_classifier", "multi_label", "stock_export", "generative"}


def test_there_is_an_example_of_each_kind() -> None:
    assert set(example_cards.names()) == KINDS


@pytest.mark.parametrize("name", sorted(KINDS))
def test_an_example_is_what_the_code_renders(name: str) -> None:
    """After a change of a template: `python tests/reports/example_cards.py`."""
    written = (example_cards.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert example_cards.render_example(name) == written
    repo = f"your-name/{name.replace('_', '-')}"
    card, page = ModelCard(written), Rendered(written)
    assert page.heading == repo
    assert card.data.model_name == repo
    assert f'("{repo}"' in written
    for placeholder in ("path/to", 'pretrained(".")', "more information needed", "before a comparison"):
        assert placeholder not in written
