"""Recipes that train are short, and import the package by its public names alone."""

from __future__ import annotations

import ast

import launching
import pytest

import qwen_task_heads

TRAINING = ("reward_titles", "classify", "sft_classify", "sweep_heads", "grpo_titles")


@pytest.mark.parametrize("recipe", TRAINING)
def test_a_recipe_uses_public_names(recipe: str) -> None:
    text = (launching.RECIPES / f"{recipe}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    assert "# /// script" in text
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert modules == {"qwen_task_heads"}
    names = {alias.name for node in imports if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names <= set(qwen_task_heads.__all__)
