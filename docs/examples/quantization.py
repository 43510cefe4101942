"""Real work in integers: finding sentences by meaning, and telling whether a film was liked.

    python examples/quantization.py [--framework torch|tf|both] [--data DIRECTORY]

all-MiniLM-L6-v2 (semantic_search.py fetches it) becomes an I-BERT. Its integers have to find the same sentences as the float
model. Then it learns to tell praise from blame: in float, and its integers are measured; with simulated integers it learns to
answer as it did in float, and they are measured again.

DIRECTORY has train.tsv and dev.tsv: a line of titles, then on each line a label, 0 or 1, a tab, and a sentence. The figures of
the documentation come from the sentence polarity dataset v1.0, https://www.cs.cornell.edu/people/pabo/movie-review-data/.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from semantic_search import fetch, run, step
from tqdm import tqdm

from bertkit import AutoTokenizer
from bertkit.commands.frameworks import FRAMEWORKS
from bertkit.commands.predict import predict
from bertkit.commands.terminal import format_table

DATA = Path(__file__).parents[3] / "shared" / "data" / "text" / "sentence_polarity"
BATCH, LENGTH = 32, 48
"""Sentences of a batch, and where longer ones are cut."""

EPOCHS, RATE = 2, 1e-4
"""Training in float."""

INTEGER_STEPS, INTEGER_RATE = 128, 1e-5
"""Training with simulated integers: half an epoch, in small steps. It learns from the probabilities that the float model gives,
not from the labels, which it has seen often enough: more of them change answers for other reasons than integers."""

CALIBRATION = 512
"""Sentences that show the model its ranges; their labels are not used."""

Batch = tuple[dict[str, np.ndarray], np.ndarray]
"""Inputs and labels, or inputs and the probabilities of labels."""


def main() -> int:
    """Convert, search, and learn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--framework", choices=[*FRAMEWORKS, "both"], default="both",
                        help="default: both, where both are installed")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIRECTORY", help="where train.tsv and dev.tsv are")
    parser.add_argument("--cache", type=Path, default=Path(".demo"),
                        help="where the download and the results go (default: .demo)")
    parser.add_argument("--seed", type=int, default=0,
                        help="of the new head, the dropout, and the order of the batches (default: 0)")
    parser.add_argument("--quick", action="store_true", help="128 sentences: shows that it runs, learns nothing")
    arguments = parser.parse_args()
    installed = [name for name, framework in FRAMEWORKS.items() if framework.installed]
    frameworks = installed if arguments.framework == "both" else [arguments.framework]
    started = time.perf_counter()
    train, dev = (read(arguments.data / f"{part}.tsv", arguments.quick) for part in ("train", "dev"))

    step("1. all-MiniLM-L6-v2 becomes I-BERT")
    cache = arguments.cache
    source, directory, integers = fetch(cache), cache / "ibert", cache / "ibert-integer"
    if run("convert", str(source), str(directory), "--to", "ibert", "--overwrite"):
        return 2

    step("2. Search by meaning, in integers")
    texts = cache / "calibration.txt"
    texts.write_text("\n".join(text for text, _ in train[:CALIBRATION]), encoding="utf-8")
    if run("quantize", str(directory), str(integers), "--calibrate", str(texts), "--overwrite"):
        return 2
    search(directory, integers, [text for text, _ in dev], frameworks)

    step("3. Praise or blame")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    train, dev = batches(tokenizer, train), batches(tokenizer, dev)
    learn = {"torch": learn_in_torch, "tf": learn_in_tensorflow}
    rows = []
    for name in frameworks:
        accuracies = learn[name](directory, cache / f"film-{name}", train, dev, arguments.seed)
        rows.append([FRAMEWORKS[name].name, *(f"{accuracy:.2%}" for accuracy in accuracies)])
    print("\n" + format_table(["", "float", "integers", "trained as integers"], rows, right=range(1, 4)))
    print(f"\nDone in {time.perf_counter() - started:.0f} s.")
    return 0


# -- data ---------------------------------------------------------------------------------------------------------
def read(file: Path, quick: bool) -> list[tuple[str, int]]:
    """Sentences and their labels."""
    if not file.is_file():
        sys.exit(f"{file} is missing: pass --data DIRECTORY with train.tsv and dev.tsv, a label, a tab and a sentence a line.")
    lines = file.read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t", 1) for line in (lines[:128] if quick else lines)]
    return [(text, int(label)) for label, text in rows]


def batches(tokenizer: AutoTokenizer, rows: list[tuple[str, int]]) -> list[Batch]:
    """Batches of sentences that are about as long as each other, so that there is little padding to compute."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    found = []
    for first in range(0, len(rows), BATCH):
        texts, labels = zip(*rows[first:first + BATCH], strict=True)
        inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=LENGTH, return_tensors="np")
        found.append((dict(inputs), np.array(labels)))
    return found


def shuffled(batches: list[Batch], epochs: int, seed: int) -> list[Batch]:
    """The batches of some epochs, in another order each time."""
    random = np.random.default_rng(seed)
    return [batches[place] for _ in range(epochs) for place in random.permutation(len(batches))]


# -- search -------------------------------------------------------------------------------------------------------
def search(directory: Path, integers: Path, sentences: list[str], frameworks: list[str]) -> None:
    """How close the integer model's vectors are to the float model's, and whether each sentence finds the same others."""
    rows = []
    for name in frameworks:
        expected, got = (np.array([result["embedding"] for result in predict(str(place), "embed", sentences,
                         framework=name)["results"]]) for place in (directory, integers))
        cosines = (expected * got).sum(1)
        agreement = rank_correlation(expected @ expected.T, got @ got.T)
        rows.append([FRAMEWORKS[name].name, str(len(sentences)), f"{cosines.mean():.4f}", f"{cosines.min():.4f}",
                     f"{agreement.mean():.4f}"])
    headers = ["", "sentences", "mean cosine", "smallest cosine", "Spearman of a search"]
    print("\n" + format_table(headers, rows, right=range(1, len(headers))))


def rank_correlation(expected: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row's scores; a sentence does not look for itself."""
    others = ~np.eye(len(expected), dtype=bool)
    ranks = [scores[others].reshape(len(scores), -1).argsort(1).argsort(1) for scores in (expected, got)]
    first, second = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    return (first * second).sum(1) / np.sqrt((first**2).sum(1) * (second**2).sum(1))


# -- classification -----------------------------------------------------------------------------------------------
def learn_in_torch(directory: Path, calibrated: Path, train: list[Batch], dev: list[Batch], seed: int) -> list[float]:
    """Accuracy of the float model, of its integers, and of the integers that it was trained to be."""
    import torch

    from bertkit import IBertForSequenceClassification, calibrate, freeze
    from bertkit.quantization import frozen_statistics

    def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def fit(model: torch.nn.Module, batches: list[Batch], rate: float) -> None:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=len(batches))
        for inputs, targets in tqdm(batches, "training"):
            loss = torch.nn.functional.cross_entropy(model(**tensors(inputs)).logits, torch.from_numpy(targets))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()

    def answered(model: torch.nn.Module, batches: list[Batch]) -> list[Batch]:
        with torch.inference_mode():
            return [(inputs, model(**tensors(inputs)).logits.softmax(-1).numpy()) for inputs, _ in batches]

    def accuracy(model: torch.nn.Module) -> float:
        right = [found.argmax(-1) == labels for (_, found), (_, labels) in zip(answered(model, dev), dev, strict=True)]
        return float(np.concatenate(right).mean())

    torch.manual_seed(seed)
    model = IBertForSequenceClassification.from_pretrained(directory, num_labels=2)
    fit(model, shuffled(train, EPOCHS, seed), RATE)
    in_float = accuracy(model)

    calibrate(model, [tensors(inputs) for inputs, _ in shuffled(train, 1, seed)[:CALIBRATION // BATCH]])
    directly = accuracy(freeze(model))

    model.save_pretrained(calibrated)
    simulated = IBertForSequenceClassification.from_pretrained(calibrated, quant_mode=True)
    with frozen_statistics(simulated):  # the ranges of the calibration stay
        fit(simulated, answered(model, shuffled(train, 1, seed)[:INTEGER_STEPS]), INTEGER_RATE)
    return [in_float, directly, accuracy(freeze(simulated))]


def learn_in_tensorflow(directory: Path, calibrated: Path, train: list[Batch], dev: list[Batch], seed: int) -> list[float]:
    """The same with Keras."""
    import keras
    import tensorflow as tf

    from bertkit_tf import TFIBertForSequenceClassification, calibrate, freeze
    from bertkit_tf.quantization import frozen_statistics

    def fit(model: keras.Model, batches: list[Batch], rate: float, loss: keras.Loss) -> None:
        inputs, targets = batches[0]
        ids, target = tf.TensorSpec([None, None], tf.int64), tf.TensorSpec([None] * targets.ndim, targets.dtype)
        signature = dict.fromkeys(inputs, ids), target
        data = tf.data.Dataset.from_generator(lambda: batches, output_signature=signature)
        data = data.apply(tf.data.experimental.assert_cardinality(len(batches)))  # so that the progress has an end
        schedule = keras.optimizers.schedules.PolynomialDecay(rate, len(batches), 0.0)
        model.compile(optimizer=keras.optimizers.AdamW(schedule), loss=loss, jit_compile=False)
        model.fit(data, shuffle=False)

    def answered(model: keras.Model, batches: list[Batch]) -> list[Batch]:
        return [(inputs, keras.ops.softmax(model(inputs).logits).numpy()) for inputs, _ in batches]

    def accuracy(model: keras.Model) -> float:
        right = [found.argmax(-1) == labels for (_, found), (_, labels) in zip(answered(model, dev), dev, strict=True)]
        return float(np.concatenate(right).mean())

    keras.utils.set_random_seed(seed)
    model = TFIBertForSequenceClassification.from_pretrained(directory, num_labels=2)
    fit(model, shuffled(train, EPOCHS, seed), RATE, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    in_float = accuracy(model)

    calibrate(model, [inputs for inputs, _ in shuffled(train, 1, seed)[:CALIBRATION // BATCH]])
    directly = accuracy(freeze(model))

    model.save_pretrained(calibrated)
    simulated = TFIBertForSequenceClassification.from_pretrained(calibrated, quant_mode=True)
    with frozen_statistics(simulated):
        fit(simulated, answered(model, shuffled(train, 1, seed)[:INTEGER_STEPS]), INTEGER_RATE,
            keras.losses.CategoricalCrossentropy(from_logits=True))
    return [in_float, directly, accuracy(freeze(simulated))]


if __name__ == "__main__":
    sys.exit(main())
