"""The operations that are more than a line of TensorFlow: portable, differentiable, and compiled by XLA."""
