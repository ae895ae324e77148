"""Write the generated pages: options of commands, error codes, the Python API, and llms.txt.

    python docs/reference.py

Options come from `qwen_task_heads/assets/options.json`, codes from `errors.CODES`, the API from public names;
mkdocstrings renders their docstrings. The pages are not committed.
"""

from __future__ import annotations

from pathlib import Path

import qwen_task_heads
from qwen_task_heads import cli, option_catalog
from qwen_task_heads.errors import CODES
from qwen_task_heads.losses.registry import LOSSES

DOCS = Path(__file__).parent
REFERENCE = DOCS / "en" / "reference"
MODULES = {
    "Losses": ("losses.pairs", "losses.groups", "losses.texts", "losses.registry"),
    "Metrics": ("metrics.ranking", "metrics.classification", "metrics.calibration", "metrics.verdicts"),
    "Pooling and heads": ("hubcode.pooling_task_heads",),
    "Frozen features": ("training.features", "training.convex_heads", "training.head_sweep"),
}


def cell(text: object) -> str:
    """Return text for a cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def command_pages() -> str:
    """Return one page with the options of every command."""
    lines = [
        "# Commands and options",
        "",
        "`qth COMMAND --help` prints the same; `--help_all` all of it.",
        "",
    ]
    for name, options in option_catalog.read().items():
        lines += [f"## qth {name}", "", cli.COMMANDS[name].summary, ""]
        for group in dict.fromkeys(one["group"] for one in options):
            if group == option_catalog.OTHERS:
                count = sum(one["group"] == group for one in options)
                lines += [f"And {count} options of transformers and trl (`qth {name} --help_all`).", ""]
                continue
            lines += [f"### {group} {{ #{name}-{group.lower().replace(' ', '-')} }}", ""]
            lines += ["| option | value | default | meaning |", "|---|---|---|---|"]
            for one in (one for one in options if one["group"] == group):
                default = "" if one["default"] in (None, "", []) else f"`{cell(one['default'])}`"
                lines.append(f"| `--{one['name']}` | {cell(one['type'])} | {default} | {cell(one['help'])} |")
            lines.append("")
    return "\n".join(lines)


def error_page() -> str:
    """Return the page of error codes."""
    lines = [
        "# Error codes",
        "",
        "An error is a `TaskHeadsError` with a list of `problems`. Each has `where`, `problem`, `expected`,",
        "`fix` and a `code`. Codes are stable; wording is not.",
        "",
        "| code | meaning |",
        "|---|---|",
        *(f"| `{code}` | {cell(meaning)} |" for code, meaning in CODES.items()),
    ]
    return "\n".join(lines) + "\n"


def python_page() -> str:
    """Return the page of the public names."""
    lines = ["# Python API", ""]
    for name in qwen_task_heads.__all__:
        lines += [f"::: qwen_task_heads.{name}", "    options:", "      heading_level: 2", ""]
    return "\n".join(lines)


def module_page(title: str, modules: tuple[str, ...]) -> str:
    """Return a page of modules that are documented as a whole."""
    lines = [f"# {title}", ""]
    for module in modules:
        lines += [f"::: qwen_task_heads.{module}", "    options:", "      heading_level: 2", ""]
    return "\n".join(lines)


def loss_table() -> str:
    """Return the table of all losses, from their rows."""
    lines = ["| loss | over | formula | options | source |", "|---|---|---|---|---|"]
    for kind, losses in LOSSES.items():
        for loss in losses.values():
            options = ", ".join(f"`{option.flag}`" for option in loss.options)
            formula, source = cell(loss.formula), cell(loss.source)
            lines.append(f"| `{loss.name}` | {kind} | {formula} | {options} | {source} |")
    return "\n".join([*lines, ""])


def llms(pages: list[Path]) -> str:
    """Return llms.txt: one line per page, see https://llmstxt.org."""
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8").splitlines()
    about = " ".join(line for line in readme[2:5] if line)
    lines = ["# qwen-task-heads", "", f"> {about}", ""]
    for page in pages:
        title = next(line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
        lines.append(f"- [{title[2:]}]({page.relative_to(DOCS / 'en').with_suffix('.md').as_posix()})")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all generated pages."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    pages = {"cli": command_pages(), "errors": error_page(), "python": python_page()}
    for title, modules in MODULES.items():
        pages[title.lower().replace(" ", "-")] = module_page(title, modules)
    title, body = pages["losses"].split("\n", 1)
    pages["losses"] = f"{title}\n\n{loss_table()}{body}"
    for name, text in pages.items():
        (REFERENCE / f"{name}.md").write_text(text, encoding="utf-8")
    (DOCS / "en" / "llms.txt").write_text(llms(sorted((DOCS / "en").rglob("*.md"))), encoding="utf-8")


if __name__ == "__main__":
    main()
