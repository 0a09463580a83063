"""Training: AlignTrainer on transformers.Trainer, the reference, and what watches a run."""
