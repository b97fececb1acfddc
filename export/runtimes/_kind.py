"""What a runtime is. Only the standard library: this file is also read by interpreters that have nothing of ours.

A runtime's file has `RUNTIME` and, in it, a function that opens an export in the runtime's own process. What is
returned (a session) speaks numpy:

    kind          decoder, encoder or encoder-decoder
    vocabulary    rows of the logits, 0 for encoders
    tokens        how many ids there are, for encoders; where it is left out, 1000 are thought to be
    run(inputs)   dict of arrays by name (`input_ids` (B, L) int64 ...) -> logits (B, L, V) of a decoder, else the
                  first output of the model, float32
    greedy(ids, n)      n next tokens by argmax with the cache, end tokens not heeded      (decoders)
    step(ids, fresh)    logits (V,) after feeding `ids`; fresh: with an empty cache        (decoders; for timing)
    tokenize(text)      ids by the runtime's own tokenizer, no special tokens added; None where it has none
    chat(messages)      ids of the prompt its server would build; None where the export has no template (a fault if
                        the artifact has one); left out where the runtime never builds one
    write(inputs, n)    ids that it writes for what it reads                               (encoder-decoders)
    normalised          True where `run` gives log-probabilities for want of logits
    timed(ids, n)       seconds of prefill, and of each of n decode steps, where `step` cannot show them
    answer(asked, n)    (said, client): what the client that its users use, opened afresh from the folder, says in n
                        greedy tokens, up to its end token; ids where it gives ids, else text. asked: messages or a
                        prompt (decoders), a text or {"raw", "sampling_rate"} (encoder-decoders); ids without the prompt
                        and without the token that decoding starts with
    read(texts)         {"client": its name} and what it makes of each text, given as [text] or [text, second text]
                        (encoders): "values", the first output without padding, or "labels", [position, class, score]
                        of each token that it tells of

`answer` and `read` are left out where there is no such client, or a server in its place; what is asked of a session is
asked before them, as they may give up what was open.

Only what the kind asks for needs to be there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arithmetic:
    """How a runtime computes, as far as it differs from float32 sums of the weights that the file stands for.

    dtype: of everything. coded: how the inputs of layers with codes are rounded: `int8-32` (symmetric int8, blocks of
    32 inputs, float16 scales), `int8-group` (the same by the weight's own groups, float32 scales), `int8-outliers` (by
    token, but for columns of values above 6); empty: not at all.
    dense: the dtype that inputs of layers without codes are rounded to; empty: not at all. why: a sentence.
    integers: inputs that the artifact itself rounds (W8A8) are rounded by other operations than the reference's, and
    products are of integers: right, but not to the last bit.
    """

    dtype: str = "float32"
    coded: str = ""
    dense: str = ""
    why: str = "float32 sums in another order"
    integers: bool = False


@dataclass(frozen=True)
class Runtime:
    """One runtime. open: (folder, settings) -> session; run where the runtime is installed.

    formats: that it opens, with the arithmetic it opens each with. distribution: the package whose version is the
    runtime's. packages: what `compress runtime install` installs, pinned and tested together; empty when it lives in
    the interpreter of compress itself. alone: what is installed after them without what it asks for. unwanted: packages
    to be removed afterwards. server: (folder, port) -> arguments of the interpreter that start a server for OpenAI
    clients, None when it has none. trusting: arguments besides, for models that bring code that is trusted. client:
    whether its sessions are asked by a client in their own process. environment: variables it runs with, server and
    session alike. refuses: config.json of an export -> why it does not open that one. probe: threads -> rows {what,
    rows, seconds, plain_seconds}: how long its own operators take here, and float32's for the same. timed: (file,
    settings, sizes of axes, runs at least, seconds at least) -> seconds of each run on inputs that it invents.
    """

    open: Callable[[str, Mapping[str, Any]], Any]
    formats: Mapping[str, Arithmetic]
    distribution: str
    packages: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    build: Mapping[str, str] = field(default_factory=dict)
    server: Callable[[str, int], list[str]] | None = None
    trusting: tuple[str, ...] = ()
    client: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    refuses: Callable[[Mapping[str, Any]], str | None] | None = None
    probe: Callable[[int], list[dict[str, Any]]] | None = None
    timed: Callable[[str, Mapping[str, Any], Mapping[str, int], int, float], list[float]] | None = None
    extra: str = ""
    notes: tuple[str, ...] = ()
