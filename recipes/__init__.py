"""Recipes: one script per task, installed as `qwen_task_heads.recipes`."""
