"""A cache of the hub with tiny checkpoints under the names that the specification's examples use."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bertkit.core.variants import VARIANTS

SMALL = Path(__file__).parents[1] / "fixtures" / "tokenizer_small"
REAL = Path(__file__).parents[3] / "shared" / "data" / "vocab"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
                         "max_position_embeddings": 64}
BOTTLENECK = {"embedding_size": 8, "intra_bottleneck_size": 8, "num_feedforward_networks": 2}


@dataclass(frozen=True)
class Repository:
    """A repository of the hub: its model, its tokenizer, and the values of tensors that an example relies on."""

    variant: str
    task: str
    vocabulary: str
    mask: str
    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, list[float]] = field(default_factory=dict)


def _mobilebert(task: str, *labels: str) -> Repository:
    named = {"id2label": dict(enumerate(labels))} if labels else {}
    return Repository("mobilebert", task, "uncased", "[MASK]", {**BOTTLENECK, **named})


EMOTIONS = ("others", "happy", "sad", "angry")
ENTITIES = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
RANDOM_NEXT = {"cls.seq_relationship.bias": [-9.0, 9.0]}

REPOSITORIES = {
    "kssteven/ibert-roberta-base": Repository("ibert", "ForMaskedLM", "roberta", "<mask>"),
    # The page's example masks with "<mask>" and compares with a sentence of the same length.
    "nvidia/megatron-bert-uncased-345m": Repository("megatron-bert", "ForPreTraining", "uncased", "<mask>"),
    "nvidia/megatron-bert-cased-345m": Repository("megatron-bert", "ForPreTraining", "cased", "[MASK]", {}, RANDOM_NEXT),
    "google/mobilebert-uncased": _mobilebert("ForPreTraining"),
    "lordtt13/emo-mobilebert": _mobilebert("ForSequenceClassification", *EMOTIONS),
    "vumichien/emo-mobilebert": _mobilebert("ForSequenceClassification", *EMOTIONS),
    "mrm8488/mobilebert-finetuned-ner": _mobilebert("ForTokenClassification", *ENTITIES),
    "vumichien/mobilebert-finetuned-ner": _mobilebert("ForTokenClassification", *ENTITIES),
    "csarron/mobilebert-uncased-squad-v2": _mobilebert("ForQuestionAnswering"),
    "vumichien/mobilebert-uncased-squad-v2": _mobilebert("ForQuestionAnswering"),
    "uw-madison/yoso-4096": Repository("yoso", "ForMaskedLM", "roberta", "[MASK]"),
}


def make_cache(directory: Path) -> None:
    """Write the repositories in the layout of huggingface_hub's cache."""
    for name, repository in REPOSITORIES.items():
        folder = directory / f"models--{name.replace('/', '--')}"
        snapshot = folder / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)
        words = _write_tokenizer(snapshot, repository)
        _write_model(snapshot, repository, words)


def _write_tokenizer(directory: Path, repository: Repository) -> int:
    """Vocabulary and settings; gives the number of words."""
    settings: dict[str, Any] = {"mask_token": repository.mask}
    if repository.vocabulary == "roberta":
        vocabulary, merges = REAL / "roberta-base.vocab.json", REAL / "roberta-base.merges.txt"
        if not REAL.is_dir():
            vocabulary, merges = SMALL / "roberta" / "vocab.json", SMALL / "roberta" / "merges.txt"
        words = json.loads(vocabulary.read_text("utf-8"))
        words[repository.mask] = words.pop("<mask>")
        (directory / "vocab.json").write_text(json.dumps(words), "utf-8")
        shutil.copyfile(merges, directory / "merges.txt")
        settings["tokenizer_class"] = "RobertaTokenizer"
    else:
        vocabulary = REAL / f"bert-base-{repository.vocabulary}.vocab.txt"
        if not REAL.is_dir():
            vocabulary = SMALL / repository.vocabulary / "vocab.txt"
        lines = vocabulary.read_text("utf-8").splitlines()
        words = [repository.mask if line == "[MASK]" else line for line in lines]
        (directory / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
        settings |= {"tokenizer_class": "BertTokenizer", "do_lower_case": repository.vocabulary == "uncased"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return len(words)


def _write_model(directory: Path, repository: Repository, words: int) -> None:
    variant = VARIANTS[repository.variant]
    config = variant.config(vocab_size=words, **{**SIZES, **repository.config})
    config.save_pretrained(directory)
    random = np.random.default_rng(0)
    tensors = {
        param.name: np.asarray(random.normal(param.kind == "norm_scale", 0.1, param.shape), np.float32)
        for param in variant.params(repository.task, config).values() if param.stored and param.kind != "stat"
    }
    given = {name: np.array(value, np.float32) for name, value in repository.tensors.items()}
    save_file({**tensors, **given}, directory / "model.safetensors")
