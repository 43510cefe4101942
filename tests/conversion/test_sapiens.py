"""Two models that were really trained with fairseq: what they guess is what they guessed there, in both frameworks.

Needs the weights of sapiens 1.0.5 (7 MB, MIT), which `python docs/examples/sapiens.py` fetches into .demo/; or else the
directory sapiens/models/v1 of the unpacked wheel in the environment variable BERTKIT_SAPIENS.
"""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from bertkit.commands.frameworks import FRAMEWORKS, Runner, open_model
from bertkit.convert import convert
from bertkit.core.tokenization import AutoTokenizer

ROOT = Path(__file__).parents[2]
PLACES = (os.environ.get("BERTKIT_SAPIENS"), ROOT / ".demo" / "sapiens" / "models" / "v1",
          ROOT.parent / "shared" / "data" / "sapiens" / "models" / "v1")
SOURCE = next((Path(place) for place in PLACES if place and Path(place, "dict.txt").is_file()), None)
pytestmark = pytest.mark.skipif(SOURCE is None, reason="needs Sapiens: python docs/examples/sapiens.py fetches it, "
                                                       "or BERTKIT_SAPIENS names the directory of checkpoint_vh.pt")

PEMBROLIZUMAB = {
    "vh": "QVQLVQSGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNF"
          "NEKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYCARRDYRFDMGFDYWGQGTTVTVSS",
    "vl": "EIVLTQSPATLSLSPGERATLSCRASKGVSTSGYSYLHWYQQKPGQAPRLLIYLASYLES"
          "GVPARFSGSGSGTDFTLTISSLEPEDFAVYYCQHSRDLPLTFGGGTKVEIK",
}
RIGHT = {"vh": 91, "vl": 84}
"""Residues that the models guess, each from all others; transformers' RoBERTa with the same weights gives these numbers."""


@pytest.fixture(scope="module", params=sorted(PEMBROLIZUMAB))
def converted(request, tmp_path_factory):
    """One of the models, and the ids of its sequence."""
    target = tmp_path_factory.mktemp("sapiens") / request.param
    report = convert(SOURCE / f"checkpoint_{request.param}.pt", target)
    assert report.format == "fairseq RoBERTa" and report.architecture == "IBertForMaskedLM"
    return request.param, target, np.array(AutoTokenizer.from_pretrained(target)(PEMBROLIZUMAB[request.param]).input_ids)


def test_ids_are_the_rows_of_the_dictionary(converted):
    chain, _, ids = converted
    symbols = ["<s>", "<pad>", "</s>", "<unk>", *"ACDEFGHIKLMNPQRSTVWY"]
    assert [symbols[row] for row in ids] == ["<s>", *PEMBROLIZUMAB[chain], "</s>"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_guesses(framework, converted):
    if not FRAMEWORKS[framework].installed:
        pytest.skip(f"{FRAMEWORKS[framework].name} is not installed")
    chain, target, ids = converted
    places = np.arange(1, len(ids) - 1)
    hidden = np.tile(ids, (len(places), 1))
    hidden[places - 1, places] = 24  # <mask>, the last row
    logits = Runner(open_model(str(target)), framework)({"input_ids": hidden, "attention_mask": np.ones_like(hidden)})["logits"]
    assert (logits[places - 1, places].argmax(-1) == ids[places]).sum() == RIGHT[chain]


def test_there_and_back(converted, tmp_path):
    torch = pytest.importorskip("torch")
    chain, target, _ = converted
    convert(target, tmp_path / "theirs", to="fairseq")
    files = (tmp_path / "theirs" / "model.pt", SOURCE / f"checkpoint_{chain}.pt")
    with torch.serialization.safe_globals([Namespace]):
        written, original = (torch.load(file, map_location="cpu", weights_only=True) for file in files)
    assert {name.replace("encoder.", "decoder.", 1) for name in written["model"]} == {*original["model"]}
    assert all(torch.equal(written["model"][name.replace("decoder.", "encoder.", 1)], value)
               for name, value in original["model"].items())
    for name in ("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads", "max_positions"):
        assert getattr(written["args"], name) == getattr(original["args"], name)
    assert (tmp_path / "theirs" / "dict.txt").read_text().split() == (SOURCE / "dict.txt").read_text().split()
