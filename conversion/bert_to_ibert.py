"""Make an I-BERT of a BERT or RoBERTa checkpoint, exactly; `warm_start.py` makes the other models too.

    python conversion/bert_to_ibert.py path/to/bert path/to/ibert
"""

from __future__ import annotations

import sys

from bertkit.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(["convert", *arguments, *([] if "--to" in arguments else ["--to", "ibert"])]))
