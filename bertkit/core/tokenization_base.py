"""What all tokenizers share: calling, padding, decoding, special tokens, loading and saving.

The text work is done by the Rust object of the `tokenizers` library. That object carries its truncation
setting as state, so it is never shared by two calls that run at the same time: each call leases one, and a
second thread gets a copy of its own. Padding needs no state, it is applied to the encodings afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from tokenizers import AddedToken, Encoding, Tokenizer

from bertkit.core.errors import TokenizerError
from bertkit.core.tokenization_batch import BatchEncoding, tensor_kind, to_python
from bertkit.core.tokenization_files import (
    CONFIG_FILE,
    NAMED_TOKENS,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_FILE,
    find_directory,
    listing,
    plain_token,
    read_arguments,
    read_backend,
    str_of,
    token_of,
    write_text,
)

VERY_LARGE_INTEGER = int(1e30)
PADDING = ("longest", "max_length", "do_not_pad")
TRUNCATION = ("longest_first", "only_first", "only_second", "do_not_truncate")
SIDES = ("right", "left")

SPECIAL_TOKENS = (*NAMED_TOKENS, "additional_special_tokens")

HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")

# Spaces that the decoder of English text leaves before punctuation and contractions.
CLEAN_UP = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}


def _token_property(name: str) -> property:
    def read(self: PreTrainedTokenizerFast) -> str | None:
        token = self._special.get(name)
        return None if token is None else str_of(token)

    def write(self: PreTrainedTokenizerFast, token: str | AddedToken | None) -> None:
        self._special[name] = token

    return property(
        read,
        write,
        doc=f"The {name.replace('_', ' ')}, or None; setting it does not add it to the vocabulary.",
    )


def _token_id_property(name: str) -> property:
    def read(self: PreTrainedTokenizerFast) -> int | None:
        token = getattr(self, name)
        return None if token is None else self.convert_tokens_to_ids(token)

    def write(self: PreTrainedTokenizerFast, token_id: int | None) -> None:
        setattr(self, name, None if token_id is None else self.convert_ids_to_tokens(token_id))

    return property(read, write, doc=f"The id of the {name.replace('_', ' ')}, or None.")


def _choice_property(name: str, allowed: Sequence[str], doc: str) -> property:
    def read(self: PreTrainedTokenizerFast) -> str:
        return self.__dict__[f"_{name}"]

    def write(self: PreTrainedTokenizerFast, value: str) -> None:
        self.__dict__[f"_{name}"] = _checked(name, value, allowed)

    return property(read, write, doc=doc)


class PreTrainedTokenizerFast:
    """A tokenizer around any `tokenizers.Tokenizer`: the template of all tokenizers of bertkit.

    Args:
        tokenizer_object: the Rust tokenizer; it is copied.
        tokenizer_file: a tokenizer.json to read it from instead.
        bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token: special tokens, `str` or
            `AddedToken`; those that the vocabulary lacks are added at its end.
        additional_special_tokens: more tokens that are never split and that decoding can skip.
        model_max_length: how many tokens the model takes; the limit for `truncation=True` without
            `max_length`.
        padding_side, truncation_side: "right" or "left".
        model_input_names: which inputs a call returns unless asked otherwise.
        clean_up_tokenization_spaces: whether `decode` removes the spaces before punctuation.
        added_tokens_decoder: tokens to add, by id, as tokenizer_config.json holds them.
        verbose: whether to warn.
        kwargs: kept in `init_kwargs` and written to tokenizer_config.json.

    Raises:
        TokenizerError: a file cannot be read, or an argument has an impossible value.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> vocab = {"[UNK]": 0, "[PAD]": 1, "hello": 2, "world": 3}
        >>> words = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
        >>> tokenizer(["hello world", "hello"], padding=True)["input_ids"]
        [[2, 3], [2, 1]]
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"tokenizer_file": TOKENIZER_FILE}
    model_input_names: Sequence[str] = ("input_ids", "token_type_ids", "attention_mask")

    bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token = map(_token_property, NAMED_TOKENS)
    bos_token_id, eos_token_id, unk_token_id, sep_token_id, pad_token_id, cls_token_id, mask_token_id = map(
        _token_id_property, NAMED_TOKENS
    )
    padding_side = _choice_property("padding_side", SIDES, "Where padding goes: 'right' or 'left'.")
    truncation_side = _choice_property("truncation_side", SIDES, "Which end truncation removes: 'right' or 'left'.")

    def __init__(
        self,
        *,
        tokenizer_object: Tokenizer | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        model_max_length: int | None = None,
        padding_side: str | None = None,
        truncation_side: str | None = None,
        model_input_names: Sequence[str] | None = None,
        clean_up_tokenization_spaces: bool = True,
        added_tokens_decoder: Mapping[int | str, Any] | None = None,
        verbose: bool = True,
        name_or_path: str = "",
        **kwargs: Any,
    ) -> None:
        if tokenizer_object is not None:
            backend = copy.deepcopy(tokenizer_object)
        elif tokenizer_file is not None:
            backend = read_backend(tokenizer_file)
        else:
            raise TokenizerError(
                f"{type(self).__name__} needs something to build from",
                remedy="Give tokenizer_file or tokenizer_object, or call from_pretrained(directory).",
            )
        truncation, padding = backend.truncation or {}, backend.padding or {}
        self._backend = backend
        self._idle = [backend]
        self._warned: set[str] = set()
        self.verbose = verbose
        self.name_or_path = name_or_path
        self.model_max_length = VERY_LARGE_INTEGER if model_max_length is None else int(model_max_length)
        self.padding_side = padding_side or padding.get("direction", "right")
        self.truncation_side = truncation_side or truncation.get("direction", "right")
        self.model_input_names = list(model_input_names or type(self).model_input_names)
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.pad_token_type_id = padding.get("pad_type_id", 0)
        if padding:
            kwargs.setdefault("pad_token", padding["pad_token"])
        self._special: dict[str, Any] = {name: token_of(kwargs.pop(name, None)) for name in NAMED_TOKENS}
        self._special["additional_special_tokens"] = [
            token_of(token) for token in kwargs.pop("additional_special_tokens", None) or ()
        ]
        self.init_kwargs = kwargs
        self._register_tokens(added_tokens_decoder or {})

    # ------------------------------------------------------------------------------- text to numbers

    def __call__(
        self,
        text: str | Sequence[Any],
        text_pair: str | Sequence[Any] | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Turn a text, a pair, or a batch of them into model inputs.

        Args:
            text: a string; a list of strings (a batch); with `is_split_into_words`, a list of words or a list
                of such lists.
            text_pair: the second text, of the same form.
            add_special_tokens: put `[CLS]` and `[SEP]` (or `<s>` and `</s>`) around.
            padding: False or "do_not_pad"; True or "longest" (the longest row of the batch); "max_length".
            truncation: False or "do_not_truncate"; True or "longest_first"; "only_first"; "only_second".
                Without it, a `max_length` without padding truncates too, with a warning.
            max_length: the length to truncate and pad to, special tokens included; default
                `model_max_length`.
            stride: how many tokens of a window are repeated in the next one.
            is_split_into_words: the texts are lists of words already.
            pad_to_multiple_of: round the padded length up to a multiple.
            return_tensors: "pt" (int64), "tf" (int32), "np" (int64), or None for lists.
            return_token_type_ids, return_attention_mask: None follows `model_input_names`.
            return_overflowing_tokens: give the windows that truncation cut off as rows of their own, and
                `overflow_to_sample_mapping`, the text that each row comes from.
            return_special_tokens_mask: 1 for special tokens and padding.
            return_offsets_mapping: (start, end) of each token in its text; (0, 0) for special tokens.
            return_length: the length of each row.
            verbose: warn about a row longer than `model_max_length`.

        Returns:
            The inputs, each of shape (rows, tokens); lists without the first axis for one text without
            `return_tensors` and without overflow.

        Raises:
            TokenizerError: texts of the wrong kind, arguments that do not fit together, rows of different
                length with `return_tensors`.
        """
        batched, inputs = self._read_texts(text, text_pair, is_split_into_words)
        encoded = self._encode(
            inputs,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            is_split_into_words=is_split_into_words,
            pad_to_multiple_of=pad_to_multiple_of,
            return_token_type_ids=return_token_type_ids,
            return_attention_mask=return_attention_mask,
            return_overflowing_tokens=return_overflowing_tokens,
            return_special_tokens_mask=return_special_tokens_mask,
            return_offsets_mapping=return_offsets_mapping,
            return_length=return_length,
            verbose=verbose,
        )
        if batched or return_tensors is not None or return_overflowing_tokens:
            return encoded.convert_to_tensors(return_tensors)
        return BatchEncoding(
            {key: rows[0] if isinstance(rows[0], list) else rows for key, rows in encoded.items()},
            encoded.encodings,
        )

    def encode_plus(
        self,
        text: str | Sequence[Any],
        text_pair: str | Sequence[Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Encode one text or pair; takes the arguments of calling the tokenizer.

        A list of tokens or of ids (without `is_split_into_words`) is taken as text that is tokenized already.
        """
        if isinstance(text, list | tuple) and not kwargs.get("is_split_into_words", False):
            second = None if text_pair is None else self._ids_of(text_pair)
            if "return_tensors" in kwargs:
                kwargs.setdefault("prepend_batch_axis", kwargs["return_tensors"] is not None)
            return self.prepare_for_model(self._ids_of(text), second, *args, **kwargs)
        return self(text, text_pair, *args, **kwargs)

    def batch_encode_plus(self, batch_text_or_text_pairs: Sequence[Any], *args: Any, **kwargs: Any) -> BatchEncoding:
        """Encode a list of texts or of pairs; takes the arguments of a call that follow `text_pair`."""
        if isinstance(batch_text_or_text_pairs, str):
            raise TokenizerError("batch_encode_plus: got one string, expected a list of texts or of pairs")
        batch = list(batch_text_or_text_pairs)
        words = kwargs.get("is_split_into_words", False)
        is_pair = bool(batch) and isinstance(batch[0], tuple) and len(batch[0]) == 2
        if is_pair and (not words or not isinstance(batch[0][0], str)):
            first, second = zip(*batch, strict=True)
            return self(list(first), list(second), *args, **kwargs)
        return self(batch, None, *args, **kwargs)

    def encode(
        self,
        text: str | Sequence[Any],
        text_pair: str | Sequence[Any] | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """The ids of one text or pair: a list, or a tensor of shape (1, tokens) with `return_tensors`."""
        return self.encode_plus(
            text,
            text_pair,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            return_tensors=return_tensors,
            **kwargs,
        )["input_ids"]

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any) -> list[str]:
        """The tokens of a text, as strings of the vocabulary."""
        return self.convert_ids_to_tokens(self(text, pair, add_special_tokens=add_special_tokens, **kwargs).input_ids)

    def _read_texts(self, text: Any, text_pair: Any, words: bool) -> tuple[bool, list[Any]]:
        """Whether it is a batch, and what the Rust tokenizer takes: texts or (text, pair) tuples."""
        text, text_pair = _as_lists(text), _as_lists(text_pair)
        if words:
            batched = isinstance(text, list) and bool(text) and isinstance(text[0], list | tuple)
        else:
            batched = isinstance(text, list)
        if not batched:
            _check_texts("text", [text], words)
            # A single empty second text counts as none, as it always has in the fast tokenizers.
            if not text_pair:
                return False, [text]
            _check_texts("text_pair", [text_pair], words)
            return False, [(text, text_pair)]
        if text_pair is None:
            pairs = not words and bool(text) and all(isinstance(item, list | tuple) and len(item) == 2 for item in text)
            if pairs:
                first, second = map(list, zip(*text, strict=True))
                return self._read_texts(first, second, words)
            _check_texts("text", text, words)
            return True, text
        if not isinstance(text_pair, list) or len(text) != len(text_pair):
            received = f"a list of {len(text_pair)}" if isinstance(text_pair, list) else type(text_pair).__name__
            raise TokenizerError(
                "text and text_pair do not fit together",
                [f"text_pair: got {received}, expected a list of {len(text)}, as many as text has"],
            )
        _check_texts("text", text, words)
        _check_texts("text_pair", text_pair, words)
        return True, list(zip(text, text_pair, strict=True))

    def _encode(
        self,
        inputs: list[Any],
        *,
        add_special_tokens: bool,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        stride: int,
        is_split_into_words: bool,
        pad_to_multiple_of: int | None,
        return_token_type_ids: bool | None,
        return_attention_mask: bool | None,
        return_overflowing_tokens: bool,
        return_special_tokens_mask: bool,
        return_offsets_mapping: bool,
        return_length: bool,
        verbose: bool,
    ) -> BatchEncoding:
        padding, truncation, length = self._strategies(padding, truncation, max_length, pad_to_multiple_of, verbose)
        setting = None
        if truncation != "do_not_truncate":
            setting = {
                "max_length": length,
                "stride": stride,
                "strategy": truncation,
                "direction": self.truncation_side,
            }
            has_pairs = bool(inputs) and isinstance(inputs[0], tuple)
            reserved = self.num_special_tokens_to_add(has_pairs) if add_special_tokens else 0
            if length < reserved:
                raise TokenizerError(f"max_length: got {length}, expected room for the {reserved} special tokens")
            if not 0 <= stride < max(length - reserved, 1):
                raise TokenizerError(
                    f"stride: got {stride}, expected 0 to {max(length - reserved, 1) - 1}, under what "
                    f"max_length={length} holds beside the {reserved} special tokens"
                )
        try:
            with self._leased(setting) as backend:
                encodings = backend.encode_batch(
                    inputs, is_pretokenized=is_split_into_words, add_special_tokens=add_special_tokens
                )
        except Exception as error:  # the Rust library raises bare exceptions
            raise TokenizerError(f"cannot encode: {error}") from error
        self._pad_encodings(encodings, padding, length, pad_to_multiple_of)

        samples = [0] * len(encodings)
        if return_overflowing_tokens:
            windows = [[encoding, *encoding.overflowing] for encoding in encodings]
            samples = [sample for sample, rows in enumerate(windows) for _ in rows]
            encodings = [row for rows in windows for row in rows]
        if return_token_type_ids is None:
            return_token_type_ids = "token_type_ids" in self.model_input_names
        if return_attention_mask is None:
            return_attention_mask = "attention_mask" in self.model_input_names
        columns = {
            "input_ids": [encoding.ids for encoding in encodings],
            "token_type_ids": return_token_type_ids and [encoding.type_ids for encoding in encodings],
            "attention_mask": return_attention_mask and [encoding.attention_mask for encoding in encodings],
            "special_tokens_mask": return_special_tokens_mask and [row.special_tokens_mask for row in encodings],
            "offset_mapping": return_offsets_mapping and [encoding.offsets for encoding in encodings],
            "length": return_length and [len(encoding) for encoding in encodings],
            "overflow_to_sample_mapping": return_overflowing_tokens and samples,
        }
        longest = max(map(len, encodings), default=0)
        self._warn_if_too_long(longest, max_length, verbose)
        return BatchEncoding({key: rows for key, rows in columns.items() if rows is not False}, encodings)

    def _pad_encodings(self, encodings: list[Encoding], padding: str, max_length: Any, multiple: int | None) -> None:
        if padding == "do_not_pad" or not encodings:
            return
        length = max_length if padding == "max_length" else max(map(len, encodings))
        length = _round_up(length, multiple)
        for encoding in encodings:
            encoding.pad(
                length,
                direction=self.padding_side,
                pad_id=self.pad_token_id,
                pad_type_id=self.pad_token_type_id,
                pad_token=self.pad_token,
            )

    @contextlib.contextmanager
    def _leased(self, truncation: dict[str, Any] | None) -> Iterator[Tokenizer]:
        """A Rust tokenizer that nobody else uses meanwhile, with this truncation and no padding."""
        idle = self._idle
        try:
            backend = idle.pop()
        except IndexError:
            backend = copy.deepcopy(self._backend)
        try:
            if backend.padding is not None:
                backend.no_padding()
            current = backend.truncation
            if truncation is None:
                if current is not None:
                    backend.no_truncation()
            elif current != truncation:
                backend.enable_truncation(**truncation)
            yield backend
        finally:
            idle.append(backend)

    def _strategies(
        self,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        multiple: int | None,
        verbose: bool,
    ) -> tuple[str, str, Any]:
        """Names for padding and truncation, and the length: an integer wherever one of the two uses it."""
        if max_length is not None and padding is False and truncation is None:
            self._warn_once(
                "implicit truncation",
                f"max_length={max_length} without truncation: truncating with 'longest_first'. "
                "Give truncation=True to say so, or truncation=False to keep whole texts.",
                verbose,
            )
            truncation = "longest_first"
        if isinstance(padding, bool):
            padding = "longest" if padding else "do_not_pad"
        if isinstance(truncation, bool) or truncation is None:
            truncation = "longest_first" if truncation else "do_not_truncate"
        _checked("padding", padding, (*PADDING, True, False))
        _checked("truncation", truncation, (*TRUNCATION, True, False))
        if max_length is not None and (isinstance(max_length, bool) or max_length < 0):
            raise TokenizerError(f"max_length: got {max_length!r}, expected a non-negative integer")
        if multiple is not None and multiple < 1:
            raise TokenizerError(f"pad_to_multiple_of: got {multiple!r}, expected a positive integer")
        if padding == "longest" and max_length is not None and truncation == "do_not_truncate":
            self._warn_once(
                "ignored max_length",
                "max_length is ignored with padding=True and no truncation; padding='max_length' pads to it.",
                verbose,
            )
        if max_length is None and (padding == "max_length" or truncation != "do_not_truncate"):
            if self.model_max_length >= VERY_LARGE_INTEGER // 10**9:
                self._warn_once(
                    "unlimited",
                    "Neither model_max_length nor max_length says how long: rows stay as they are.",
                    verbose,
                )
                padding = "do_not_pad" if padding == "max_length" else padding
                truncation = "do_not_truncate"
            else:
                max_length = self.model_max_length
        if padding != "do_not_pad" and self.pad_token is None:
            raise TokenizerError(
                "padding needs a padding token, and this tokenizer has none",
                remedy="Set tokenizer.pad_token, or add one: add_special_tokens({'pad_token': '[PAD]'}).",
            )
        if padding != "do_not_pad" and truncation != "do_not_truncate" and multiple and (max_length or 0) % multiple:
            raise TokenizerError(
                f"max_length: got {max_length}, expected a multiple of pad_to_multiple_of={multiple} "
                "when rows are truncated and padded"
            )
        return padding, truncation, max_length

    def _warn_if_too_long(self, length: int, max_length: int | None, verbose: bool) -> None:
        if max_length is None and length > self.model_max_length:
            self._warn_once(
                "too long",
                f"A sequence has {length} tokens, and the model takes {self.model_max_length}. "
                "Give truncation=True, or cut it into windows.",
                verbose,
            )

    def _warn_once(self, topic: str, message: str, verbose: bool) -> None:
        if verbose and self.verbose and topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(message, UserWarning, stacklevel=5)  # the caller of __call__ or pad

    # ------------------------------------------------------------------------------- ids to inputs

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        """Put the special tokens around the ids of one text or of a pair; this base class adds none."""
        return [*token_ids_0, *(token_ids_1 or ())]

    def create_token_type_ids_from_sequences(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        """The types of `build_inputs_with_special_tokens`: 0 for the first text, 1 for the second."""
        first = len(self.build_inputs_with_special_tokens(token_ids_0))
        both = len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))
        return [0] * first + [1] * (both - first)

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for every special token, 0 for the others.

        Args:
            token_ids_0: ids of a text.
            token_ids_1: ids of the second text.
            already_has_special_tokens: `token_ids_0` is complete; without it the mask is that of
                `build_inputs_with_special_tokens(token_ids_0, token_ids_1)`.

        Raises:
            TokenizerError: a second text together with `already_has_special_tokens`.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise TokenizerError("token_ids_1: expected None, because token_ids_0 has its special tokens already")
            special = set(self.all_special_ids)
            return [int(token_id in special) for token_id in token_ids_0]
        # Whatever stands in the texts is no special token here: mark it with an id that no vocabulary holds.
        second = None if token_ids_1 is None else [-1] * len(token_ids_1)
        return [int(token_id != -1) for token_id in self.build_inputs_with_special_tokens([-1] * len(token_ids_0), second)]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens encoding a text, or a pair, adds."""
        return self._backend.num_special_tokens_to_add(pair)

    @property
    def max_len_single_sentence(self) -> int:
        """How many tokens of one text fit into the model."""
        return self.model_max_length - self.num_special_tokens_to_add(False)

    @property
    def max_len_sentences_pair(self) -> int:
        """How many tokens of two texts together fit into the model."""
        return self.model_max_length - self.num_special_tokens_to_add(True)

    def prepare_for_model(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        prepend_batch_axis: bool = False,
    ) -> BatchEncoding:
        """Make model inputs from the ids of one text or of a pair, without special tokens.

        Takes what calling the tokenizer takes. With `return_overflowing_tokens` it gives
        `overflowing_tokens`, the ids that were cut off (with `stride` ids before them), and
        `num_truncated_tokens`.

        Raises:
            TokenizerError: overflow of a pair with "longest_first", or arguments that do not fit together.
        """
        asked_length = max_length
        padding, truncation, max_length = self._strategies(padding, truncation, max_length, pad_to_multiple_of, verbose)
        if return_overflowing_tokens and truncation == "longest_first" and pair_ids is not None:
            raise TokenizerError(
                "overflowing tokens of a pair are not defined for 'longest_first'",
                remedy="Use truncation='only_first' or 'only_second'.",
            )
        around = self.build_inputs_with_special_tokens([], None if pair_ids is None else [])
        total = len(ids) + len(pair_ids or ()) + (len(around) if add_special_tokens else 0)
        overflow: list[int] = []
        if truncation != "do_not_truncate" and max_length is not None and total > max_length:
            ids, pair_ids, overflow = self._truncate_ids(ids, pair_ids, total - max_length, truncation, stride)

        columns: dict[str, Any] = {}
        if return_overflowing_tokens:
            columns["overflowing_tokens"] = overflow
            columns["num_truncated_tokens"] = total - (max_length if max_length is not None else total)
        if add_special_tokens:
            columns["input_ids"] = self.build_inputs_with_special_tokens(ids, pair_ids)
            types = self.create_token_type_ids_from_sequences(ids, pair_ids)
            special_mask = self.get_special_tokens_mask(ids, pair_ids)
        else:
            columns["input_ids"] = [*ids, *(pair_ids or ())]
            types = [0] * len(ids) + [0] * len(pair_ids or ())
            special_mask = [0] * len(types)
        if return_token_type_ids or (return_token_type_ids is None and "token_type_ids" in self.model_input_names):
            columns["token_type_ids"] = types
        if return_special_tokens_mask:
            columns["special_tokens_mask"] = special_mask
        self._warn_if_too_long(len(columns["input_ids"]), asked_length, verbose)
        columns = self._pad_row(columns, padding, max_length, pad_to_multiple_of, return_attention_mask)
        if return_length:
            columns["length"] = len(columns["input_ids"])
        return BatchEncoding(columns, tensor_type=return_tensors, prepend_batch_axis=prepend_batch_axis)

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad rows that are encoded already; works as the `collate_fn` of a data loader.

        Only `input_ids`, `attention_mask`, `token_type_ids` and `special_tokens_mask` are padded; everything
        else (labels, say) is left as it is.

        Args:
            encoded_inputs: one row, a batch (a mapping of lists of rows), or a list of rows, each a mapping.
                Values are lists, numpy arrays or tensors.
            padding, max_length, pad_to_multiple_of: as in calling the tokenizer.
            return_attention_mask: None follows `model_input_names`.
            return_tensors: "pt", "tf", "np"; None gives what came in: lists, or tensors of that framework.
            verbose: whether to warn.

        Raises:
            TokenizerError: there are no `input_ids`, or the columns differ in their number of rows.
        """
        if not isinstance(encoded_inputs, Mapping):
            rows = list(encoded_inputs)
            names = list(rows[0]) if rows else []
            other = [f"row {i}: got {list(row)}" for i, row in enumerate(rows) if row.keys() != rows[0].keys()]
            if other:
                raise TokenizerError(f"pad: expected {names} in every row, as in the first", other[:5])
            encoded_inputs = {name: [row[name] for row in rows] for name in names or ["input_ids"]}
        if "input_ids" not in encoded_inputs:
            raise TokenizerError(f"pad: got {list(encoded_inputs)}, expected input_ids among them")
        if len(encoded_inputs["input_ids"]) == 0:
            return BatchEncoding({**encoded_inputs, **({"attention_mask": []} if return_attention_mask else {})})
        return_tensors = return_tensors or tensor_kind(encoded_inputs["input_ids"])
        columns = {key: to_python(value) for key, value in encoded_inputs.items()}
        padding, _, max_length = self._strategies(padding, False, max_length, pad_to_multiple_of, verbose)
        if not isinstance(columns["input_ids"][0], list | tuple):
            row = self._pad_row(columns, padding, max_length, pad_to_multiple_of, return_attention_mask)
            return BatchEncoding(row, tensor_type=return_tensors)
        count = len(columns["input_ids"])
        wrong = [f"{key}: got {len(column)} rows" for key, column in columns.items() if len(column) != count]
        if wrong:
            raise TokenizerError(f"pad: input_ids has {count} rows, expected as many in every column", wrong)
        if padding == "longest":
            padding, max_length = "max_length", max(map(len, columns["input_ids"]))
        padded = [
            self._pad_row(
                {key: column[i] for key, column in columns.items()},
                padding,
                max_length,
                pad_to_multiple_of,
                return_attention_mask,
            )
            for i in range(count)
        ]
        return BatchEncoding({key: [row[key] for row in padded] for key in padded[0]}, tensor_type=return_tensors)

    def _pad_row(
        self,
        row: dict[str, Any],
        padding: str,
        max_length: Any,
        multiple: int | None,
        return_attention_mask: bool | None,
    ) -> dict[str, Any]:
        row, length = dict(row), len(row["input_ids"])
        if return_attention_mask or (return_attention_mask is None and "attention_mask" in self.model_input_names):
            row.setdefault("attention_mask", [1] * length)
        if padding == "do_not_pad":
            return row
        missing = _round_up(length if padding == "longest" else max_length, multiple) - length
        fill = {
            "input_ids": self.pad_token_id,
            "attention_mask": 0,
            "token_type_ids": self.pad_token_type_id,
            "special_tokens_mask": 1,
        }
        for key in fill.keys() & row.keys():
            extra = [fill[key]] * missing
            row[key] = [*row[key], *extra] if self.padding_side == "right" else [*extra, *row[key]]
        return row

    def _truncate_ids(
        self, ids: list[int], pair_ids: list[int] | None, excess: int, truncation: str, stride: int
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Both texts without `excess` ids, and the ids that were cut off with `stride` ids of context."""
        if truncation == "longest_first" and pair_ids is not None:
            surplus = min(abs(len(ids) - len(pair_ids)), excess)
            cut_first = (excess - surplus) // 2
            cut_second = excess - surplus - cut_first
            if len(ids) > len(pair_ids):
                cut_first += surplus
            else:
                cut_second += surplus
            return self._cut(ids, cut_first), self._cut(pair_ids, cut_second), []
        target = pair_ids if truncation == "only_second" else ids
        if target is None or len(target) <= excess:
            which = "second" if truncation == "only_second" else "first"
            raise TokenizerError(
                f"{truncation!r} cannot remove {excess} tokens: the {which} text has {len(target or ())}",
                remedy="Use truncation='longest_first', or a larger max_length.",
            )
        window = min(len(target), stride + excess)
        overflow = target[:window] if self.truncation_side == "left" else target[-window:]
        kept = self._cut(target, excess)
        return (ids, kept, overflow) if truncation == "only_second" else (kept, pair_ids, overflow)

    def _cut(self, ids: list[int], count: int) -> list[int]:
        return ids[count:] if self.truncation_side == "left" else ids[: len(ids) - count]

    # ------------------------------------------------------------------------------- numbers to text

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """The text of a row of ids.

        Args:
            token_ids: an id, or a list, array or tensor of ids.
            skip_special_tokens: leave out `[CLS]`, `[SEP]`, padding, ...
            clean_up_tokenization_spaces: remove the spaces before punctuation; None follows the tokenizer's
                own setting, which is True by default.
            kwargs: accepted and ignored (`spaces_between_special_tokens`, say).

        Raises:
            TokenizerError: a negative id, or several rows at once.
        """
        text = self._decode_ids(self._flat_ids(token_ids), skip_special_tokens)
        clean_up = self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up else text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """The text of every row of a batch: lists, an array or a tensor of shape (rows, tokens)."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces, **kwargs) for row in to_python(sequences)]

    def _decode_ids(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def _flat_ids(self, token_ids: Any) -> list[int]:
        ids = to_python(token_ids)
        ids = ids if isinstance(ids, list) else [ids]
        if any(isinstance(token_id, list | tuple) for token_id in ids):
            raise TokenizerError("got several rows of ids, expected one", remedy="Use batch_decode for a batch.")
        negative = sorted({token_id for token_id in ids if token_id < 0})
        if negative:
            raise TokenizerError(
                f"token ids: got {negative[0]}, expected 0 to {len(self) - 1}",
                remedy="Replace ignored labels: [i if i >= 0 else tokenizer.pad_token_id for i in labels].",
            )
        return ids

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """Remove the spaces before punctuation and English contractions."""
        for spaced, joined in CLEAN_UP.items():
            out_string = out_string.replace(spaced, joined)
        return out_string

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Join tokens into text."""
        return self._backend.decoder.decode(list(tokens)) if self._backend.decoder else " ".join(tokens)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str] | None) -> Any:
        """The id of a token, or the ids of several; what the vocabulary lacks gets the unknown token's id."""
        if tokens is None:
            return None
        if isinstance(tokens, str):
            token_id = self._backend.token_to_id(tokens)
            # The unknown token itself may be missing: that must not look itself up for ever.
            return self.unk_token_id if token_id is None and tokens != self.unk_token else token_id
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the tokens of several; None for an id outside the vocabulary."""
        flat = self._flat_ids(ids)
        if not isinstance(to_python(ids), list):
            return self._backend.id_to_token(flat[0])
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._backend.id_to_token(token_id) for token_id in flat if token_id not in skipped]

    def _ids_of(self, tokens: Sequence[Any]) -> list[int]:
        if all(isinstance(token, str) for token in tokens):
            return self.convert_tokens_to_ids(list(tokens))
        return self._flat_ids(list(tokens))

    # ------------------------------------------------------------------------------- vocabulary

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The Rust tokenizer. Change it only while no other thread encodes."""
        return self._backend

    @property
    def is_fast(self) -> bool:
        """True: every tokenizer here is backed by Rust and knows offsets, whatever its name."""
        return True

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens; `len(tokenizer)` is the size with them."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """The id of every token, added ones included."""
        return self._backend.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        """The same as `get_vocab()`."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The added tokens (special ones included) by id."""
        return dict(sorted(self._backend.get_added_tokens_decoder().items()))

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """The ids of the added tokens (special ones included)."""
        return {token.content: token_id for token_id, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """The same as `added_tokens_encoder`."""
        return self.added_tokens_encoder

    def add_tokens(self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        """Add tokens at the end of the vocabulary; resize the model's embeddings afterwards.

        Args:
            new_tokens: one or several tokens; those that exist already are not added again.
            special_tokens: they are matched before any normalisation and can be skipped when decoding.

        Returns:
            How many were new.
        """
        tokens = [new_tokens] if isinstance(new_tokens, str | AddedToken) else list(new_tokens or ())
        size = len(self)
        known = self.added_tokens_encoder
        # A known token given by name keeps its properties; an AddedToken replaces them.
        tokens = [token for token in tokens if special_tokens or not isinstance(token, str) or token not in known]
        if special_tokens:
            self._backend.add_special_tokens(tokens)
        else:
            self._backend.add_tokens(tokens)
        self._idle = [self._backend]
        return len(self) - size

    def add_special_tokens(self, special_tokens_dict: Mapping[str, Any], replace_additional_special_tokens: bool = True) -> int:
        """Set special tokens by name, adding to the vocabulary those that it lacks.

        Args:
            special_tokens_dict: `{"pad_token": "[PAD]", "additional_special_tokens": ["<a>", "<b>"]}`.
            replace_additional_special_tokens: whether the list of additional tokens is replaced or extended.

        Returns:
            How many were new.

        Raises:
            TokenizerError: a name that is no special token's.
        """
        unknown = [name for name in special_tokens_dict if name not in SPECIAL_TOKENS]
        if unknown:
            raise TokenizerError("unknown special tokens", unknown, f"Use one of {', '.join(SPECIAL_TOKENS)}.")
        tokens: list[AddedToken] = []
        for name, value in special_tokens_dict.items():
            if name != "additional_special_tokens":
                token = self._special_token(value)
                self._special[name] = token
                tokens.append(token)
                continue
            old = [] if replace_additional_special_tokens else list(self._special[name])
            known = {str_of(token) for token in old}
            new = [self._special_token(token) for token in value if str_of(token_of(token)) not in known]
            self._special[name] = old + new
            tokens += new
        return self.add_tokens(tokens, special_tokens=True)

    @staticmethod
    def _special_token(token: Any) -> AddedToken:
        token = token_of(token)
        return AddedToken(token, special=True, normalized=False) if isinstance(token, str) else token

    def _register_tokens(self, added_tokens_decoder: Mapping[int | str, Any]) -> None:
        """Make the Rust tokenizer know every added and special token, in the order of the ids."""
        known = self.added_tokens_encoder
        order = sorted(added_tokens_decoder.items(), key=lambda item: int(item[0]))
        tokens = {str_of(token): token for token in (token_of(value) for _, value in order)}
        for name in NAMED_TOKENS:
            token = self._special[name]
            if token is not None:
                # What a file says about a token (stripping, say) wins over a bare name in the arguments.
                tokens.setdefault(str_of(token), self._special_token(token))
        for token in self._special["additional_special_tokens"]:
            tokens.setdefault(str_of(token), self._special_token(token))
        special = set(self.all_special_tokens)
        for content, token in tokens.items():
            if content not in known:
                is_special = content in special or getattr(token, "special", False)
                self.add_tokens(token, special_tokens=is_special)

    @property
    def additional_special_tokens(self) -> list[str]:
        """More special tokens; setting them does not add them to the vocabulary."""
        return [str_of(token) for token in self._special["additional_special_tokens"]]

    @additional_special_tokens.setter
    def additional_special_tokens(self, tokens: Iterable[str | AddedToken] | None) -> None:
        self._special["additional_special_tokens"] = list(tokens or ())

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """The ids of the additional special tokens."""
        return self.convert_tokens_to_ids(self.additional_special_tokens)

    @additional_special_tokens_ids.setter
    def additional_special_tokens_ids(self, token_ids: Sequence[int]) -> None:
        self.additional_special_tokens = self.convert_ids_to_tokens(list(token_ids))

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """The special tokens that are set, by name."""
        return {name: value for name in SPECIAL_TOKENS if (value := getattr(self, name))}

    @property
    def special_tokens_map_extended(self) -> dict[str, Any]:
        """The same with `AddedToken`, which says how a token matches, where the vocabulary has one."""
        known = {token.content: token for token in self.added_tokens_decoder.values()}
        return {
            name: [known.get(token, token) for token in value] if isinstance(value, list) else known.get(value, value)
            for name, value in self.special_tokens_map.items()
        }

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once."""
        tokens = [getattr(self, name) for name in NAMED_TOKENS] + self.additional_special_tokens
        return list(dict.fromkeys(token for token in tokens if token is not None))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    # ------------------------------------------------------------------------------- files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a tokenizer from a directory or from the Hugging Face hub.

        Args:
            pretrained_model_name_or_path: a directory with tokenizer.json or the vocabulary files of this
                class, and perhaps tokenizer_config.json; or a hub id.
            kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `subfolder` for
                the hub; everything else overrides what tokenizer_config.json says.

        Raises:
            TokenizerError: the directory lacks the files, or they cannot be read.
            CheckpointError: the directory or hub id does not exist.
        """
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        kwargs.pop("trust_remote_code", None)  # nothing from a checkpoint is ever run
        kwargs.pop("use_fast", None)
        directory = find_directory(pretrained_model_name_or_path, **hub)
        arguments = read_arguments(directory)
        arguments.update(kwargs, name_or_path=str(pretrained_model_name_or_path))
        return cls(**cls._file_arguments(directory, arguments), **arguments)

    @classmethod
    def _file_arguments(cls, directory: Path, arguments: dict[str, Any]) -> dict[str, Any]:
        """The constructor's file arguments: tokenizer.json, or the vocabulary files where that is absent."""
        given = {name for name in cls.vocab_files_names if arguments.get(name)}
        if given:
            return {}
        found = {
            argument: str(directory / name) for argument, name in cls.vocab_files_names.items() if (directory / name).is_file()
        }
        if "tokenizer_file" in found:
            return {"tokenizer_file": found["tokenizer_file"]}
        wanted = [argument for argument in cls.vocab_files_names if argument != "tokenizer_file"]
        if not wanted or any(argument not in found for argument in wanted):
            names = " and ".join(cls.vocab_files_names[argument] for argument in wanted)
            raise TokenizerError(
                f"{directory} holds no files for {cls.__name__}",
                [f"expected {TOKENIZER_FILE}{f', or {names}' if names else ''}; found {listing(directory)}"],
                "AutoTokenizer picks the class that fits the files.",
            )
        return found

    def save_pretrained(self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and the vocabulary files.

        `from_pretrained` of this class, and of the class of the same name in transformers, reads the
        directory.

        Returns:
            The files written.

        Raises:
            TokenizerError: the directory cannot be written.
        """
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        contents = {
            CONFIG_FILE: self._config(),
            SPECIAL_TOKENS_FILE: {
                name: plain_token(value, special=False) for name, value in self.special_tokens_map_extended.items()
            },
            TOKENIZER_FILE: self._backend_state(),
        }
        written = []
        for name, content in contents.items():
            path = Path(save_directory, prefix + name)
            write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            written.append(str(path))
        return (*written, *self.save_vocabulary(save_directory, filename_prefix))

    def save_vocabulary(self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary alone (vocab.txt, or vocab.json and merges.txt), without added tokens."""
        try:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            return tuple(self._backend.model.save(str(save_directory), filename_prefix))
        except Exception as error:  # the Rust library raises bare exceptions
            raise TokenizerError(f"cannot write the vocabulary to {save_directory}: {error}") from error

    def _config(self) -> dict[str, Any]:
        name = type(self).__name__
        return {
            **{key: plain_token(value) for key, value in self.init_kwargs.items()},
            **self.special_tokens_map,
            "added_tokens_decoder": {str(key): plain_token(token) for key, token in self.added_tokens_decoder.items()},
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "tokenizer_class": name if name == "PreTrainedTokenizerFast" else name.removesuffix("Fast"),
            **(
                {"model_input_names": self.model_input_names}
                if self.model_input_names != list(type(self).model_input_names)
                else {}
            ),
        }

    def _backend_state(self) -> dict[str, Any]:
        state = json.loads(self._backend.to_str())
        state["truncation"] = state["padding"] = None
        merges = state["model"].get("merges")
        # `tokenizers` before 0.20 reads a merge only as one string, which is ambiguous only with spaces.
        if merges and not any(" " in part for merge in merges for part in merge if not isinstance(merge, str)):
            state["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
        return state

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_idle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _idle=[state["_backend"]])

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, padding_side={self.padding_side!r}, "
            f"truncation_side={self.truncation_side!r}, special_tokens={self.special_tokens_map})"
        )


def _checked(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    if value not in allowed:
        raise TokenizerError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, allowed))}")
    return value


def _round_up(length: int, multiple: int | None) -> int:
    return length if not multiple else -(-length // multiple) * multiple


def _as_lists(text: Any) -> Any:
    """Sequences of texts as lists, all the way down; arrays of strings (numpy, pandas) too."""
    if isinstance(text, list | tuple):
        return [_as_lists(item) for item in text]
    return text.tolist() if hasattr(text, "tolist") else text


def _check_texts(name: str, texts: list[Any], words: bool) -> None:
    def is_text(text: Any) -> bool:
        if words:
            return isinstance(text, list | tuple) and all(isinstance(word, str) for word in text)
        return isinstance(text, str)

    wrong = [f"{name}[{i}]: got {type(text).__name__}" for i, text in enumerate(texts) if not is_text(text)]
    if wrong:
        more = [f"... and {len(wrong) - 5} more"] if len(wrong) > 5 else []
        raise TokenizerError(
            f"{name}: expected {'lists of words' if words else 'strings'}",
            [*wrong[:5], *more],
            "" if words else "Decode bytes first; for lists of words give is_split_into_words=True.",
        )
