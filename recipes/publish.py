"""Publish the folder of a finished run, or only verify it: reloaded in a clean process and compared.

qth publish --model runs/titles --hub_model_id me/titles
qth publish --model runs/news --hub_model_id me/news --hub modelscope --form merged --onnx
qth publish --model runs/news --hub_model_id me/news --dry_run staged
qth publish --model runs/news --hub_model_id me/news --license mit --language en zh

Requires the extra onnx for --onnx, and modelscope for --hub modelscope. Log in first by `hf auth login`
(HF_TOKEN), or for ModelScope by MODELSCOPE_API_TOKEN.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[train]"]
# ///

import sys
from functools import partial

from qwen_task_heads import PublishOptions, publish, run_recipe


def main() -> None:
    """Stage, verify and publish the model in one commit, and print its address."""
    options = PublishOptions.from_command_line()
    published = publish(
        options.model,
        repo_id=options.hub_model_id,
        hub=options.hub,
        form=options.form,
        private=not options.public,
        revision=options.revision,
        tag=options.tag,
        message=options.message,
        rows=options.rows,
        onnx=options.onnx or options.int8,
        int8=options.int8,
        dry_run=options.dry_run,
        replace=options.replace,
        facts=options.card_facts(),
        log=partial(print, flush=True),
    )
    print("\n".join(published.messages()))


if __name__ == "__main__":
    sys.exit(run_recipe(main, interrupted="nothing was published; the same command starts again"))
