"""The PyTorch models, one file per variant."""
