"""Make a YOSO that PyTorch and TensorFlow load of a checkpoint of mlpen/YOSO.

    python conversion/mlpen_yoso.py models/yoso-v1-32-small path/to/yoso
    python conversion/mlpen_yoso.py cp-0099.model path/to/yoso --config '{"num_head": 8, "attn_type": "yoso-v1"}'

Where it comes from: training with https://github.com/mlpen/YOSO, which states no licence for its code; that of weights is
for whoever trained them to say. What is expected: a `.model` or `.cp` file, or the directory that holds `config.json` and
`model/cp-....model`. What the file does not show and no config.json beside it says, `--config` does.

The other way round: `bertkit convert path/to/yoso models/NAME --to mlpen-yoso`.
"""

from __future__ import annotations

import sys

from bertkit.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:], "--from", "mlpen-yoso"]))
