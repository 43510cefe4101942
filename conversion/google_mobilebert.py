"""Make a checkpoint that PyTorch and TensorFlow load of one of Google's MobileBERT.

    python conversion/google_mobilebert.py uncased_L-24_H-128_B-512_A-4_F-4_OPT [mobilebert-uncased]

Where it comes from: https://github.com/google-research/google-research/tree/master/mobilebert, whose README links the archive
`uncased_L-24_H-128_B-512_A-4_F-4_OPT.tar.gz` (unpack it first); any training with that code, of the student, the tiny one or
the teacher; or the same model of TensorFlow's Model Garden. What is expected: a directory with `*.index` and `*.data-*`, and
the JSON file of the model beside them (Google keeps those under `mobilebert/config`; or pass `--config FILE`). A `vocab.txt`
there becomes the tokenizer. TensorFlow is not needed. Code and weights have the Apache License 2.0. Without a name for the
result it is written beside the source.

`--zero-padding-row` keeps the embedding of the padding token from reaching the last word through the trigram.
The other way round: `bertkit convert DIRECTORY RESULT --to google-mobilebert`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bertkit.cli import main

if __name__ == "__main__":
    source, *rest = sys.argv[1:] or ["--help"]
    index = Path(f"{source}.index")  # TensorFlow itself names a checkpoint by what its files' names begin with
    if not rest or rest[0].startswith("-"):
        path = Path(source).resolve()
        directory = path if path.is_dir() else path.parent
        rest = [str(directory.with_name(f"{directory.name}-bertkit")), *rest]
    sys.exit(main(["convert", str(index) if index.is_file() else source, *rest]))
