"""The TensorFlow models, one file per variant; each mirrors its PyTorch twin."""
