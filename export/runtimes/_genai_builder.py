"""Runs onnxruntime-genai's model builder in its own environment: `_genai_builder.py CHECKPOINT FOLDER`, float32, CPU.

The builder's command line, but for what it reads otherwise than transformers 5 means it (found by verification, 0.18):
- `rope_parameters` as one set, where there is one for each kind of attention (gemma3). It is given those of full
  attention, and the sliding theta under its older name, which its own code for gemma3 goes on to read;
- `sliding_window` without `layer_types` (mistral, phi3) as no window. It is told that every layer has one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

SETTINGS = ("fuse_qkv=false", "windowed_kv_cache=false", "hf_token=false")
"""q, k and v as three matrices, as we have them; a plain cache: a window smaller than the prompt fails in 0.18."""


class _Configs:
    """transformers' AutoConfig, in the words that the builder understands."""

    @staticmethod
    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        """The config of a checkpoint."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(*args, **kwargs)
        rope = getattr(config, "rope_parameters", None) or {}
        if "full_attention" in rope:
            config.rope_parameters = dict(rope["full_attention"])
            config.rope_local_base_freq = rope.get("sliding_attention", rope["full_attention"])["rope_theta"]
        if getattr(config, "sliding_window", None) and getattr(config, "layer_types", None) is None:
            config.layer_types = ["sliding_attention"] * config.num_hidden_layers
        return config


def main() -> int:
    """Build. Returns 0; whatever goes wrong is raised."""
    here = Path(__file__).resolve().parent  # first on the path of a script: our own files would hide the packages
    sys.path[:] = [path for path in sys.path if not path or Path(path).resolve() != here]
    from onnxruntime_genai.models import builder

    checkpoint, folder = sys.argv[1:]
    builder.AutoConfig = _Configs
    cache = str(Path(folder) / "cache")
    options = builder.parse_extra_options("model", checkpoint, folder, "fp32", "cpu", cache, list(SETTINGS))
    builder.create_model("model", checkpoint, folder, "fp32", "cpu", cache, **options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
