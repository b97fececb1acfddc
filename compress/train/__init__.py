"""Training through the HF Trainer: task models made and adapted."""
