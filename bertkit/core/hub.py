"""Where a checkpoint's files are: a local directory, or a repository of the hub that is fetched into the cache."""

from __future__ import annotations

import os
from pathlib import Path

from bertkit.core.errors import CheckpointError

CONFIG_FILES = ["config.json"]
WEIGHT_FILES = ["*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json"]
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
                   "vocab.json", "merges.txt", "config.json"]


class HubError(CheckpointError):
    """A repository of the hub cannot be reached, or does not exist."""


def resolve_directory(
    name_or_path: str | os.PathLike, *, allow_patterns: list[str], revision: str | None = None,
    token: str | bool | None = None, cache_dir: str | os.PathLike | None = None, local_files_only: bool = False,
    force_download: bool = False, subfolder: str = "",
) -> Path:
    """The local directory of a checkpoint, after fetching it from the hub where it is not local.

    Args:
        name_or_path: a directory or a file, or a hub id such as "google/mobilebert-uncased".
        allow_patterns: which files of a repository are fetched.
        revision: branch, tag or commit.
        token: access token, or True for the one that was saved.
        cache_dir: cache of the hub; default huggingface_hub's.
        local_files_only: take only what is in the cache; `HF_HUB_OFFLINE=1` does the same everywhere.
        force_download: fetch again what is in the cache.
        subfolder: folder inside the directory or the repository.

    Raises:
        CheckpointError: when a local path does not exist.
        HubError: when the repository cannot be fetched, with what to do.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path / subfolder if path.is_dir() else path
    name = os.fspath(name_or_path)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or "\\" in name or not name:
        raise CheckpointError(f"there is no directory {name!r}",
                              remedy="Give the directory of a checkpoint, or a hub id of the form 'owner/name'.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    prefix = f"{subfolder}/" if subfolder else ""
    try:
        found = snapshot_download(
            name, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only,
            force_download=force_download, allow_patterns=[prefix + pattern for pattern in allow_patterns])
    except RepositoryNotFoundError as error:
        raise HubError(f"the hub has no repository {name!r}, or it is private", [_first_line(error)],
                       "Check the name; for a private repository pass token=.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise HubError(f"{name!r} is no local directory, and it could not be fetched from the hub", [_first_line(error)],
                       "Give a local directory, or check the network, HF_HUB_OFFLINE and the revision.") from error
    return Path(found) / subfolder


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
