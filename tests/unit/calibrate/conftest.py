"""Tokenizers built here: one token a byte, so counts and texts can be checked against plain Python."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS, EOS, UNK = 256, 257, 258
VOCAB = 259

WORDS = ("weight", "layer", "token", "scale", "group", "code", "matrix", "input", "output", "error", "bit")


def build(bos: bool, chat: str | None = None) -> Any:
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {"<s>": BOS, "</s>": EOS, "<unk>": UNK}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=4096,
    )
    made.chat_template = chat
    return made


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    """One token a byte; adds nothing; ends documents with </s>."""
    return build(bos=False)


@pytest.fixture(scope="session")
def bos_tokenizer() -> Any:
    """As above, with <s> put before every text."""
    return build(bos=True)


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    """With <s> and a chat template that writes <s> itself and wants the user to begin."""
    template = (
        "{{ bos_token }}"
        "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('user first') }}{% endif %}"
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    )
    return build(bos=True, chat=template)


@pytest.fixture
def prose() -> Callable[[int], str]:
    """`prose(n)`: n sentences that no earlier call returned."""
    chooser = random.Random(7)

    def write(sentences: int) -> str:
        made = [
            f"The {chooser.choice(WORDS)} of {chooser.choice(WORDS)} {chooser.randrange(10**6)} is small."
            for _ in range(sentences)
        ]
        return " ".join(made)

    return write
