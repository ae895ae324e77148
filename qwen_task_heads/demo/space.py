"""Write the files of a Hugging Face Space that shows the demo of a published model.

Source of the metadata: https://huggingface.co/docs/hub/spaces-config-reference.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from huggingface_hub import SpaceCardData

from qwen_task_heads.demo.arguments import DemoArguments
from qwen_task_heads.hubs import HUGGINGFACE
from qwen_task_heads.reports.markdown import code

# Options of the page; the others are those of a server.
KEPT = ("model", "compare", "hub", "revision", "dtype", "max_titles", "max_characters", "max_words")
APP = '''"""The demo of a model; `qth demo --space` of qwen-task-heads wrote this file."""

from qwen_task_heads import DemoArguments, build_demo

demo = build_demo(
    DemoArguments(
{arguments}
    )
)

if __name__ == "__main__":
    demo.launch(show_error=False, ssr_mode=False, run_history=False, mcp_server={mcp})
'''


def write_space(args: DemoArguments) -> str:
    """Write `README.md`, `app.py` and `requirements.txt`; return how to upload them.

    Args:
        args: with `space`, a new or empty folder, and models of a hub.

    Example:
        >>> import tempfile
        >>> from qwen_task_heads import DemoArguments
        >>> from qwen_task_heads.demo.space import write_space
        >>> folder = tempfile.mkdtemp()
        >>> print(write_space(DemoArguments(model="me/news", space=folder)).replace(folder, "DIR"))
        Wrote README.md, app.py and requirements.txt to DIR. To publish the Space:
          hf upload me/news-demo DIR . --repo-type space
    """
    folder = Path(str(args.space))
    models = [name for name in (args.model, args.compare) if name is not None]
    name = args.model.rpartition("/")[2]
    data = SpaceCardData(
        title=f"{name} demo",
        emoji="🏷️",
        colorFrom="blue",
        colorTo="green",
        sdk="gradio",
        sdk_version=version("gradio"),
        app_file="app.py",
        models=models if args.hub == HUGGINGFACE else None,
    )
    defaults = DemoArguments(model=args.model)
    given = {name: vars(args)[name] for name in KEPT}
    changed = {
        name: value for name, value in given.items() if name == "model" or value != vars(defaults)[name]
    }
    arguments = "\n".join(f"        {name}={value!r}," for name, value in changed.items())
    extras = ",".join(["demo", *([args.hub] if args.hub != HUGGINGFACE else [])])
    about = f"A demo of {' and '.join(map(code, models))}, made by `qth demo --space`."
    files = {
        "README.md": f"---\n{data.to_yaml()}\n---\n\n{about}\n",
        "app.py": APP.format(arguments=arguments, mcp=args.mcp),
        "requirements.txt": f"qwen-task-heads[{extras}]\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        (folder / path).write_text(content, encoding="utf-8")
    *names, last = files
    return (
        f"Wrote {', '.join(names)} and {last} to {folder}. To publish the Space:\n"
        f"  hf upload {args.model}-demo {folder} . --repo-type space"
    )
