"""What a tokenizer returns: a mapping of model inputs that is a plain dict for every framework."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding

from bertkit.core.errors import TokenizerError

TENSOR_TYPES = ("np", "pt", "tf")


class CharSpan(NamedTuple):
    """Characters `start` to `end` (exclusive) of the original string."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` to `end` (exclusive) of an encoded sequence."""

    start: int
    end: int


class BatchEncoding(dict):
    """Model inputs by name, with attribute access and the alignment between tokens, words and characters.

    It is a plain `dict`, so `model(**inputs)`, `tf.data`, `Model.fit` and `torch.utils.data` take it as it
    is. The first encoding with tensors registers the class as a pytree with the frameworks that are loaded
    (torch, and optree in the namespace "keras").

    A method that takes `(batch_index, index)` also takes the index alone, which then refers to the first row.

    Args:
        data: the inputs, a mapping or pairs of names and values; each value is of shape (rows, tokens), or
            one row.
        encoding: the `tokenizers.Encoding` of every row, or of the only row.
        tensor_type: "np", "pt" or "tf" turns every value into a tensor (int64, int64, int32); None does not.
        prepend_batch_axis: put a first axis of length 1 before every value that becomes a tensor.
        n_sequences: 1 for texts, 2 for pairs; read from `encoding` if it is there.

    Raises:
        TokenizerError: the rows differ in length, a value is no number, or the framework is missing.

    Example:
        >>> inputs = BatchEncoding({"input_ids": [[2, 7, 3]]}, tensor_type="np")
        >>> inputs.input_ids.shape
        (1, 3)
    """

    def __init__(
        self,
        data: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None,
        encoding: Encoding | list[Encoding] | None = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ) -> None:
        super().__init__(data if data is not None else {})
        encodings = [encoding] if isinstance(encoding, Encoding) else encoding
        if n_sequences is None and encodings:
            n_sequences = encodings[0].n_sequences
        self.__dict__.update(_encodings=encodings, _n_sequences=n_sequences)
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def __getitem__(self, item: str | int | slice) -> Any:
        if isinstance(item, str):
            return super().__getitem__(item)
        if self.encodings is not None:
            return self.encodings[item]
        if isinstance(item, slice):
            return {key: value[item] for key, value in self.items()}
        raise KeyError(f"{item!r}: use a name, a slice, or (with alignment information) a row number")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getitem__(name)
        except KeyError:
            raise AttributeError(f"BatchEncoding has no {name!r}; it holds {list(self)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __reduce__(self):
        return _restore, (dict(self), self.encodings, self.n_sequences)

    def copy(self) -> BatchEncoding:
        """A shallow copy that keeps the alignment."""
        return _restore(self, self.encodings, self.n_sequences)

    @property
    def data(self) -> dict[str, Any]:
        """The inputs as a mapping: the encoding itself."""
        return self

    @property
    def encodings(self) -> list[Encoding] | None:
        """The `tokenizers.Encoding` of every row; None when the inputs did not come from text."""
        return self.__dict__.get("_encodings")

    @property
    def n_sequences(self) -> int | None:
        """1 for texts, 2 for pairs, None when unknown."""
        return self.__dict__.get("_n_sequences")

    @property
    def is_fast(self) -> bool:
        """Whether alignment information is there."""
        return self.encodings is not None

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> BatchEncoding:
        """Turn every value into a tensor, in place; what is a tensor of that kind already stays as it is.

        Args:
            tensor_type: "np", "pt", "tf", or None for no change.
            prepend_batch_axis: put a first axis of length 1 before every value.

        Raises:
            TokenizerError: the rows differ in length, a value is no number, or the framework is missing.
        """
        if tensor_type is None:
            return self
        to_tensor, is_tensor = _converter(tensor_type)
        problems = []
        for key, value in self.items():
            if is_tensor(value) and not prepend_batch_axis:
                continue
            try:
                self[key] = to_tensor(_number_array([value] if prepend_batch_axis else value))
            except (ValueError, TypeError):
                problems.append(f"{key}: {_describe(value)}, expected numbers in rows of one length")
        if problems:
            raise TokenizerError(
                f'cannot make "{tensor_type}" tensors',
                problems,
                "Give padding=True (and truncation=True), so that all rows get one length.",
            )
        register_pytrees()
        return self

    def to(self, device: Any) -> BatchEncoding:
        """Move every torch tensor to `device`, in place, and return the encoding.

        Raises:
            TokenizerError: there is no torch tensor in it.
        """
        tensors = {key: value for key, value in self.items() if tensor_kind(value) == "pt"}
        if not tensors and self:
            remedy = 'Call the tokenizer with return_tensors="pt".'
            raise TokenizerError("no torch tensor to move", remedy=remedy)
        for key, value in tensors.items():
            self[key] = value.to(device)
        return self

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row, special tokens and padding included."""
        return self._row(batch_index).tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row: 0 for the first text, 1 for the second, None for special tokens."""
        return self._row(batch_index).sequence_ids

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row: the number of its word, None for special tokens."""
        return self._row(batch_index).word_ids

    words = word_ids

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Which text (0 or 1) a token comes from."""
        row, index = self._token(batch_or_token_index, token_index)
        return row.token_to_sequence(index)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The number of the word that a token belongs to."""
        row, index = self._token(batch_or_token_index, token_index)
        return row.token_to_word(index)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """The characters of the original text that a token covers; None for a special token."""
        row, index = self._token(batch_or_token_index, token_index)
        span = row.token_to_chars(index)
        return span and CharSpan(*span)

    def char_to_token(self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0) -> int | None:
        """The token that covers a character of text `sequence_index`; None for a blank."""
        row, index = self._position(batch_or_char_index, char_index)
        return row.char_to_token(index, sequence_index)

    def char_to_word(self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0) -> int | None:
        """The word that covers a character of text `sequence_index`."""
        row, index = self._position(batch_or_char_index, char_index)
        return row.char_to_word(index, sequence_index)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word of text `sequence_index`."""
        row, index = self._position(batch_or_word_index, word_index)
        span = row.word_to_tokens(index, sequence_index)
        return span and TokenSpan(*span)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters of a word of text `sequence_index`."""
        row, index = self._position(batch_or_word_index, word_index)
        span = row.word_to_chars(index, sequence_index)
        return span and CharSpan(*span)

    def _row(self, batch_index: int) -> Encoding:
        if self.encodings is None:
            raise TokenizerError(
                "this encoding holds no alignment between tokens and text",
                remedy="Only what a tokenizer returns for text has it; padding or slicing a dict loses it.",
            )
        return self.encodings[batch_index]

    def _position(self, batch_or_index: int, index: int | None) -> tuple[Encoding, int]:
        return (self._row(0), batch_or_index) if index is None else (self._row(batch_or_index), index)

    def _token(self, batch_or_index: int, index: int | None) -> tuple[Encoding, int]:
        row, index = self._position(batch_or_index, index)
        return row, index + len(row) if index < 0 else index


def to_python(value: Any) -> Any:
    """Numbers in lists, from a number, list, numpy array, torch or TensorFlow tensor, or a list of those."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "numpy"):
        return value.numpy().tolist()
    if isinstance(value, list | tuple):
        return [to_python(item) for item in value] if tensor_kind(value) else list(value)
    return value


def tensor_kind(value: Any) -> str | None:
    """Which `return_tensors` makes a value of this kind; None for python numbers and lists of them."""
    if isinstance(value, list | tuple) and value:
        return tensor_kind(value[0])
    module = type(value).__module__.partition(".")[0]
    return {"numpy": "np", "torch": "pt", "tensorflow": "tf"}.get(module)


def register_pytrees() -> None:
    """Tell torch and optree (which Keras uses) how to take a `BatchEncoding` apart, if they are loaded."""
    if "torch" in sys.modules and "torch" not in _REGISTERED:
        _REGISTERED.add("torch")
        pytree = importlib.import_module("torch.utils._pytree")
        pytree.register_pytree_node(
            BatchEncoding,
            lambda encoding: (list(encoding.values()), list(encoding)),
            lambda values, keys: BatchEncoding(zip(keys, values, strict=True)),
            serialized_type_name="bertkit.BatchEncoding",
            flatten_with_keys_fn=lambda encoding: (
                [(pytree.MappingKey(key), value) for key, value in encoding.items()],
                list(encoding),
            ),
        )
    # TensorFlow loads Keras, and with it optree, only when somebody asks for it: perhaps after this encoding.
    if "tensorflow" in sys.modules and "optree" not in sys.modules and importlib.util.find_spec("optree"):
        importlib.import_module("optree")
    if "optree" in sys.modules and "optree" not in _REGISTERED:
        _REGISTERED.add("optree")
        sys.modules["optree"].register_pytree_node(
            BatchEncoding,
            lambda encoding: (list(encoding.values()), tuple(encoding), tuple(encoding)),
            lambda keys, values: BatchEncoding(zip(keys, values, strict=True)),
            namespace="keras",
        )


_REGISTERED: set[str] = set()


def _restore(data: dict[str, Any], encodings: list[Encoding] | None, n_sequences: int | None) -> BatchEncoding:
    return BatchEncoding(data, encodings, n_sequences=n_sequences)


def _number_array(value: Any) -> np.ndarray:
    """An array of int64, float32 or bool; raises ValueError for ragged rows and for what is not numbers."""
    array = np.asarray(value if tensor_kind(value) in (None, "np") else to_python(value))
    if array.size == 0:
        return array.reshape(array.shape if array.ndim > 1 else (0, 0)).astype(np.int64)
    if array.dtype.kind not in "iufb":
        raise ValueError("not numbers")
    return array.astype({"f": np.float32, "b": np.bool_}.get(array.dtype.kind, np.int64))


def _converter(tensor_type: str) -> tuple[Any, Any]:
    if tensor_type not in TENSOR_TYPES:
        raise TokenizerError(f"return_tensors: got {tensor_type!r}, expected None, {', '.join(map(repr, TENSOR_TYPES))}")
    if tensor_type == "np":
        return (lambda array: array), (lambda value: isinstance(value, np.ndarray))
    module = {"pt": "torch", "tf": "tensorflow"}[tensor_type]
    try:
        framework = importlib.import_module(module)
    except ImportError as error:
        raise TokenizerError(
            f'return_tensors="{tensor_type}" needs {module}, which is not installed',
            remedy=f"Run `pip install bertkit[{'torch' if tensor_type == 'pt' else 'tf'}]`.",
        ) from error
    if tensor_type == "pt":
        return framework.from_numpy, framework.is_tensor

    def to_tensorflow(array: np.ndarray) -> Any:
        return framework.constant(array.astype(np.int32) if array.dtype == np.int64 else array)

    return to_tensorflow, framework.is_tensor


def _describe(value: Any) -> str:
    if isinstance(value, list | tuple) and value and all(isinstance(row, list | tuple) for row in value):
        lengths = sorted({len(row) for row in value})
        if len(lengths) > 1:
            return f"rows of {lengths[0]} to {lengths[-1]} entries"
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return f"holds {type(value).__name__}"
