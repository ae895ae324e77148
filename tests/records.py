"""Records of decision models, whose words determine their answers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

ASKED: dict[str, Any] = {
    "intent": {
        "type": "choice",
        "instructions": "What is it about?",
        "criteria": {"card": None, "cash": "Cash and machines"},
    },
    "urgency": {"type": "score", "criteria": ["can wait", "this week", "today"]},
    "refund": {"type": "noul", "instructions": "Is a refund requested?"},
}
# The same questions in a config
QUESTIONS: list[dict[str, Any]] = [
    {
        "name": "intent",
        "type": "choice",
        "instructions": "What is it about?",
        "options": ["card", "cash"],
        "descriptions": [None, "Cash and machines"],
    },
    {"name": "urgency", "type": "score", "options": ["can wait", "this week", "today"]},
    {"name": "refund", "type": "noul", "instructions": "Is a refund requested?"},
]
WORDS = {
    "card": ["my card was declined", "I lost my card"],
    "cash": ["the machine gave no cash", "cash was not paid out"],
}
URGENCY = ["no hurry", "some day this week", "right now, today"]
REFUND = ["", "I want my money back"]


def record(number: int = 0, **fields: Any) -> dict[str, Any]:
    """Return a record with an answer to every question; `fields` replace its own."""
    draw = random.Random(number)
    intent, urgency, refund = draw.choice(["card", "cash"]), draw.randrange(3), draw.random() < 0.5
    own = {
        "id": str(number),
        "state": f"{draw.choice(WORDS[intent])}, {URGENCY[urgency]} {REFUND[refund]} number {number}",
        "questions": ASKED,
        "answers": {"intent": intent, "urgency": urgency, "refund": refund},
        "meta": {"group": f"customer {number // 2}"},
    }
    return {**own, **fields}


def write_records(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write JSON lines and return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
