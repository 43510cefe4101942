"""Make a checkpoint that PyTorch and TensorFlow load of one that Megatron-LM trained.

    python conversion/megatron_bert.py megatron_bert_345m_v0_1_uncased.zip [megatron-bert-uncased-345m]

Where it comes from: NVIDIA's NGC catalogue, models `megatron_bert_345m`, versions v0.1_uncased and v0.1_cased; or any training
with NVIDIA/Megatron-LM. What is expected: the zip as it is, the directory that holds `latest_checkpointed_iteration.txt` or
`mp_rank_00`, ..., or one `model_optim_rng.pt`. Megatron-LM has a licence of BSD kind; that of NGC's weights stands on their
page. Without a name for the result it is written beside the source, without the suffix.

The other way round: `bertkit convert DIRECTORY RESULT --to megatron-lm [--tensor-parallel 8] [--pipeline-parallel 4]`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bertkit.cli import main

if __name__ == "__main__":
    source, *rest = sys.argv[1:] or ["--help"]
    if not rest or rest[0].startswith("-"):
        path = Path(source)
        rest = [str(path.with_suffix("") if path.is_file() else path.with_name(f"{path.resolve().name}-bertkit")), *rest]
    sys.exit(main(["convert", source, *rest]))
