"""Where a checkpoint's files are: a local directory, or a repository of the hub that is fetched into the cache."""

from __future__ import annotations

import os
from pathlib import Path

from bertkit.core.errors import CheckpointError

CONFIG_FILES = ["config.json"]
PICKLED_FILES = ["pytorch_model*.bin", "pytorch_model.bin.index*.json"]
WEIGHT_FILES = ["model*.safetensors", "model.safetensors.index*.json", *PICKLED_FILES]
TOKENIZER_ALONE = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
]
TOKENIZER_FILES = [*TOKENIZER_ALONE, *CONFIG_FILES]

REMEDIES = {
    "GatedRepoError": "Its owner must grant you access: ask on its page, then pass token=, or log in with `hf auth login`.",
    "RepositoryNotFoundError": "Check the spelling; for a private repository pass token=, or log in with `hf auth login`.",
    "RevisionNotFoundError": "Check revision=: it must be a branch, a tag or a commit of the repository.",
    "HFValidationError": "Give the directory of a checkpoint, or a hub id of the form 'owner/name'.",
    "LocalEntryNotFoundError": "It is not in the cache: go online once, or unset HF_HUB_OFFLINE and local_files_only.",
    "OfflineModeIsEnabled": "It is not in the cache: go online once, or unset HF_HUB_OFFLINE.",
}
"""What to do, by the name of huggingface_hub's exception; subclasses stand before what they derive from."""


class HubError(CheckpointError):
    """A repository of the hub does not exist, or cannot be reached."""


def resolve_directory(
    name_or_path: str | os.PathLike[str],
    *,
    allow_patterns: list[str],
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    subfolder: str = "",
) -> Path:
    """The local directory of a checkpoint, after fetching it from the hub where it is not local.

    Args:
        name_or_path: a directory, a file (which is given back), or a hub id such as "google/mobilebert-uncased".
        allow_patterns: the files that are needed; pickled weights are fetched only where there are no safetensors.
        revision: branch, tag or commit.
        token: access token, or True for the one that was saved.
        cache_dir: cache of the hub; default huggingface_hub's.
        local_files_only: take only what is in the cache; HF_HUB_OFFLINE=1 does the same everywhere.
        force_download: fetch again what is in the cache.
        subfolder: directory inside the directory or repository.

    Raises:
        CheckpointError: when a local path does not exist.
        HubError: when the repository cannot be fetched, with what to do.

    Example:
        >>> resolve_directory("google/mobilebert-uncased", allow_patterns=CONFIG_FILES)  # doctest: +SKIP
    """
    name = os.fspath(name_or_path)
    inside = Path(subfolder)
    if inside.is_absolute() or ".." in inside.parts:
        raise CheckpointError(f"subfolder: got {subfolder!r}, expected a directory inside {name!r}")
    path = Path(name).expanduser()
    if name and path.is_file():
        return path
    if name and path.is_dir():
        return _existing(path / inside)
    if _looks_local(name):
        raise CheckpointError(
            f"there is no directory {name!r} (seen from {Path.cwd()})",
            remedy="Give the directory of a checkpoint, or a hub id of the form 'owner/name'.",
        )
    options = {
        "revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only,
        "force_download": force_download,
    }
    patterns = [(inside / pattern).as_posix() for pattern in allow_patterns if pattern not in PICKLED_FILES]
    found = _fetch(name, patterns, options) / inside
    pickled = [(inside / pattern).as_posix() for pattern in allow_patterns if pattern in PICKLED_FILES]
    if pickled and not any(found.glob("model*.safetensors")):
        found = _fetch(name, [*patterns, *pickled], options) / inside
    return _existing(found)


def _looks_local(name: str) -> bool:
    if not name or "\\" in name or name.count("/") > 1 or os.path.isabs(name):
        return True
    return name.startswith((".", "~")) or name.endswith("/")


def _existing(directory: Path) -> Path:
    if not directory.is_dir():
        raise CheckpointError(f"there is no directory {directory}", remedy="Check the path, and subfolder=.")
    return directory


def _fetch(name: str, patterns: list[str], options: dict) -> Path:
    from huggingface_hub import snapshot_download  # takes half a second: only where something is fetched

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **options))
    except Exception as error:  # the hub's own, those of the HTTP library under it, and the system's
        kinds = {kind.__name__ for kind in type(error).__mro__}
        remedy = next((text for kind, text in REMEDIES.items() if kind in kinds), "Check the network, or give a directory.")
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason was given")
        raise HubError(
            f"{name!r} is no local directory, and could not be fetched from the hub",
            [f"{type(error).__name__}: {reason}"], remedy,
        ) from error
