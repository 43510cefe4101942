"""The tokenizers of the four variants: WordPiece (MobileBERT, MegatronBERT), byte-level BPE (I-BERT, YOSO).

The classes with and without `Fast` differ in their constructors only: both are backed by Rust, and both give
what the `Fast` class of the same name in transformers gives.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bertkit.core.errors import TokenizerError
from bertkit.core.tokenization_base import HUB_ARGUMENTS, PreTrainedTokenizerFast
from bertkit.core.tokenization_batch import BatchEncoding, CharSpan, TokenSpan, register_pytrees
from bertkit.core.tokenization_files import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    find_directory,
    read_backend,
    read_json,
    read_merges,
    read_vocab_json,
    read_vocabulary,
    str_of,
)

__all__ = [
    "AutoTokenizer",
    "BatchEncoding",
    "BertTokenizer",
    "BertTokenizerFast",
    "CharSpan",
    "MobileBertTokenizer",
    "MobileBertTokenizerFast",
    "PreTrainedTokenizerFast",
    "RobertaTokenizer",
    "RobertaTokenizerFast",
    "TokenSpan",
    "register_pytrees",
]

MAX_CHARACTERS_PER_WORD = 100
PUNCTUATION = r"[!-/:-@\[-`{-~\p{P}]"
# What str.split() splits at: white space of Unicode and the separators of ASCII.
BLANKS = r"[\s\x1c-\x1f]+"
# A private-use character, which no vocabulary holds: what it replaces becomes the unknown token.
OUTSIDE_VOCABULARY = "\ue000"


class _BertTemplate(PreTrainedTokenizerFast):
    """WordPiece with `[CLS] A [SEP] B [SEP]`; the public classes below give it their signatures."""

    vocab_files_names: ClassVar[dict[str, str]] = {
        "vocab_file": "vocab.txt",
        "tokenizer_file": TOKENIZER_FILE,
    }

    def _build(
        self,
        vocab_file: str | os.PathLike[str] | None,
        tokenizer_file: str | os.PathLike[str] | None,
        *,
        never_split: Iterable[str] | None = None,
        do_basic_tokenize: bool = True,
        **kwargs: Any,
    ) -> None:
        prefix = kwargs.get("wordpieces_prefix", "##")
        if tokenizer_file is not None:
            backend = read_backend(tokenizer_file)
            _check_model(self, backend, "WordPiece", tokenizer_file)
        elif vocab_file is not None:
            vocab = read_vocabulary(vocab_file)
            unknown = str_of(kwargs["unk_token"])
            if unknown not in vocab:
                raise TokenizerError(f"{vocab_file} lacks the unknown token {unknown!r}")
            backend = Tokenizer(
                models.WordPiece(
                    vocab,
                    unk_token=unknown,
                    max_input_chars_per_word=MAX_CHARACTERS_PER_WORD,
                    continuing_subword_prefix=prefix,
                )
            )
            backend.decoder = decoders.WordPiece(prefix=prefix)
        else:
            raise TokenizerError(f"{type(self).__name__}: give vocab_file or tokenizer_file")
        normalizer = json.loads(backend.normalizer.__getstate__()) if backend.normalizer else {}
        clean_text = kwargs.get("clean_text", normalizer.get("clean_text", True))
        # A file with steps of another kind keeps them.
        replaceable = normalizer.get("type", "BertNormalizer") == "BertNormalizer"
        if replaceable or never_split or not do_basic_tokenize:
            self._set_text_steps(backend, clean_text, do_basic_tokenize, list(never_split or ()), kwargs)
        super().__init__(tokenizer_object=backend, **kwargs)
        if backend.post_processor is None:
            self._set_template()
        self.do_lower_case = kwargs["do_lower_case"]
        if not do_basic_tokenize:
            self.init_kwargs["do_basic_tokenize"] = False
        if never_split:
            self.init_kwargs["never_split"] = list(never_split)

    @staticmethod
    def _set_text_steps(
        backend: Tokenizer,
        clean_text: bool,
        do_basic_tokenize: bool,
        never_split: list[str],
        options: dict[str, Any],
    ) -> None:
        """What happens to a text before WordPiece."""
        if not do_basic_tokenize:
            backend.normalizer = normalizers.Sequence([])
            backend.pre_tokenizer = pre_tokenizers.Split(Regex(BLANKS), "removed")
            return
        normalizer = normalizers.BertNormalizer(
            clean_text=clean_text,
            handle_chinese_chars=options["tokenize_chinese_chars"],
            strip_accents=options["strip_accents"],
            lowercase=options["do_lower_case"],
        )
        backend.normalizer = normalizer
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        if never_split:
            outside = [word for word in never_split if backend.token_to_id(word) is None]
            if outside:
                replace = normalizers.Replace(Regex(_whole_words(outside)), OUTSIDE_VOCABULARY)
                backend.normalizer = normalizers.Sequence([normalizer, replace])
            words = _whole_words([*never_split, OUTSIDE_VOCABULARY])
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(f"{words}|{PUNCTUATION}"), "isolated"),
                    pre_tokenizers.WhitespaceSplit(),
                ]
            )

    def _set_template(self) -> None:
        self._backend.post_processor = processors.TemplateProcessing(
            single=f"{self.cls_token}:0 $A:0 {self.sep_token}:0",
            pair=f"{self.cls_token}:0 $A:0 {self.sep_token}:0 $B:1 {self.sep_token}:1",
            special_tokens=[(self.cls_token, self.cls_token_id), (self.sep_token, self.sep_token_id)],
        )

    @classmethod
    def _file_arguments(cls, directory: Path, arguments: dict[str, Any]) -> dict[str, Any]:
        files = super()._file_arguments(directory, arguments)
        # Without a tokenizer_config.json, tokenizer.json alone says whether the model is cased.
        if "tokenizer_file" in files:
            normalizer = read_json(Path(files["tokenizer_file"])).get("normalizer") or {}
            names = {
                "do_lower_case": "lowercase",
                "tokenize_chinese_chars": "handle_chinese_chars",
                "strip_accents": "strip_accents",
            }
            for argument, name in names.items():
                if name in normalizer:
                    arguments.setdefault(argument, normalizer[name])
        return files

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        """`[CLS] A [SEP]` for one text, `[CLS] A [SEP] B [SEP]` for a pair.

        Args:
            token_ids_0: ids of the first text, without special tokens.
            token_ids_1: ids of the second text.

        Returns:
            The ids with special tokens.
        """
        ids = [self.cls_token_id, *token_ids_0, self.sep_token_id]
        return ids if token_ids_1 is None else [*ids, *token_ids_1, self.sep_token_id]


class BertTokenizer(_BertTemplate):
    """WordPiece over a vocab.txt, as BERT and MegatronBERT use it.

    Args:
        vocab_file: the vocabulary, one token a line.
        do_lower_case: lower-case the text.
        do_basic_tokenize: clean the text and split it at punctuation before WordPiece; without it, text is
            only split at blanks, and case and accents stay.
        never_split: words, standing between blanks, that are neither split at punctuation nor into pieces;
            one that the vocabulary lacks becomes `unk_token`. With `do_lower_case` the text is lower-cased
            before they are looked for.
        unk_token, sep_token, pad_token, cls_token, mask_token: special tokens, `str` or `AddedToken`.
        tokenize_chinese_chars: put every Chinese character on its own; turn it off for Japanese.
        strip_accents: remove accents; None means: when lower-casing.
        kwargs: `model_max_length`, `padding_side`, `truncation_side`, `additional_special_tokens`, ... of
            `PreTrainedTokenizerFast`; `tokenizer_file` to read a tokenizer.json instead of the vocabulary.

    Raises:
        TokenizerError: the vocabulary cannot be read or lacks the unknown token.

    Example:
        >>> import pathlib, tempfile
        >>> vocab = pathlib.Path(tempfile.mkdtemp(), "vocab.txt")
        >>> _ = vocab.write_text("\\n".join("[PAD] [UNK] [CLS] [SEP] [MASK] hello world ##s !".split()))
        >>> tokenizer = BertTokenizer(vocab)
        >>> inputs = tokenizer("Hello worlds!")
        >>> inputs.input_ids
        [2, 5, 6, 7, 8, 3]
        >>> tokenizer.decode(inputs.input_ids, skip_special_tokens=True)
        'hello worlds!'
    """

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None,
        do_lower_case: bool = True,
        do_basic_tokenize: bool = True,
        never_split: Iterable[str] | None = None,
        unk_token: str | AddedToken = "[UNK]",
        sep_token: str | AddedToken = "[SEP]",
        pad_token: str | AddedToken = "[PAD]",
        cls_token: str | AddedToken = "[CLS]",
        mask_token: str | AddedToken = "[MASK]",
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self._build(
            vocab_file,
            kwargs.pop("tokenizer_file", None),
            do_lower_case=do_lower_case,
            do_basic_tokenize=do_basic_tokenize,
            never_split=never_split,
            unk_token=unk_token,
            sep_token=sep_token,
            pad_token=pad_token,
            cls_token=cls_token,
            mask_token=mask_token,
            tokenize_chinese_chars=tokenize_chinese_chars,
            strip_accents=strip_accents,
            **kwargs,
        )

    @classmethod
    def _file_arguments(cls, directory: Path, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"vocab_file": None, **super()._file_arguments(directory, arguments)}


class BertTokenizerFast(_BertTemplate):
    """WordPiece over a vocab.txt or a tokenizer.json, as BERT and MegatronBERT use it.

    Args:
        vocab_file: the vocabulary, one token a line.
        tokenizer_file: a tokenizer.json, used instead of `vocab_file` when both are given.
        do_lower_case: lower-case the text.
        unk_token, sep_token, pad_token, cls_token, mask_token: special tokens, `str` or `AddedToken`.
        tokenize_chinese_chars: put every Chinese character on its own; turn it off for Japanese.
        strip_accents: remove accents; None means: when lower-casing.
        kwargs: `clean_text` (True: remove control characters, make every blank a space), `wordpieces_prefix`
            ("##"), and `model_max_length`, `padding_side`, `truncation_side`, `additional_special_tokens`,
            ... of `PreTrainedTokenizerFast`.

    Raises:
        TokenizerError: no file is given, it cannot be read, or it lacks the unknown token.

    Example:
        >>> import pathlib, tempfile
        >>> vocab = pathlib.Path(tempfile.mkdtemp(), "vocab.txt")
        >>> _ = vocab.write_text("\\n".join("[PAD] [UNK] [CLS] [SEP] [MASK] hello world ##s !".split()))
        >>> tokenizer = BertTokenizerFast(vocab)
        >>> tokenizer(["hello", "hello worlds!"], padding=True, return_tensors="np").input_ids.shape
        (2, 6)
    """

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        do_lower_case: bool = True,
        unk_token: str | AddedToken = "[UNK]",
        sep_token: str | AddedToken = "[SEP]",
        pad_token: str | AddedToken = "[PAD]",
        cls_token: str | AddedToken = "[CLS]",
        mask_token: str | AddedToken = "[MASK]",
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self._build(
            vocab_file,
            tokenizer_file,
            do_lower_case=do_lower_case,
            unk_token=unk_token,
            sep_token=sep_token,
            pad_token=pad_token,
            cls_token=cls_token,
            mask_token=mask_token,
            tokenize_chinese_chars=tokenize_chinese_chars,
            strip_accents=strip_accents,
            **kwargs,
        )


class MobileBertTokenizer(BertTokenizer):
    """WordPiece over a vocab.txt, as MobileBERT uses it.

    Args:
        vocab_file: the vocabulary, one token a line; this and all other arguments are those of
            `BertTokenizer`.

    Raises:
        TokenizerError: the vocabulary cannot be read or lacks the unknown token.

    Example:
        >>> import pathlib, tempfile
        >>> vocab = pathlib.Path(tempfile.mkdtemp(), "vocab.txt")
        >>> _ = vocab.write_text("\\n".join("[PAD] [UNK] [CLS] [SEP] [MASK] hello world ##s ! x_y".split()))
        >>> MobileBertTokenizer(vocab, never_split=["x_y"]).tokenize("Hello worlds! x_y")
        ['hello', 'world', '##s', '!', 'x_y']
    """


class MobileBertTokenizerFast(BertTokenizerFast):
    """WordPiece over a vocab.txt or a tokenizer.json, as MobileBERT uses it.

    Args:
        vocab_file: the vocabulary, one token a line; this and all other arguments are those of
            `BertTokenizerFast`.

    Raises:
        TokenizerError: no file is given, it cannot be read, or it lacks the unknown token.

    Example:
        >>> import pathlib, tempfile
        >>> vocab = pathlib.Path(tempfile.mkdtemp(), "vocab.txt")
        >>> _ = vocab.write_text("\\n".join("[PAD] [UNK] [CLS] [SEP] [MASK] hello world ##s !".split()))
        >>> MobileBertTokenizerFast(vocab)("Hello", "world!").token_type_ids
        [0, 0, 0, 1, 1, 1]
    """


class _RobertaTemplate(PreTrainedTokenizerFast):
    """Byte-level BPE with `<s> A </s></s> B </s>`; the public classes below give it their signatures."""

    vocab_files_names: ClassVar[dict[str, str]] = {
        "vocab_file": "vocab.json",
        "merges_file": "merges.txt",
        "tokenizer_file": TOKENIZER_FILE,
    }
    model_input_names: Sequence[str] = ("input_ids", "attention_mask")

    def _build(
        self,
        vocab_file: str | os.PathLike[str] | None,
        merges_file: str | os.PathLike[str] | None,
        tokenizer_file: str | os.PathLike[str] | None,
        *,
        errors: str,
        add_prefix_space: bool,
        trim_offsets: bool,
        **kwargs: Any,
    ) -> None:
        if isinstance(kwargs["mask_token"], str):
            # The mask stands for a word together with the blank before it.
            kwargs["mask_token"] = AddedToken(kwargs["mask_token"], lstrip=True, normalized=False, special=True)
        if tokenizer_file is not None:
            backend = read_backend(tokenizer_file)
            _check_model(self, backend, "BPE", tokenizer_file)
        elif vocab_file is not None and merges_file is not None:
            backend = Tokenizer(
                models.BPE(
                    read_vocab_json(vocab_file),
                    read_merges(merges_file),
                    continuing_subword_prefix="",
                    end_of_word_suffix="",
                    fuse_unk=False,
                )
            )
            backend.decoder = decoders.ByteLevel()
        else:
            raise TokenizerError(f"{type(self).__name__}: give vocab_file and merges_file, or tokenizer_file")
        steps = json.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer else {}
        if steps.get("type", "ByteLevel") == "ByteLevel":
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(
                add_prefix_space=add_prefix_space, use_regex=steps.get("use_regex", True)
            )
        super().__init__(
            tokenizer_object=backend,
            errors=errors,
            add_prefix_space=add_prefix_space,
            trim_offsets=trim_offsets,
            **kwargs,
        )
        self.add_prefix_space, self.errors = add_prefix_space, errors
        template = json.loads(backend.post_processor.__getstate__()) if backend.post_processor else {}
        if template.get("type", "RobertaProcessing") == "RobertaProcessing":
            self._backend.post_processor = processors.RobertaProcessing(
                tuple(template.get("sep", (self.sep_token, self.sep_token_id))),
                tuple(template.get("cls", (self.cls_token, self.cls_token_id))),
                trim_offsets=trim_offsets,
                add_prefix_space=add_prefix_space,
            )

    def _read_texts(self, text: Any, text_pair: Any, words: bool) -> tuple[bool, list[Any]]:
        if words and not self.add_prefix_space:
            raise TokenizerError(
                "is_split_into_words needs a tokenizer with add_prefix_space=True",
                remedy=f"Load it with {type(self).__name__}.from_pretrained(..., add_prefix_space=True).",
            )
        return super()._read_texts(text, text_pair, words)

    def _decode_ids(self, ids: list[int], skip_special_tokens: bool) -> str:
        if self.errors == "replace":
            return super()._decode_ids(ids, skip_special_tokens)
        return self.convert_tokens_to_string(
            [token for token in self.convert_ids_to_tokens(ids, skip_special_tokens) if token is not None]
        )

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Join tokens into text; `errors` says what happens to bytes that are no UTF-8."""
        if self.errors == "replace":
            return super().convert_tokens_to_string(tokens)
        added = self.added_tokens_encoder
        data = b"".join(
            token.encode() if token in added else bytes(CHARACTER_TO_BYTE[character] for character in token) for token in tokens
        )
        try:
            return data.decode("utf-8", errors=self.errors)
        except UnicodeDecodeError as error:
            raise TokenizerError(f"the tokens are no UTF-8 text: {error}", remedy='Use errors="replace".') from error

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        """`<s> A </s>` for one text, `<s> A </s></s> B </s>` for a pair.

        Args:
            token_ids_0: ids of the first text, without special tokens.
            token_ids_1: ids of the second text.

        Returns:
            The ids with special tokens.
        """
        ids = [self.cls_token_id, *token_ids_0, self.sep_token_id]
        return ids if token_ids_1 is None else [*ids, self.sep_token_id, *token_ids_1, self.sep_token_id]

    def create_token_type_ids_from_sequences(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        """Zeros: these models know one token type."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))


class RobertaTokenizer(_RobertaTemplate):
    """Byte-level BPE over vocab.json and merges.txt, as RoBERTa, I-BERT and YOSO use it.

    Args:
        vocab_file: the ids of the tokens, a JSON object.
        merges_file: the merges, one a line, in order.
        errors: what decoding does with bytes that are no UTF-8: "replace", "ignore" or "strict".
        bos_token, eos_token, sep_token, cls_token, unk_token, pad_token: special tokens, `str` or
            `AddedToken`.
        mask_token: given as a string, it takes the blank before it along.
        add_prefix_space: put a blank before the text, so that its first word is encoded like any other.
        kwargs: `trim_offsets` (True), and `model_max_length`, `padding_side`, `truncation_side`,
            `additional_special_tokens`, ... of `PreTrainedTokenizerFast`; `tokenizer_file` to read a
            tokenizer.json instead of the vocabulary.

    Raises:
        TokenizerError: a file cannot be read.

    Example:
        >>> import json, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> tokens = ["<s>", "<pad>", "</s>", "<unk>", "h", "i", "Ġ", "hi", "Ġhi", "<mask>"]
        >>> vocab = {token: i for i, token in enumerate(tokens)}
        >>> _ = (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
        >>> _ = (folder / "merges.txt").write_text("#version: 0.2\\nh i\\nĠ hi\\n", "utf-8")
        >>> tokenizer = RobertaTokenizer(folder / "vocab.json", folder / "merges.txt")
        >>> tokenizer("hi hi <mask>").input_ids
        [0, 7, 8, 9, 2]
    """

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None,
        merges_file: str | os.PathLike[str] | None,
        errors: str = "replace",
        bos_token: str | AddedToken = "<s>",
        eos_token: str | AddedToken = "</s>",
        sep_token: str | AddedToken = "</s>",
        cls_token: str | AddedToken = "<s>",
        unk_token: str | AddedToken = "<unk>",
        pad_token: str | AddedToken = "<pad>",
        mask_token: str | AddedToken = "<mask>",
        add_prefix_space: bool = False,
        **kwargs: Any,
    ) -> None:
        self._build(
            vocab_file,
            merges_file,
            kwargs.pop("tokenizer_file", None),
            errors=errors,
            bos_token=bos_token,
            eos_token=eos_token,
            sep_token=sep_token,
            cls_token=cls_token,
            unk_token=unk_token,
            pad_token=pad_token,
            mask_token=mask_token,
            add_prefix_space=add_prefix_space,
            trim_offsets=kwargs.pop("trim_offsets", True),
            **kwargs,
        )

    @classmethod
    def _file_arguments(cls, directory: Path, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"vocab_file": None, "merges_file": None, **super()._file_arguments(directory, arguments)}


class RobertaTokenizerFast(_RobertaTemplate):
    """Byte-level BPE over vocab.json and merges.txt or a tokenizer.json, as RoBERTa, I-BERT and YOSO use it.

    Args:
        vocab_file: the ids of the tokens, a JSON object.
        merges_file: the merges, one a line, in order.
        tokenizer_file: a tokenizer.json, used instead of the other two when all are given.
        errors: what decoding does with bytes that are no UTF-8: "replace", "ignore" or "strict".
        bos_token, eos_token, sep_token, cls_token, unk_token, pad_token: special tokens, `str` or
            `AddedToken`.
        mask_token: given as a string, it takes the blank before it along.
        add_prefix_space: put a blank before the text, so that its first word is encoded like any other.
        trim_offsets: offsets leave out the blank before a word.
        kwargs: `model_max_length`, `padding_side`, `truncation_side`, `additional_special_tokens`, ... of
            `PreTrainedTokenizerFast`.

    Raises:
        TokenizerError: no files are given, or they cannot be read.

    Example:
        >>> import json, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> tokens = ["<s>", "<pad>", "</s>", "<unk>", "h", "i", "Ġ", "hi", "Ġhi", "<mask>"]
        >>> vocab = {token: i for i, token in enumerate(tokens)}
        >>> _ = (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
        >>> _ = (folder / "merges.txt").write_text("#version: 0.2\\nh i\\nĠ hi\\n", "utf-8")
        >>> tokenizer = RobertaTokenizerFast(folder / "vocab.json", folder / "merges.txt")
        >>> tokenizer("hi hi", return_offsets_mapping=True).offset_mapping
        [(0, 0), (0, 2), (3, 5), (0, 0)]
    """

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        merges_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        errors: str = "replace",
        bos_token: str | AddedToken = "<s>",
        eos_token: str | AddedToken = "</s>",
        sep_token: str | AddedToken = "</s>",
        cls_token: str | AddedToken = "<s>",
        unk_token: str | AddedToken = "<unk>",
        pad_token: str | AddedToken = "<pad>",
        mask_token: str | AddedToken = "<mask>",
        add_prefix_space: bool = False,
        trim_offsets: bool = True,
        **kwargs: Any,
    ) -> None:
        self._build(
            vocab_file,
            merges_file,
            tokenizer_file,
            errors=errors,
            bos_token=bos_token,
            eos_token=eos_token,
            sep_token=sep_token,
            cls_token=cls_token,
            unk_token=unk_token,
            pad_token=pad_token,
            mask_token=mask_token,
            add_prefix_space=add_prefix_space,
            trim_offsets=trim_offsets,
            **kwargs,
        )


class AutoTokenizer:
    """Loads the tokenizer that fits the files of a checkpoint.

    `tokenizer_class` in tokenizer_config.json (or in config.json) decides first, then the vocabulary files
    (vocab.txt; vocab.json with merges.txt), then the model inside tokenizer.json; any other tokenizer.json
    loads as `PreTrainedTokenizerFast`. `model_type` in config.json only tells MobileBERT from BERT.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "vocab.txt").write_text("\\n".join("[PAD] [UNK] [CLS] [SEP] [MASK] hello".split()))
        >>> _ = (folder / "config.json").write_text('{"model_type": "mobilebert"}')
        >>> type(AutoTokenizer.from_pretrained(folder)).__name__
        'MobileBertTokenizerFast'
    """

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike[str], *, use_fast: bool = True, **kwargs: Any
    ) -> PreTrainedTokenizerFast:
        """Load a tokenizer from a directory or from the Hugging Face hub.

        Args:
            pretrained_model_name_or_path: a directory or a hub id.
            use_fast: give the class whose name ends in `Fast`; both kinds give the same ids.
            kwargs: what `from_pretrained` of the class takes.

        Raises:
            TokenizerError: the directory holds no tokenizer, or its files cannot be read.
            CheckpointError: the directory or hub id does not exist.
        """
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        directory = find_directory(pretrained_model_name_or_path, **hub)
        family = _family(directory)
        name = family if family == "PreTrainedTokenizerFast" else family + "Fast" * use_fast
        tokenizer = CLASSES[name].from_pretrained(directory, **kwargs)
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return tokenizer


CLASSES = {
    cls.__name__: cls
    for cls in (
        BertTokenizer,
        BertTokenizerFast,
        MobileBertTokenizer,
        MobileBertTokenizerFast,
        RobertaTokenizer,
        RobertaTokenizerFast,
        PreTrainedTokenizerFast,
    )
}


def _family(directory: Path) -> str:
    """The class name that fits a directory, without `Fast`, or PreTrainedTokenizerFast."""
    config = read_json(directory / "config.json")
    named = read_json(directory / CONFIG_FILE).get("tokenizer_class") or config.get("tokenizer_class")
    state = read_json(directory / TOKENIZER_FILE)
    if named:
        if named.removesuffix("Fast") in CLASSES:
            return named.removesuffix("Fast")
        if state:
            return "PreTrainedTokenizerFast"
    bert = "MobileBertTokenizer" if config.get("model_type") == "mobilebert" else "BertTokenizer"
    if (directory / "vocab.txt").is_file():
        return bert
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return "RobertaTokenizer"
    if not state:
        raise TokenizerError(
            f"{directory} holds no tokenizer",
            ["expected tokenizer.json, or vocab.txt, or vocab.json and merges.txt"],
        )
    kind = state.get("model", {}).get("type")
    if kind == "WordPiece":
        return bert
    if kind == "BPE" and (state.get("post_processor") or {}).get("type") == "RobertaProcessing":
        return "RobertaTokenizer"
    return "PreTrainedTokenizerFast"


def _check_model(tokenizer: PreTrainedTokenizerFast, backend: Tokenizer, wanted: str, path: Any) -> None:
    kind = type(backend.model).__name__
    if kind != wanted:
        raise TokenizerError(
            f"{path} does not fit {type(tokenizer).__name__}",
            [f"model: got {kind}, expected {wanted}"],
            "AutoTokenizer picks the class that fits the files.",
        )


def _whole_words(words: Iterable[str]) -> str:
    alternatives = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return rf"(?<!\S)(?:{alternatives})(?!\S)"


def _byte_alphabet() -> dict[str, int]:
    """The byte behind each character of byte-level BPE: printable bytes stand for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(0x100) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(0x100 + i): byte for i, byte in enumerate(hidden)},
    }


CHARACTER_TO_BYTE = _byte_alphabet()
