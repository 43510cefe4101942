"""Files of other programs, read and written byte by byte: zip archives, pickles of torch, checkpoints of TensorFlow."""
