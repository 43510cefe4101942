"""Finding a checkpoint: local directories, the hub's cache without a network, and errors that say what to do."""

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from bertkit.core.errors import CheckpointError
from bertkit.core.hub import CONFIG_FILES, WEIGHT_FILES, HubError, resolve_directory


def make_cache(root: Path, *names: str) -> Path:
    """A hub cache that holds one snapshot of "owner/model"."""
    repository, commit = root / "models--owner--model", "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for name in names:
        file = repository / "snapshots" / commit / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    return repository / "snapshots" / commit


def test_local_directory_is_given_back(tmp_path):
    (tmp_path / "sub").mkdir()
    assert resolve_directory(tmp_path, allow_patterns=CONFIG_FILES) == tmp_path
    assert resolve_directory(str(tmp_path), allow_patterns=CONFIG_FILES, subfolder="sub") == tmp_path / "sub"


def test_local_file_is_given_back(tmp_path):
    (tmp_path / "x.bin").touch()
    assert resolve_directory(tmp_path / "x.bin", allow_patterns=WEIGHT_FILES) == tmp_path / "x.bin"


@pytest.mark.parametrize("name", ["", "./absent", "../absent", "/absent", "~/absent", "a/b/c", "a\\b", "absent/"])
def test_absent_path_is_never_asked_of_the_hub(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError, match="there is no directory"):
        resolve_directory(name, allow_patterns=CONFIG_FILES)


@pytest.mark.parametrize("subfolder", ["absent", "../other", "/etc"])
def test_bad_subfolder(tmp_path, subfolder):
    with pytest.raises(CheckpointError, match="subfolder"):
        resolve_directory(tmp_path, allow_patterns=CONFIG_FILES, subfolder=subfolder)


def test_cache_is_read_offline(tmp_path):
    snapshot = make_cache(tmp_path, "config.json", "sub/config.json")
    options = {"cache_dir": tmp_path, "local_files_only": True}
    assert resolve_directory("owner/model", allow_patterns=CONFIG_FILES, **options) == snapshot
    assert resolve_directory("owner/model", allow_patterns=CONFIG_FILES, subfolder="sub", **options) == snapshot / "sub"


def test_absent_from_the_cache(tmp_path):
    with pytest.raises(HubError, match=r"(?s)owner/model.*not in the cache"):
        resolve_directory("owner/model", allow_patterns=CONFIG_FILES, cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize("held, times", [("model.safetensors", 1), ("model-00001-of-00002.safetensors", 1), ("config.json", 2)])
def test_pickles_are_fetched_only_without_safetensors(tmp_path, monkeypatch, held, times):
    (tmp_path / held).touch()
    calls = []

    def download(name, *, allow_patterns, **options):
        calls.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    resolve_directory("owner/model", allow_patterns=[*CONFIG_FILES, *WEIGHT_FILES])
    assert len(calls) == times
    assert "pytorch_model*.bin" not in calls[0]
    assert times == 1 or "pytorch_model*.bin" in calls[1]


@pytest.mark.parametrize(
    "error, hint",
    [
        (HFValidationError("bad name"), "owner/name"),
        (LocalEntryNotFoundError("nothing cached"), "cache"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (ConnectionError("no route"), "network"),
        (OSError(28, "No space left on device"), "No space left"),
        (RuntimeError(""), "no reason"),
    ],
)
def test_every_failure_is_of_our_family(monkeypatch, error, hint):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(HubError, match=hint):
        resolve_directory("owner/model", allow_patterns=CONFIG_FILES)


def test_hub_client_is_loaded_late():
    code = "import sys, bertkit.core.hub; sys.exit('huggingface_hub' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
