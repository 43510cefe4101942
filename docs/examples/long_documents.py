"""YOSO learns: one small model with softmax attention, with YOSO's expectation, and with its samples, on long film reviews.

    python examples/long_documents.py [--framework torch|tf|both] [--attention NAME,...] [--data DIRECTORY] [--seed N ...]

Every model reads documents byte by byte and tells praise from blame. All start from the same weights and see the same documents
in the same order, at the same rates of learning: only their attention differs. What samples draws new hash functions at every
call, while it learns and while it is measured. Codes are short: of 4 bits, vectors at right angles share one in 16, of 8 bits
one in 256, and few hash functions give noise. PyTorch learns in a loop, Keras in `fit`.

There is a token for each byte: a hash of it and the three before it, as single bytes say too little about opinions for training
that takes minutes. The label of a document is asked at every byte, which is what makes it learn fast; it is measured at the
first token only. That one stands before the text and knows nothing of it but what attention brings.

DIRECTORY has train.tsv and dev.tsv: a line of titles, then on each line a label, 0 or 1, a tab, and a sentence. A document is
as many sentences of one label as fill its 384 to 511 bytes. Those for training never repeat: they are dealt from the sentences
of train.tsv, which are shuffled again whenever all were used. The 1,024 that measure are dealt in the same way from those of
dev.tsv, once and for all seeds; a sentence is in several of them. The figures of the documentation come from the sentence
polarity dataset v1.0, https://www.cs.cornell.edu/people/pabo/movie-review-data/.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from tqdm import tqdm

from bertkit import YosoConfig
from bertkit.commands.frameworks import FRAMEWORKS
from bertkit.commands.terminal import format_table
from bertkit.core.checkpoint import write_checkpoint
from bertkit.core.config import CONFIG_NAME
from bertkit.core.initial import initial_value
from bertkit.core.yoso import YOSO

DATA = Path(__file__).parents[3] / "shared" / "data" / "text" / "sentence_polarity"
SHORTEST, LENGTH = 384, 512
"""Bytes of a document, from and below. The first token takes a place, too."""

GRAM, ROWS = 4, 16384
"""Bytes that are hashed for a token, and how many different tokens that gives."""

PADDING, FIRST = ROWS, ROWS + 1
"""Tokens beside those."""

IGNORED = -100
"""The label where there is padding."""

ATTENTIONS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "expectation": {"use_expectation": True},
    "sample-16": {"use_expectation": False, "num_hash": 16},
    "sample-32": {"use_expectation": False, "num_hash": 32},
}
"""Settings of each kind of attention; softmax takes another class."""

CONFIG = YosoConfig(vocab_size=ROWS + 2, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
                    hidden_dropout_prob=0.0, max_position_embeddings=LENGTH, initializer_range=0.1, hash_code_len=4,
                    pad_token_id=PADDING, bos_token_id=FIRST, eos_token_id=None)

EMBEDDINGS = 0.1
"""The tables start at this part of the other weights, so that what they learn soon outweighs what they were drawn with."""

RATE, WARM_UP, DECAY, LONGEST_GRADIENT = 2e-3, 0.1, 0.01, 1.0
"""Training: the highest rate, the part of the steps in which it rises, the decay of weights, where gradients are cut."""

Batch = tuple[dict[str, np.ndarray], np.ndarray]
"""Inputs and labels."""


@dataclass(frozen=True)
class Budget:
    """What every model may spend."""

    steps: int = 480
    batch: int = 16
    parts: int = 8
    """After each, some documents measure."""
    some: int = 256
    dev: int = 1024
    """Documents that measure in the end."""
    draws: int = 3
    """So often does a model that samples answer them: differently each time."""


QUICK = Budget(steps=4, batch=4, parts=4, some=4, dev=8)


def main() -> int:
    """Train each model, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--framework", choices=[*FRAMEWORKS, "both"], default="both",
                        help="default: both, where both are installed")
    parser.add_argument("--attention", type=lambda names: names.split(","), default=list(ATTENTIONS), metavar="NAME,...",
                        help=f"default: all of {', '.join(ATTENTIONS)}")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIRECTORY", help="where train.tsv and dev.tsv are")
    parser.add_argument("--seed", type=int, nargs="+", default=[0],
                        help="of the weights and the documents; several train several models (default: 0)")
    parser.add_argument("--steps", type=int, default=Budget.steps, help=f"of the training (default: {Budget.steps})")
    parser.add_argument("--threads", type=int, help="default: what the frameworks choose")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep what was found; what is there already is not repeated")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw how they learn: .svg, .png or .pdf")
    parser.add_argument("--quick", action="store_true", help="16 documents: shows that it runs, learns nothing")
    arguments = parser.parse_args()
    if unknown := set(arguments.attention) - set(ATTENTIONS):
        parser.error(f"--attention: got {', '.join(sorted(unknown))}, expected some of {', '.join(ATTENTIONS)}")
    installed = [name for name, framework in FRAMEWORKS.items() if framework.installed]
    frameworks = installed if arguments.framework == "both" else [arguments.framework]
    budget = QUICK if arguments.quick else Budget(arguments.steps)
    train, dev = (read(arguments.data / f"{part}.tsv") for part in ("train", "dev"))
    measured = list(itertools.islice(batches(documents(dev, 0), budget.batch), budget.dev // budget.batch))
    learn = {"torch": learn_in_torch, "tf": learn_in_keras}

    found = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.is_file() else []
    for seed, name, attention in itertools.product(arguments.seed, frameworks, arguments.attention):
        run = {"framework": name, "attention": attention, "seed": seed, "steps": budget.steps}
        if any(run.items() <= other.items() for other in found):
            continue
        print(f"\n== {FRAMEWORKS[name].name}, {attention}, seed {seed} ==", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            write_weights(directory, seed)
            started = time.process_time()
            data = batches(documents(train, seed + 1), budget.batch)
            run |= learn[name](directory, attention, data, measured, budget, seed, arguments.threads)
        found.append({**run, "seconds": time.process_time() - started})
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    found = [run for run in found if run["steps"] == budget.steps]
    print("\n" + as_table(found))
    if arguments.picture:
        draw(found, arguments.picture)
    return 0


# -- data ---------------------------------------------------------------------------------------------------------
def read(file: Path) -> list[list[bytes]]:
    """The sentences of each label."""
    if not file.is_file():
        sys.exit(f"{file} is missing: pass --data DIRECTORY with train.tsv and dev.tsv, a label, a tab and a sentence a line.")
    rows = [line.split(b"\t", 1) for line in file.read_bytes().splitlines()[1:]]
    return [[text for label, text in rows if label == wanted] for wanted in (b"0", b"1")]


def documents(sentences: list[list[bytes]], seed: int) -> Iterator[tuple[bytes, int]]:
    """Documents and their labels, without end."""
    random = np.random.default_rng(seed)

    def shuffled(of_label: list[bytes]) -> Iterator[bytes]:
        while True:
            yield from (of_label[place] for place in random.permutation(len(of_label)))

    dealt = [shuffled(of_label) for of_label in sentences]
    while True:
        label, size, text = int(random.integers(2)), int(random.integers(SHORTEST, LENGTH)), b""
        while len(text) < size:
            text += next(dealt[label]) + b" "
        yield text[:size], label


def batches(documents: Iterator[tuple[bytes, int]], size: int) -> Iterator[Batch]:
    """Tokens and masks of the next documents, all of one shape."""
    while True:
        ids, labels = np.full((size, LENGTH), PADDING), np.full((size, LENGTH), IGNORED)
        ids[:, 0] = FIRST
        for row in range(size):
            text, label = next(documents)
            ids[row, 1:len(text) + 1] = tokens(text)
            labels[row, :len(text) + 1] = label
        yield {"input_ids": ids, "attention_mask": (ids != PADDING).astype(np.int64)}, labels


def tokens(text: bytes) -> np.ndarray:
    """A token for each byte: a hash of it and those before it."""
    padded = np.frombuffer(b" " * (GRAM - 1) + text, np.uint8).astype(np.uint32)
    number = sum(padded[place:len(text) + place] << np.uint32(8 * place) for place in range(GRAM))
    return (number * np.uint32(2654435761)) // np.uint32(2**32 // ROWS)


# -- learning -----------------------------------------------------------------------------------------------------
def write_weights(directory: str, seed: int) -> None:
    """A checkpoint with the weights that every model of this seed starts from, in either framework."""
    random = np.random.default_rng(seed)
    params = YOSO.params("ForTokenClassification", CONFIG)
    tensors = {name: initial_value(param, CONFIG, random) * np.float32(EMBEDDINGS if param.kind == "embedding" else 1)
               for name, param in params.items()}
    write_checkpoint(directory, tensors, extra_files={CONFIG_NAME: json.dumps(CONFIG.to_dict())})


def rate(step: Any, steps: int, least: Callable = min) -> Any:
    """The rate of learning, as a part of the highest: up, then down."""
    warm_up = WARM_UP * steps
    return least((step + 1) / warm_up, (steps - step) / (steps - warm_up))


def learn_in_torch(directory: str, attention: str, train: Iterator[Batch], dev: list[Batch], budget: Budget, seed: int,
                   threads: int | None) -> dict[str, Any]:
    """Accuracy after each part of the training, its loss, and the accuracies in the end."""
    import torch

    from bertkit import YosoForTokenClassification
    from bertkit.layers import merge_heads, split_heads
    from bertkit.models import yoso

    class SoftmaxAttention(yoso.YosoSelfAttention):
        """Softmax attention with the same weights."""

        def forward(self, hidden: torch.Tensor, mask: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None]:
            query, key, value = (split_heads(part(hidden), self.head_size) for part in (self.query, self.key, self.value))
            kept = mask[:, None, None] != 0
            context = torch.nn.functional.scaled_dot_product_attention(query, key, value, kept)
            if self.conv is not None:
                context = context + self.conv(value * kept.mT)
            return merge_heads(context), None

    def tensors(batch: Batch) -> dict[str, torch.Tensor]:
        inputs, labels = batch
        return {name: torch.from_numpy(array) for name, array in {**inputs, "labels": labels}.items()}

    @torch.inference_mode()
    def accuracy(dev: list[Batch]) -> float:
        model.eval()
        answers = [model(**batch).logits[:, 0].argmax(-1) == batch["labels"][:, 0] for batch in map(tensors, dev)]
        model.train()
        return float(torch.cat(answers).float().mean())

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    with patch.object(yoso, "YosoSelfAttention", SoftmaxAttention if attention == "softmax" else yoso.YosoSelfAttention):
        model = YosoForTokenClassification.from_pretrained(directory, **ATTENTIONS[attention]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate, steps=budget.steps))
    accuracies, losses = [], []
    for step in tqdm(range(1, budget.steps + 1), "training"):
        loss = model(**tensors(next(train))).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), LONGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % (budget.steps // budget.parts) == 0:
            accuracies.append(accuracy(dev[:budget.some // budget.batch]))
            tqdm.write(f"step {step}: loss {np.mean(losses[-20:]):.3f}, accuracy {accuracies[-1]:.2%}")
    return {"accuracies": accuracies, "losses": averages(losses, budget.parts),
            "final": [accuracy(dev) for _ in range(budget.draws if "num_hash" in ATTENTIONS[attention] else 1)]}


def learn_in_keras(directory: str, attention: str, train: Iterator[Batch], dev: list[Batch], budget: Budget, seed: int,
                   threads: int | None) -> dict[str, Any]:
    """The same with Keras."""
    import keras
    import tensorflow as tf

    from bertkit_tf import TFYosoForTokenClassification
    from bertkit_tf.layers import merge_heads, split_heads
    from bertkit_tf.models import yoso

    class SoftmaxAttention(yoso.YosoSelfAttention):
        """Softmax attention with the same weights."""

        def call(self, hidden: tf.Tensor, mask: tf.Tensor, *_: Any) -> tuple[tf.Tensor, None]:
            query, key, value = (split_heads(part(hidden), self.head_size) for part in (self.query, self.key, self.value))
            kept = tf.cast(mask, value.dtype)[:, None, None]
            scores = tf.matmul(query, key, transpose_b=True) / math.sqrt(self.head_size)
            context = tf.nn.softmax(scores + (kept - 1.0) * 1e9) @ value
            if self.conv is not None:
                context += self.conv(value * tf.linalg.matrix_transpose(kept))
            return merge_heads(context), None

    class Schedule(keras.optimizers.schedules.LearningRateSchedule):
        """Up, then down."""

        def __call__(self, step: tf.Tensor) -> tf.Tensor:
            return RATE * rate(tf.cast(step, tf.float32), budget.steps, tf.minimum)

    def dataset(batches: Iterator[Batch] | list[Batch], count: int) -> tf.data.Dataset:
        array = tf.TensorSpec([budget.batch, LENGTH], tf.int64)
        signature = {"input_ids": array, "attention_mask": array}, array
        data = tf.data.Dataset.from_generator(lambda: batches, output_signature=signature)
        return data.apply(tf.data.experimental.assert_cardinality(count))  # so that an epoch has an end

    def accuracy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return keras.metrics.sparse_categorical_accuracy(labels[:, 0], logits[:, 0])

    if threads and tf.config.threading.get_intra_op_parallelism_threads() != threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(seed)
    with patch.object(yoso, "YosoSelfAttention", SoftmaxAttention if attention == "softmax" else yoso.YosoSelfAttention):
        model = TFYosoForTokenClassification.from_pretrained(directory, **ATTENTIONS[attention])
    optimizer = keras.optimizers.AdamW(Schedule(), weight_decay=DECAY, epsilon=1e-8, global_clipnorm=LONGEST_GRADIENT)
    model.compile(optimizer, metrics=[accuracy], jit_compile=False)  # XLA knows nothing of the compiled kernels
    some = budget.some // budget.batch
    history = model.fit(dataset(itertools.islice(train, budget.steps), budget.steps), epochs=budget.parts,
                        steps_per_epoch=budget.steps // budget.parts, validation_data=dataset(dev[:some], some),
                        shuffle=False, verbose=2).history
    return {"accuracies": history["val_accuracy"], "losses": history["loss"],
            "final": [model.evaluate(dataset(dev, len(dev)), return_dict=True, verbose=0)["accuracy"]
                      for _ in range(budget.draws if "num_hash" in ATTENTIONS[attention] else 1)]}


def averages(numbers: list[float], parts: int) -> list[float]:
    """The average of each part."""
    return [float(np.mean(part)) for part in np.array_split(numbers, parts)]


# -- what was found -----------------------------------------------------------------------------------------------
def as_table(found: list[dict[str, Any]]) -> str:
    """Accuracy of each attention in each framework, points to softmax, time of all processors; means over the seeds."""
    headers, rows = ["attention"], [[attention] for attention in ATTENTIONS]
    for name in FRAMEWORKS:
        headers += [FRAMEWORKS[name].name, "to softmax", "minutes"]
        base = [np.mean(run["final"]) for run in found if (run["framework"], run["attention"]) == (name, "softmax")]
        for row in rows:
            runs = [run for run in found if (run["framework"], run["attention"]) == (name, row[0])]
            accuracy = np.mean([np.mean(run["final"]) for run in runs]) if runs else 0
            row += [f"{accuracy:.1%}", f"{100 * (accuracy - np.mean(base)):+.1f}" if base else "",
                    f"{np.mean([run['seconds'] for run in runs]) / 60:.1f}"] if runs else [""] * 3
    return format_table(headers, rows, right=range(1, len(headers)))


def draw(found: list[dict[str, Any]], file: Path) -> None:
    """Draw accuracy over the training, a panel for each framework, a line for each attention: the mean over the seeds."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for panel, name in zip(figure.subplots(1, 2, sharey=True), FRAMEWORKS, strict=True):
        for attention, color in zip(ATTENTIONS, ("#8c8c8c", "#4c78a8", "#a9d5bb", "#2a9d5c"), strict=True):
            runs = [run for run in found if (run["framework"], run["attention"]) == (name, attention)]
            if runs:
                parts = len(runs[0]["accuracies"])
                steps = runs[0]["steps"] * np.arange(1, parts + 1) / parts
                for run in runs:
                    panel.plot(steps, 100 * np.array(run["accuracies"]), color=color, alpha=0.3, linewidth=0.8)
                panel.plot(steps, 100 * np.mean([run["accuracies"] for run in runs], 0), color=color, label=attention)
        panel.set_title(FRAMEWORKS[name].name, fontsize=10)
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy, %")
    figure.axes[0].legend(fontsize=8, frameon=False)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
