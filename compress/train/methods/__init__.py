"""One file a method: p_tuning.py is `--method p-tuning`."""
