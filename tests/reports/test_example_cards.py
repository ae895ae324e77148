"""The cards of `model_cards/examples/` equal those that the code renders from the records."""

from __future__ import annotations

import example_cards
import pytest
from huggingface_hub import ModelCard
from rendered_card import Rendered

KINDS = {"title_scorer_adapter", "full_classifier", "multi_label", "stock_export", "generative"}


def test_each_kind_has_an_example() -> None:
    assert set(example_cards.names()) == KINDS


@pytest.mark.parametrize("name", sorted(KINDS))
def test_an_example_equals_its_rendered_card(name: str) -> None:
    """After a change of a template, run `python tests/reports/example_cards.py`."""
    written = (example_cards.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert example_cards.render_example(name) == written
    repo = f"your-name/{name.replace('_', '-')}"
    card, page = ModelCard(written), Rendered(written)
    assert page.heading == repo
    assert card.data.model_name == repo
    assert f'("{repo}"' in written
    for placeholder in ("path/to", 'pretrained(".")', "more information needed", "before the verification"):
        assert placeholder not in written
