"""Make an I-BERT of a fairseq checkpoint of RoBERTa or I-BERT, or a fairseq checkpoint of an I-BERT.

    python conversion/fairseq_ibert.py roberta.base/model.pt ibert-roberta-base
    python conversion/fairseq_ibert.py path/to/ibert path/to/fairseq --to fairseq

Expected is a file of fairseq (`model.pt`, `checkpoint_best.pt`), and beside it the `dict.txt` of its training; for RoBERTa's
tokenizer also GPT-2's `vocab.bpe`, and `encoder.json` where it is another than GPT-2's. Meta's RoBERTa weights
(https://github.com/facebookresearch/fairseq/tree/main/examples/roberta) and I-BERT's code
(https://github.com/kssteven418/I-BERT) are under the MIT License. In float the result computes what the source computes.
"""

from __future__ import annotations

import sys

from bertkit.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(["convert", *arguments, *([] if "--to" in arguments else ["--from", "fairseq"])]))
