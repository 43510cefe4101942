"""Make a checkpoint that PyTorch and TensorFlow load of a BERT that megatron-core trained.

    python conversion/megatron_core.py path/to/checkpoints [path/to/result]

Where it comes from: any training of BERT with NVIDIA/Megatron-LM and `--use-mcore-models` (the default since 2024). What is
expected: the directory that holds `latest_checkpointed_iteration.txt`, or that of one iteration. With `--ckpt-format torch` it
holds `mp_rank_00`, ..., with `--ckpt-format torch_dist` (the default) `.metadata`, `common.pt` and `__0_0.distcp`, ... .
Neither Megatron-LM nor Transformer Engine, a GPU or torch.distributed is needed. Megatron-LM has a licence of BSD kind; the
weights are under whatever their trainer says. Without a name for the result it is written beside the source.

The other way round: `bertkit convert DIRECTORY RESULT --to megatron-core [--tensor-parallel 8] [--pipeline-parallel 4]`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bertkit.cli import main

if __name__ == "__main__":
    source, *rest = sys.argv[1:] or ["--help"]
    if not rest or rest[0].startswith("-"):
        rest = [str(Path(source).with_name(f"{Path(source).resolve().name}-bertkit")), *rest]
    sys.exit(main(["convert", source, *rest]))
