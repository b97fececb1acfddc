"""Layers that are not trained, found by structure: the embeddings, the first blocks, everything below the head."""

from __future__ import annotations

from typing import Any

from torch import nn

from compress.core.blocks import find_structure
from compress.core.errors import RecipeError
from compress.core.types import Structure


def freeze(model: Any, what: str, fresh: tuple[str, ...]) -> None:
    """Set `requires_grad` of what is frozen to False.

    what: `embeddings`; a number of blocks, the embeddings below them included; or `encoder`, the embeddings and all
    blocks (of an encoder-decoder those of its encoder), so that head, pooler and last norm are trained. fresh: modules
    with new weights, which are trained anyway. Raises RecipeError for more blocks than there are.
    """
    structure = find_structure(model, model.config)
    blocks = structure.blocks
    if bool(getattr(model.config, "is_encoder_decoder", False)):
        blocks = tuple(block for block in blocks if block.stack == structure.blocks[0].stack)
    count = len(blocks) if what == "encoder" else int(what) if what.isdecimal() else 0
    if count > len(blocks):
        raise RecipeError(f"--freeze {what} asks for more blocks than the {len(blocks)} of {type(model).__name__}; "
                          f"use {len(blocks)} or fewer, embeddings, or encoder")  # fmt: skip
    frozen = [*embedding_modules(model, structure), *(block.name for block in blocks[:count])]
    for name, parameter in model.named_parameters():
        home = name.rpartition(".")[0]
        if any(_within(home, module) for module in frozen) and not any(_within(home, module) for module in fresh):
            parameter.requires_grad_(False)


def embedding_modules(model: nn.Module, structure: Structure) -> list[str]:
    """Paths of what comes before the blocks: tables of embeddings outside of them, and the largest module that holds
    the table of tokens and no block (the norm of a BERT's embeddings is part of it)."""
    stacks = [block.name for block in structure.blocks]
    tables = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    found = [name for name in tables if not any(_within(name, block) for block in stacks)]
    if structure.embedding is not None:
        path = structure.embedding.param.rpartition(".")[0]
        above = path.rpartition(".")[0]
        while above and not any(_within(block, above) for block in stacks):
            path, above = above, above.rpartition(".")[0]
        found.append(path)
    return found


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")
