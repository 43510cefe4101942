"""The neutral layer: configurations, weight names, checkpoints and tokenizers. Nothing here imports a framework."""
