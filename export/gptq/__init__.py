"""GPTQ checkpoints: how they are read, and which kernels run them."""
