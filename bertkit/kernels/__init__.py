"""The operations that are more than a line of PyTorch: portable, differentiable, on any device."""
