"""One file a task: text_classification.py is `--task text-classification`."""
