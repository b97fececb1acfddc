"""One file a runtime: what it opens, what must be installed, and how it is asked. See `_kind`."""
