"""Settings of every test run."""

from __future__ import annotations

import os
from pathlib import Path

import bertkit.core

# Before any framework is imported: no chatter, and as many threads as there are test processes to share the cores.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not any(Path(directory, "_native").is_dir() for directory in bertkit.core.__path__):
    os.environ.setdefault("BERTKIT_KERNELS", "portable")  # else the first to need the kernels warns that there are none
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
