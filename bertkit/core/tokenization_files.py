"""The files of a tokenizer: finding, reading and writing them, and tokens as JSON holds them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from bertkit.core.errors import TokenizerError

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"


def str_of(token: str | AddedToken) -> str:
    """The content of a token."""
    return token if isinstance(token, str) else token.content


def find_directory(name_or_path: str | os.PathLike[str], **hub: Any) -> Path:
    """The directory with the tokenizer's files, fetched from the hub where it is not local."""
    from bertkit.core.hub import resolve_directory  # loads the hub client: only when something is loaded

    patterns = [
        "tokenizer*.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.*",
        "merges.txt",
        "config.json",
    ]
    return Path(resolve_directory(name_or_path, allow_patterns=patterns, **hub))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when the file does not exist."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path}: got a {type(content).__name__}, expected a JSON object")
    return content


def read_arguments(directory: Path) -> dict[str, Any]:
    """Constructor arguments out of tokenizer_config.json and the older files beside it."""
    arguments = read_json(directory / CONFIG_FILE)
    for name in (
        "tokenizer_class",
        "auto_map",
        "name_or_path",
        "tokenizer_file",
        "special_tokens_map_file",
        "vocab_file",
        "merges_file",
        "processor_class",
    ):
        arguments.pop(name, None)
    if "max_len" in arguments:
        arguments.setdefault("model_max_length", arguments.pop("max_len"))
    if "added_tokens_decoder" not in arguments:
        arguments.update(read_json(directory / SPECIAL_TOKENS_FILE))
        added = read_json(directory / ADDED_TOKENS_FILE)
        if added:
            named = {_content(arguments.get(name)) for name in NAMED_TOKENS}
            extra = {_content(token) for token in arguments.get("additional_special_tokens") or ()}
            arguments["added_tokens_decoder"] = {
                token_id: AddedToken(token, special=token in named | extra, normalized=token not in named | extra)
                for token, token_id in added.items()
            }
    return arguments


def read_backend(path: str | os.PathLike[str]) -> Tokenizer:
    """The Rust tokenizer of a tokenizer.json."""
    try:
        return Tokenizer.from_str(Path(path).read_text("utf-8"))
    except Exception as error:  # the Rust library raises bare exceptions
        raise TokenizerError(f"cannot read {path} as a tokenizer: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise TokenizerError(f"cannot write {path}: {error}") from error


def _content(token: Any) -> str | None:
    return token["content"] if isinstance(token, Mapping) else None if token is None else str_of(token)


def token_of(token: Any) -> Any:
    """A token from an argument or from JSON, where an `AddedToken` is a mapping."""
    if isinstance(token, Mapping):
        fields = ("single_word", "lstrip", "rstrip", "normalized", "special")
        return AddedToken(token["content"], **{name: token[name] for name in fields if name in token})
    if token is None or isinstance(token, str | AddedToken):
        return token
    raise TokenizerError(f"special token: got {token!r}, expected a string or an AddedToken")


def plain_token(value: Any, special: bool = True) -> Any:
    """`AddedToken` as a mapping of JSON, anything else as it is."""
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_token(item, special) for item in value]
    if not isinstance(value, AddedToken):
        return value
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word", *(("special",) if special else ()))
    return {name: getattr(value, name) for name in fields}


def read_vocabulary(path: str | os.PathLike[str]) -> dict[str, int]:
    """The ids of a vocab.txt: line numbers."""
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read the vocabulary {path}: {error}") from error
    if lines[-1] == "":
        lines.pop()
    return {token: index for index, token in enumerate(lines)}


def read_merges(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """The pairs of a merges.txt, in order; a first line that begins with #version is none."""
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read the merges {path}: {error}") from error
    rows = [line.split() for line in lines[lines[0].startswith("#version") :] if line]
    wrong = [" ".join(row) for row in rows if len(row) != 2]
    if wrong:
        raise TokenizerError(f"{path}: every line must be two symbols", wrong[:5])
    return [(first, second) for first, second in rows]


def read_vocab_json(path: str | os.PathLike[str]) -> dict[str, int]:
    """The ids of a vocab.json."""
    if not Path(path).is_file():
        raise TokenizerError(f"cannot read the vocabulary {path}: no such file")
    return read_json(Path(path))


def listing(directory: Path) -> str:
    """The names in a directory, for messages."""
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing"
