"""The tokenizers give what transformers 4.37.2 gives; the rest is checked on small vocabularies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertkit.core import tokenization
from bertkit.core.errors import TokenizerError

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL = FIXTURES / "tokenizer_small"
REAL = Path(__file__).parents[3] / "shared" / "data" / "vocab"
GOLDENS = json.loads((FIXTURES / "tokenizer_goldens.json").read_text("utf-8"))
FILES = {
    "small": {
        "uncased": {"vocab_file": SMALL / "uncased" / "vocab.txt"},
        "cased": {"vocab_file": SMALL / "cased" / "vocab.txt"},
        "roberta": {
            "vocab_file": SMALL / "roberta" / "vocab.json",
            "merges_file": SMALL / "roberta" / "merges.txt",
        },
    },
    "real": {
        "uncased": {"vocab_file": REAL / "bert-base-uncased.vocab.txt"},
        "cased": {"vocab_file": REAL / "bert-base-cased.vocab.txt"},
        "roberta": {
            "vocab_file": REAL / "roberta-base.vocab.json",
            "merges_file": REAL / "roberta-base.merges.txt",
        },
    },
}
MADE: dict = {}


def made(kind: str, name: str):
    """A tokenizer of the goldens, built once."""
    if kind == "real" and not REAL.is_dir():
        pytest.skip("needs the vocabularies of ../shared/data/vocab")
    if (kind, name) not in MADE:
        entry = GOLDENS["tokenizers"][name]
        cls = getattr(tokenization, entry["class"])
        MADE[kind, name] = cls(**FILES[kind][entry["vocabulary"]], **entry["kwargs"])
    return MADE[kind, name]


def plain(value):
    """Tuples as lists, as JSON has them."""
    return json.loads(json.dumps(value))


@pytest.mark.filterwarnings("ignore:max_length=:UserWarning", "ignore:A sequence has:UserWarning")
@pytest.mark.parametrize(
    ("kind", "case"),
    [
        pytest.param(kind, case, id=f"{kind}-{case['tokenizer']}-{i}-{case['method']}")
        for kind in ("small", "real")
        for i, case in enumerate(GOLDENS["cases"][kind])
    ],
)
def test_same_as_transformers(kind, case):
    tokenizer = made(kind, case["tokenizer"])
    args = [GOLDENS["texts"] if argument == "$texts" else argument for argument in case["args"]]
    if case["result"] == "an error":
        with pytest.raises(TokenizerError):
            getattr(tokenizer, case["method"])(*args, **case["kwargs"])
        return
    result = plain(getattr(tokenizer, case["method"])(*args, **case["kwargs"]))
    if isinstance(case["result"], dict):
        assert {key: result.get(key) for key in case["result"]} == case["result"]
        if case["tokenizer"] not in ("no basic tokens", "never split", "never split, cased"):
            assert result.keys() == case["result"].keys()
    else:
        assert result == case["result"]


FIRST, SECOND = "The quick brown fox jumps over the lazy dog.", "It was not amused."
FAMILIES = ("uncased", "cased", "roberta")


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("name", FAMILIES)
def test_saved_and_loaded_tokenizer_is_the_same(name, fast, tmp_path):
    tokenizer = made("small", name)
    tokenizer = type(tokenizer)(
        **FILES["small"][name],
        **GOLDENS["tokenizers"][name]["kwargs"],
        model_max_length=12,
        truncation_side="left",
        verbose=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<ent>"]})
    tokenizer.add_tokens(["Newword"])
    tokenizer(FIRST, truncation=True, padding="max_length")
    tokenizer.save_pretrained(tmp_path)
    loaded = tokenization.AutoTokenizer.from_pretrained(tmp_path, use_fast=fast, verbose=False)
    assert type(loaded).__name__ == type(tokenizer).__name__.removesuffix("Fast") + "Fast" * fast
    texts = [*GOLDENS["texts"], "a <ent> b Newword newword"]
    call = {"padding": True, "truncation": True, "return_offsets_mapping": True}
    assert loaded(texts, texts[::-1], **call) == tokenizer(texts, texts[::-1], **call)
    assert (len(loaded), loaded.vocab_size, loaded.model_max_length) == (
        len(tokenizer),
        tokenizer.vocab_size,
        12,
    )
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.batch_decode(loaded(texts).input_ids) == tokenizer.batch_decode(tokenizer(texts).input_ids)
    state = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert (state["truncation"], state["padding"]) == (None, None)
    # transformers 4.37 cannot read merges that are pairs
    assert all(isinstance(merge, str) for merge in state["model"].get("merges", []))
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    for file in tmp_path.glob("*.*"):
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def checkpoint(folder: Path, files: dict[str, Path], **configs: dict) -> Path:
    """A directory with vocabulary files and JSON files."""
    names = {"vocab_file": "vocab", "merges_file": "merges"}
    for argument, path in files.items():
        (folder / f"{names[argument]}{path.suffix}").write_bytes(path.read_bytes())
    for name, content in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("vocabulary", "configs", "expected"),
    [
        ("uncased", {}, "BertTokenizerFast"),
        ("uncased", {"config": {"model_type": "mobilebert"}}, "MobileBertTokenizerFast"),
        ("uncased", {"config": {"model_type": "megatron-bert"}}, "BertTokenizerFast"),
        (
            "uncased",
            {"tokenizer_config": {"tokenizer_class": "MobileBertTokenizer"}},
            "MobileBertTokenizerFast",
        ),
        ("uncased", {"config": {"tokenizer_class": "MobileBertTokenizerFast"}}, "MobileBertTokenizerFast"),
        ("uncased", {"tokenizer_config": {"tokenizer_class": "ElectraTokenizer"}}, "BertTokenizerFast"),
        ("roberta", {}, "RobertaTokenizerFast"),
        ("roberta", {"config": {"model_type": "yoso"}}, "RobertaTokenizerFast"),
        ("roberta", {"tokenizer_config": {"tokenizer_class": "AlbertTokenizer"}}, "RobertaTokenizerFast"),
    ],
)
def test_auto_class_from_vocabulary_files(vocabulary, configs, expected, tmp_path):
    folder = checkpoint(tmp_path, FILES["small"][vocabulary], **configs)
    fast = tokenization.AutoTokenizer.from_pretrained(folder)
    plain_one = tokenization.AutoTokenizer.from_pretrained(folder, use_fast=False)
    assert [type(fast).__name__, type(plain_one).__name__] == [expected, expected.removesuffix("Fast")]
    assert fast(FIRST).input_ids == plain_one(FIRST).input_ids == made("small", vocabulary)(FIRST).input_ids


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("uncased", None, "BertTokenizerFast"),
        ("cased", None, "BertTokenizerFast"),
        ("roberta", None, "RobertaTokenizerFast"),
        ("uncased", "DistilBertTokenizerFast", "PreTrainedTokenizerFast"),
        ("roberta", "GPT2Tokenizer", "PreTrainedTokenizerFast"),
    ],
)
def test_auto_class_from_tokenizer_json_alone(name, config, expected, tmp_path):
    made("small", name).save_pretrained(tmp_path / "all")
    state = json.loads((tmp_path / "all" / "tokenizer.json").read_text("utf-8"))
    configs = {"tokenizer_config": {"tokenizer_class": config, "pad_token": "[PAD]"}} if config else {}
    loaded = tokenization.AutoTokenizer.from_pretrained(checkpoint(tmp_path, {}, tokenizer=state, **configs))
    assert type(loaded).__name__ == expected
    texts = GOLDENS["texts"]
    assert loaded(texts).input_ids == made("small", name)(texts).input_ids


@pytest.mark.parametrize("padding", [{}, {"additional_special_tokens": [{"content": "<e>", "lstrip": True}]}])
def test_tokenizer_config_is_honoured(padding, tmp_path):
    config = {
        "do_lower_case": False,
        "model_max_length": 7,
        "padding_side": "left",
        "mask_token": {"__type": "AddedToken", "content": "[MASK]", "lstrip": True},
        "pad_token": "[UNK]",
        "added_tokens_decoder": {"300": {"content": "<new>", "special": False, "normalized": True}},
        **padding,
    }
    folder = checkpoint(tmp_path, FILES["small"]["cased"], tokenizer_config=config)
    tokenizer = tokenization.BertTokenizer.from_pretrained(folder, padding_side="right")
    assert tokenizer(FIRST, truncation=True).input_ids == [*made("small", "cased")(FIRST).input_ids[:6], 4]
    assert (tokenizer.padding_side, tokenizer.model_max_length, tokenizer.pad_token) == ("right", 7, "[UNK]")
    assert tokenizer.tokenize("a [MASK] <new>")[-2:] == ["[MASK]", "<new>"]
    assert tokenizer.convert_tokens_to_ids("<new>") == 300
    assert tokenizer.added_tokens_decoder[tokenizer.mask_token_id].lstrip
    assert tokenizer.additional_special_tokens == (["<e>"] if padding else [])


def test_older_files_are_honoured(tmp_path):
    folder = checkpoint(
        tmp_path,
        FILES["small"]["uncased"],
        special_tokens_map={
            "mask_token": {"content": "[MASK]", "lstrip": True},
            "additional_special_tokens": ["<e>"],
        },
        added_tokens={"<e>": 298, "extra": 299},
    )
    tokenizer = tokenization.MobileBertTokenizerFast.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(["<e>", "extra"]) == [298, 299]
    assert tokenizer.decode(tokenizer("the <e> extra").input_ids, skip_special_tokens=True) == "the extra"


@pytest.mark.parametrize("name", FAMILIES)
def test_special_tokens_can_be_read_and_set(name):
    tokenizer = type(made("small", name))(**FILES["small"][name])
    assert tokenizer.convert_ids_to_tokens(tokenizer.all_special_ids) == tokenizer.all_special_tokens
    assert tokenizer.mask_token_id == tokenizer.convert_tokens_to_ids(tokenizer.mask_token)
    tokenizer.pad_token = tokenizer.mask_token
    assert tokenizer.pad_token_id == tokenizer.mask_token_id
    tokenizer.pad_token_id = tokenizer.unk_token_id
    assert tokenizer.pad_token == tokenizer.unk_token
    size = len(tokenizer)
    assert tokenizer.add_special_tokens({"eos_token": "<end>", "pad_token": tokenizer.unk_token}) == 1
    assert tokenizer.add_tokens(["<end>", "brandnew"]) == 1
    assert (tokenizer.eos_token_id, len(tokenizer), tokenizer.vocab_size) == (size, size + 2, size)
    tokenizer.additional_special_tokens = ["<end>"]
    assert tokenizer.additional_special_tokens_ids == [size]
    assert tokenizer.get_vocab()["brandnew"] == size + 1
    assert tokenizer.get_added_vocab()["<end>"] == size


@pytest.mark.parametrize("name", FAMILIES)
def test_mask_of_special_tokens_follows_the_call(name):
    tokenizer = made("small", name)
    first, second = (tokenizer(text, add_special_tokens=False).input_ids for text in (FIRST, SECOND))
    called = tokenizer(FIRST, SECOND, return_special_tokens_mask=True, return_token_type_ids=True)
    assert tokenizer.build_inputs_with_special_tokens(first, second) == called.input_ids
    assert tokenizer.get_special_tokens_mask(first, second) == called.special_tokens_mask
    assert tokenizer.create_token_type_ids_from_sequences(first, second) == called.token_type_ids
    prepared = tokenizer.prepare_for_model(first, second, return_special_tokens_mask=True, return_token_type_ids=True)
    assert prepared == called
    assert tokenizer.encode(tokenizer.tokenize(FIRST)) == tokenizer.encode(first) == tokenizer.encode(FIRST)


@pytest.mark.parametrize(
    ("kind", "module", "dtype"),
    [("np", "numpy", "int64"), ("pt", "torch", "int64"), ("tf", "tensorflow", "int32")],
)
def test_tensors(kind, module, dtype):
    pytest.importorskip(module)
    tokenizer = made("small", "uncased")
    batch = tokenizer([FIRST, SECOND], padding=True, return_tensors=kind, return_offsets_mapping=True)
    lists = tokenizer([FIRST, SECOND], padding=True)
    for key, rows in lists.items():
        assert (batch[key].numpy() if kind == "tf" else batch[key]).tolist() == rows
        assert dtype in str(batch[key].dtype)
    assert tuple(batch.offset_mapping.shape) == (*batch.input_ids.shape, 2)
    assert tuple(tokenizer("x", return_tensors=kind).input_ids.shape) == (1, 3)
    assert tuple(tokenizer.encode("x", return_tensors=kind).shape) == (1, 3)
    assert tuple(tokenizer([], return_tensors=kind).input_ids.shape) == (0, 0)
    assert tuple(tokenizer("", add_special_tokens=False, return_tensors=kind).input_ids.shape) == (1, 0)
    assert tokenizer.batch_decode(batch.input_ids) == tokenizer.batch_decode(lists.input_ids)
    assert tokenizer.decode(batch.input_ids[0]) == tokenizer.decode(lists.input_ids[0])
    assert tokenizer.convert_ids_to_tokens(batch.input_ids[0]) == batch.tokens(0)
    rows = [
        {"input_ids": batch.input_ids[0][:4], "labels": 1},
        {"input_ids": batch.input_ids[1][:2], "labels": 0},
    ]
    padded = tokenizer.pad(rows)
    assert type(padded.input_ids) is type(batch.input_ids)
    assert tuple(padded.input_ids.shape) == (2, 4)
    with pytest.raises(TokenizerError, match="padding=True"):
        tokenizer([FIRST, "x"], return_tensors=kind)


def test_batch_is_a_pytree_of_torch():
    torch = pytest.importorskip("torch")
    batch = made("small", "uncased")([FIRST, SECOND], padding=True, return_tensors="pt")
    mapped = torch.utils._pytree.tree_map(lambda tensor: tensor + 1, batch)
    assert isinstance(mapped, tokenization.BatchEncoding)
    assert torch.equal(mapped.input_ids, batch.input_ids + 1)
    assert batch.to("cpu") is batch
    assert batch.to("meta").input_ids.device.type == "meta"


def test_batch_is_a_pytree_of_keras():
    tf = pytest.importorskip("tensorflow")
    optree = pytest.importorskip("optree")
    batch = made("small", "uncased")([FIRST, SECOND], padding=True, return_tensors="tf")
    mapped = optree.tree_map(lambda tensor: tensor + 1, batch, namespace="keras")
    assert isinstance(mapped, tokenization.BatchEncoding)
    assert bool(tf.reduce_all(mapped["input_ids"] == batch.input_ids + 1))
    rows = list(tf.data.Dataset.from_tensor_slices(dict(batch)).batch(2))
    assert bool(tf.reduce_all(rows[0]["input_ids"] == batch.input_ids))


def test_batch_aligns_tokens_with_text():
    tokenizer = made("small", "cased")
    batch = tokenizer([FIRST], [SECOND])
    words = ["quick", "brown"]
    for word in words:
        start = FIRST.index(word)
        token = batch.char_to_token(0, start)
        number = batch.token_to_word(0, token)
        first, last = batch.word_to_tokens(0, number)
        assert first == token
        assert batch.word_to_chars(0, number) == (start, start + len(word))
        assert batch.token_to_chars(0, token).start == start
        assert batch.token_to_chars(last - 1).end == start + len(word)
        assert batch.char_to_word(start) == number
    assert batch.token_to_chars(0, 0) is None
    assert batch.token_to_sequence(0, -2) == 1
    assert set(batch.sequence_ids()) == {None, 0, 1}
    assert batch.word_ids(0)[0] is None
    assert batch[0].ids == batch.input_ids[0] == tokenizer.convert_tokens_to_ids(batch.tokens())
    assert batch.n_sequences == 2


def test_batch_is_a_dict():
    import copy
    import pickle

    batch = made("small", "uncased")([FIRST])
    for twin in (pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch), batch.copy()):
        assert isinstance(twin, tokenization.BatchEncoding)
        assert (twin, twin.tokens()) == (batch, batch.tokens())
    batch.labels = [1]
    assert {**batch}["labels"] == [1]
    with pytest.raises(AttributeError, match="input_ids"):
        _ = batch.logits


def test_pad_leaves_other_columns_alone():
    tokenizer = made("small", "left")
    rows = [tokenizer(FIRST), tokenizer("x")]
    for row, label in zip(rows, ([1, 2], [3, 4]), strict=True):
        row["labels"] = label
    padded = tokenizer.pad(rows, pad_to_multiple_of=4, return_tensors="np")
    assert padded["labels"].tolist() == [[1, 2], [3, 4]]
    together = tokenizer([FIRST, "x"], padding=True, pad_to_multiple_of=4)
    assert {key: padded[key].tolist() for key in together} == together
    with pytest.raises(TokenizerError, match="labels"):
        tokenizer.pad([{"input_ids": [1], "labels": [1]}, {"input_ids": [2], "labels": []}], return_tensors="np")


@pytest.mark.parametrize("name", FAMILIES)
def test_threads_do_not_share_settings(name):
    from concurrent.futures import ThreadPoolExecutor

    tokenizer = made("small", name)
    texts = [text for text in GOLDENS["texts"] if text.strip()] * 3
    calls = [
        {},
        {"truncation": True, "max_length": 6},
        {"truncation": True, "max_length": 9, "padding": "max_length"},
        {
            "truncation": True,
            "max_length": 7,
            "stride": 2,
            "return_overflowing_tokens": True,
            "padding": True,
        },
        {"padding": True},
    ]
    expected = [tokenizer(texts, **call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: tokenizer(texts, **calls[i % len(calls)]), range(40)))
    assert all(result == expected[i % len(calls)] for i, result in enumerate(results))


def test_long_sequences_warn_once():
    tokenizer = tokenization.BertTokenizerFast(**FILES["small"]["uncased"], model_max_length=8)
    with pytest.warns(UserWarning, match="the model takes 8"):
        tokenizer(FIRST)
    tokenizer(FIRST)
    assert len(tokenizer(FIRST, truncation=True).input_ids) == 8
    with pytest.warns(UserWarning, match="max_length=5 without truncation"):
        assert len(tokenizer(FIRST, max_length=5).input_ids) == 5


@pytest.mark.parametrize(("errors", "expected"), [("replace", "a\ufffdb"), ("ignore", "ab"), ("strict", TokenizerError)])
def test_errors_of_byte_decoding(errors, expected):
    tokenizer = tokenization.RobertaTokenizer(**FILES["small"]["roberta"], errors=errors)
    ids = tokenizer.convert_tokens_to_ids(["<s>", "a", "ê", "b", "</s>"])  # the byte 0xEA begins a character
    if isinstance(expected, str):
        assert tokenizer.decode(ids, skip_special_tokens=True) == expected
        assert tokenizer.decode(tokenizer("né 😀 <mask>").input_ids) == "<s>né 😀<mask></s>"
    else:
        with pytest.raises(expected, match="UTF-8"):
            tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda t: t(3), r"text\[0\]: got int"),
        (lambda t: t([b"bytes", "fine", None]), r"(?s)text\[0\]: got bytes.*text\[2\]: got NoneType"),
        (lambda t: t(["a", "b"], ["c"]), "expected a list of 2"),
        (lambda t: t(["a", "b"], "c"), "got str"),
        (lambda t: t("a", padding="longer"), "padding: got 'longer'"),
        (lambda t: t("a", truncation="first"), "truncation: got 'first'"),
        (lambda t: t("a", return_tensors="jax"), "return_tensors: got 'jax'"),
        (lambda t: t("a", truncation=True, max_length=1), "2 special tokens"),
        (lambda t: t([("a", "b")], truncation=True, max_length=2), "3 special tokens"),
        (lambda t: t(FIRST, truncation=True, max_length=6, stride=4), "stride: got 4, expected 0 to 3"),
        (lambda t: t("a", truncation=True, padding=True, max_length=6, pad_to_multiple_of=4), "multiple"),
        (lambda t: t("a").to("cpu"), "return_tensors"),
        (lambda t: t.decode([1, -100]), "got -100"),
        (lambda t: t.decode([[1], [2]]), "batch_decode"),
        (lambda t: t.pad({"labels": [1]}), "input_ids"),
        (
            lambda t: t.pad([{"input_ids": [1], "labels": 0}, {"input_ids": [2]}]),
            r"row 1: got \['input_ids'\]",
        ),
        (lambda t: t.add_special_tokens({"start_token": "x"}), "start_token"),
        (lambda t: setattr(t, "padding_side", "top"), "padding_side: got 'top'"),
        (lambda t: t.pad({"input_ids": [1]}).tokens(), "alignment"),
    ],
)
def test_bad_use(call, match):
    with pytest.raises(TokenizerError, match=match):
        call(made("small", "uncased"))


@pytest.mark.parametrize(
    ("cls", "content", "match"),
    [
        ("AutoTokenizer", {}, "no tokenizer"),
        ("AutoTokenizer", {"tokenizer.json": "{"}, "tokenizer.json"),
        ("BertTokenizer", {"vocab.json": "{}", "merges.txt": ""}, "expected tokenizer.json, or vocab.txt"),
        ("RobertaTokenizerFast", {"vocab.json": "[]", "merges.txt": ""}, "expected a JSON object"),
        ("RobertaTokenizerFast", {"vocab.json": '{"a": 0}', "merges.txt": "a b c"}, "two symbols"),
        ("BertTokenizerFast", {"vocab.txt": "a\nb\n"}, r"lacks the unknown token"),
        (
            "BertTokenizerFast",
            {"vocab.txt": "[UNK]\n", "tokenizer_config.json": "nonsense"},
            "tokenizer_config.json",
        ),
    ],
)
def test_bad_files(cls, content, match, tmp_path):
    for name, text in content.items():
        (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(TokenizerError, match=match):
        getattr(tokenization, cls).from_pretrained(tmp_path)


def test_wrong_class_is_refused(tmp_path):
    made("small", "uncased").save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="got WordPiece, expected BPE"):
        tokenization.RobertaTokenizerFast.from_pretrained(tmp_path)


@pytest.mark.parametrize("cls", ["AutoTokenizer", "BertTokenizer"])
def test_hub_arguments_go_to_the_hub(cls, tmp_path, monkeypatch):
    calls = []

    def resolve_directory(name_or_path, *, allow_patterns, **hub):
        calls.append((str(name_or_path), hub))
        return checkpoint(tmp_path, FILES["small"]["uncased"])

    monkeypatch.setitem(sys.modules, "bertkit.core.hub", SimpleNamespace(resolve_directory=resolve_directory))
    tokenizer = getattr(tokenization, cls).from_pretrained("owner/model", revision="v1", model_max_length=9)
    assert calls[0] == ("owner/model", {"revision": "v1"})
    assert (tokenizer.model_max_length, tokenizer.name_or_path) == (9, "owner/model")


def test_words_need_a_prefix_space():
    with pytest.raises(TokenizerError, match="add_prefix_space=True"):
        made("small", "roberta")([["a", "b"]], is_split_into_words=True)


def test_unwritable_target(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(TokenizerError, match="cannot write"):
        made("small", "uncased").save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
