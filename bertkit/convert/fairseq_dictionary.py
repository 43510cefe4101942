"""fairseq's dict.txt and our tokenizers, in both directions.

A dictionary lists symbols, a line each. The four special ones stand before the first line and `<mask>` after the last, so
a symbol's row follows from its line. RoBERTa's symbols are the ids of GPT-2's byte-level BPE, in another order; other
models have words, letters or pieces of words as they stand in the text between blanks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors

from bertkit.core.errors import CheckpointError
from bertkit.core.tokenization import CHARACTER_TO_BYTE
from bertkit.core.tokenization_files import TOKENIZER_FILE

DICTIONARY, ENCODER, MERGES = "dict.txt", "encoder.json", "vocab.bpe"
INPUTS, LABELS = "input0/dict.txt", "label/dict.txt"
"""Where the task of classifying sentences looks for its dictionaries."""

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
"""The symbols of the first rows, in every dictionary."""

MASK = "<mask>"
FILLER = re.compile(r"madeupword\d{4,}")
OVERWRITE = " #fairseq:overwrite"
PIECE_START = "\u2581"
LARGEST_FILE = 1 << 27

ROLES = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>",
         "unk_token": "<unk>", "mask_token": MASK}


@dataclass
class Vocabulary:
    """What a dictionary gives.

    Args:
        ids: row by symbol.
        files: the files of our tokenizer; empty where none can be made.
        notes: what a user should know about it.
    """

    ids: dict[str, int] = field(default_factory=lambda: {symbol: row for row, symbol in enumerate(SPECIAL)})
    files: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


# -- reading ------------------------------------------------------------------------------------------------------------
def read_vocabulary(path: Path, rows: int, max_length: int) -> Vocabulary:
    """The tokenizer of a dict.txt, and of the encoder.json and vocab.bpe beside it.

    Args:
        path: the dict.txt.
        rows: rows of the word embeddings.
        max_length: tokens that the model takes.

    Raises:
        CheckpointError: when a file is damaged, or has another number of symbols than there are rows.
    """
    ids, symbols = _read_symbols(path)
    if len(symbols) == rows - 1 and MASK not in ids:
        ids[MASK] = len(symbols)
        symbols.append(MASK)
    if len(symbols) != rows:
        raise CheckpointError(
            f"{path} does not belong to this model",
            [f"symbols: got {len(symbols)} with the special ones, expected {rows}, or one less without {MASK}"],
            "Take the dict.txt that the model was trained with.")
    result = Vocabulary(ids)
    words = [symbol for symbol in symbols if symbol not in (*SPECIAL, MASK) and not FILLER.fullmatch(symbol)]
    options = {**{role: symbol for role, symbol in ROLES.items() if symbol in ids}, "model_max_length": max_length}
    options.setdefault("mask_token", None)
    if words and all(word.isascii() and word.isdecimal() for word in words):
        _add_bpe(result, path, options)
    elif any(word.startswith(PIECE_START) for word in words):
        result.notes.append(f"{path.name} lists pieces of SentencePiece, which bertkit does not know: no tokenizer was made")
    else:
        letters = all(len(word) == 1 for word in words)
        result.files = _word_files(ids, options, letters)
        result.notes.append("the tokenizer splits a text into single letters, the symbols of dict.txt" if letters else
                            "the tokenizer splits at blanks, as fairseq does: give it texts that are split as for training")
    return result


def read_labels(path: Path, count: int) -> list[str] | None:
    """The names of the classes in a label/dict.txt; None where it does not name them all."""
    if not path.is_file():
        return None
    labels = [symbol for symbol in _read_symbols(path)[1][len(SPECIAL):] if not FILLER.fullmatch(symbol)]
    return labels if len(labels) == count else None


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise CheckpointError(f"{path} is larger than {LARGEST_FILE >> 20} MB", remedy="Is it the right file?")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _read_symbols(path: Path) -> tuple[dict[str, int], list[str]]:
    """Row by symbol, and the symbol of each row; a symbol that is listed again takes the later row."""
    symbols, wrong = list(SPECIAL), []
    ids = {symbol: row for row, symbol in enumerate(symbols)}
    lines = _text(path).split("\n")
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        entry = line.rstrip()
        again = entry.endswith(OVERWRITE)
        symbol, _, count = entry.removesuffix(OVERWRITE).rpartition(" ")
        if not symbol or not re.fullmatch(r"-?\d+", count):
            wrong.append(f"line {number}: got {line[:50]!r}, expected a symbol and its count")
        elif symbol in ids and not again:
            wrong.append(f"line {number}: {symbol!r} is there twice")
        ids[symbol] = len(symbols)
        symbols.append(symbol)
    if wrong:
        more = [f"and {len(wrong) - 10} more"] if len(wrong) > 10 else []
        raise CheckpointError(f"{path} is no dictionary of fairseq", [*wrong[:10], *more])
    return ids, symbols


def _add_bpe(result: Vocabulary, path: Path, options: Mapping[str, Any]) -> None:
    """RoBERTa's tokenizer: the tokens of GPT-2 in the order of the dictionary."""
    merges_file, encoder_file = path.with_name(MERGES), path.with_name(ENCODER)
    if not merges_file.is_file():
        result.notes.append(f"{path.name} lists ids of GPT-2's BPE: for a tokenizer put its {MERGES} beside it")
        return
    text = _text(merges_file)
    merges = _merges(merges_file, text)
    encoder = _encoder(merges)
    if encoder_file.is_file():
        try:
            encoder = {str(token): int(number) for token, number in json.loads(_text(encoder_file)).items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{encoder_file} is no table of numbers by token: {error}") from error
    tokens = {str(number): token for token, number in encoder.items()}
    vocab = {tokens.get(symbol, symbol): row for symbol, row in result.ids.items()}
    needed = {*CHARACTER_TO_BYTE, *(token for first, second in merges for token in (first, second, first + second))}
    lacking = len(needed - {*vocab})
    if lacking:
        result.notes.append(f"{lacking} token(s) of {MERGES} are not in {path.name}: no tokenizer was made, as ours has a row "
                            "for every token")
        return
    result.files = {"vocab.json": _json(dict(sorted(vocab.items(), key=lambda item: item[1]))), "merges.txt": text.encode(),
                    "tokenizer_config.json": _json({"tokenizer_class": "RobertaTokenizer", **options})}


def _merges(path: Path, text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.split("\n") if line and not line.startswith("#version")]
    pairs = [tuple(line.split(" ")) for line in lines]
    wrong = [line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2 or not all(pair)]
    if wrong:
        raise CheckpointError(f"{path} is no list of merges",
                              [f"got {line[:50]!r}, expected two symbols" for line in wrong[:5]])
    return [(pair[0], pair[1]) for pair in pairs]


def _encoder(merges: list[tuple[str, str]]) -> dict[str, int]:
    """GPT-2's numbers: the bytes in the order of their characters, the merges, the end of a text."""
    tokens = [*sorted(CHARACTER_TO_BYTE), *(first + second for first, second in merges), "<|endoftext|>"]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _word_files(ids: Mapping[str, int], options: Mapping[str, Any], letters: bool) -> dict[str, bytes]:
    backend = Tokenizer(models.WordLevel(dict(ids), unk_token="<unk>"))
    split: Any = pre_tokenizers.WhitespaceSplit()
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.Split(Regex("."), "isolated")]) if letters else split
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B:0 </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])])
    backend.add_special_tokens([AddedToken(symbol, special=True, normalized=False)
                                for symbol in (*SPECIAL, MASK) if symbol in ids])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"],
              "clean_up_tokenization_spaces": False, **options}
    return {TOKENIZER_FILE: (backend.to_str(pretty=True) + "\n").encode(), "tokenizer_config.json": _json(config)}


def _json(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()


# -- writing ------------------------------------------------------------------------------------------------------------
def write_vocabulary(files: Mapping[str, bytes], rows: int) -> tuple[dict[str, bytes], str | None]:
    """The dictionary of one of our tokenizers, and what is beside it.

    Args:
        files: the files of the tokenizer.
        rows: rows of the word embeddings; those without a token become fillers.

    Returns:
        The files, and why there are none.
    """
    try:
        vocab, merges = _own_vocabulary(files)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return {}, f"no {DICTIONARY} was written: the tokenizer's files cannot be read ({error})"
    if not vocab:
        return {}, f"no {DICTIONARY} was written: there is no tokenizer with a vocabulary of words or byte-level BPE"
    symbols = {row: symbol for symbol, row in vocab.items()}
    wrong = [f"{symbols.get(row)!r} in row {row}" for row, symbol in enumerate(SPECIAL) if symbols.get(row) != symbol]
    if wrong or max(symbols) >= rows or len(symbols) != len(vocab):
        return {}, (f"no {DICTIONARY} was written: fairseq wants {' '.join(SPECIAL)} in the first rows, and one symbol a row; "
                    f"here is {', '.join(wrong) or f'row {max(symbols)}'}")
    encoder = _encoder(merges) if merges is not None else {}
    names = [symbols.get(row, f"madeupword{row:04d}") for row in range(len(SPECIAL), rows)]
    if names and names[-1] == MASK:
        del names[-1]  # fairseq's tasks add it
    lines = [f"{encoder.get(name, name)} {int(row + len(SPECIAL) in symbols)}" for row, name in enumerate(names)]
    strange = [name for name in names if not name or re.search(r"\s", name)]
    if strange or len({*lines}) != len(lines):
        return {}, f"no {DICTIONARY} was written: it cannot hold the symbol {(strange or lines)[0]!r}"
    written = {DICTIONARY: "".join(f"{line}\n" for line in lines).encode()}
    if merges is not None:
        text = "#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in merges)
        written |= {ENCODER: _json(encoder), MERGES: text.encode()}
    return written, None


def write_labels(names: Mapping[int, str]) -> tuple[dict[str, bytes], str | None]:
    """The dictionary that names the classes of a classifier, and why there is none."""
    labels = [names[index] for index in sorted(names)]
    strange = [label for label in labels if not label or label != label.strip() or len(label.splitlines()) > 1]
    if strange or len({*labels, *SPECIAL}) != len(labels) + len(SPECIAL):
        return {}, f"no {LABELS} was written: it cannot hold {(strange or labels)[0]!r}"
    return {LABELS: "".join(f"{label} 1\n" for label in labels).encode()}, None


def _own_vocabulary(files: Mapping[str, bytes]) -> tuple[dict[str, int], list[tuple[str, str]] | None]:
    """Row by token, and the merges of byte-level BPE; nothing where the tokenizer is of another kind."""
    if TOKENIZER_FILE in files:
        state = json.loads(files[TOKENIZER_FILE])
        model, kind = state["model"], state["model"].get("type")
        if kind not in ("WordLevel", "BPE"):
            return {}, None
        vocab = {**model["vocab"], **{token["content"]: token["id"] for token in state.get("added_tokens") or ()}}
        lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or ()]
        return vocab, _merges(Path(TOKENIZER_FILE), "\n".join(lines)) if kind == "BPE" else None
    if "vocab.json" in files and "merges.txt" in files:
        return json.loads(files["vocab.json"]), _merges(Path("merges.txt"), files["merges.txt"].decode())
    return {}, None
