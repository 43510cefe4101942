"""Make an I-BERT, a MobileBERT or a YOSO of a BERT or RoBERTa checkpoint.

    python conversion/warm_start.py path/to/bert path/to/yoso --to yoso

Expected is a directory of transformers: config.json, and model.safetensors, pytorch_model.bin or tf_model.h5. Google's
BERT weights are under the Apache License 2.0 and Meta's RoBERTa weights under the MIT License; others say it in their model
card. As I-BERT and as MobileBERT the result computes what the source computes. As YOSO it does not: train it on.
"""

from __future__ import annotations

import sys

from bertkit.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
