"""Make a checkpoint that PyTorch and TensorFlow load of a MobileBERT that TensorFlow's transformers saved, or the reverse.

    python conversion/transformers_tf.py path/to/model path/to/result [--decoder own]
    python conversion/transformers_tf.py path/to/model path/to/result --to transformers-tf

Where it comes from: `TFMobileBertFor...save_pretrained`, or a hub repository with a `tf_model.h5`. What is expected: that file
beside its `config.json`; `pip install h5py`. transformers has the Apache License 2.0, the weights whatever their author says.

TensorFlow's classes never tie the decoder of the language model to the word embeddings. Where the two differ, the word
embeddings are taken, as PyTorch's classes would, and the report says how far apart they are; `--decoder own` keeps the decoder,
and with it the scores that TensorFlow gives.
"""

from __future__ import annotations

import sys

from bertkit.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:] or ["--help"]
    direction = [] if "--to" in arguments else ["--from", "transformers-tf"]
    sys.exit(main(["convert", *arguments, *direction]))
