"""What a GGUF file says besides its codes: names, hyperparameters, vocabulary."""
