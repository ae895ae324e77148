"""Templates of the model cards; installed as `qwen_task_heads.model_cards`."""
