"""tokenizer.json as GGUF has it: tokens, kinds, merges or scores, and the name of how text is cut into words.

llama.cpp does not read regular expressions from the file, it knows some by name (`tokenizer.ggml.pre`). The table
vocabulary.json says which name stands for which cutting; one that is not there is refused, not guessed, since a wrong
one makes a model worse without a word. What the name does is checked afterwards, in the runtime, on texts.
Source: llama.cpp, src/llama-vocab.cpp (llm_tokenizer_bpe), conversion/base.py (get_vocab_base).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.core.errors import RecipeError

TABLE = Path(__file__).with_name("vocabulary.json")
BLANK = "\u2581"
LEADING = "LEADING BLANKS"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Vocabulary:
    """kind: tokenizer.ggml.model. words: tokenizer.ggml.pre. tokens, types: one a row of the embedding.

    scores: of sentencepiece kinds. space_first: whether texts get a blank before them, None where that is not said.
    lowercase, strip_accents: of WordPiece, None elsewhere.
    unlike: what llama.cpp cuts otherwise: scripts, as Unicode names begin, and LEADING.
    """

    kind: str
    words: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    space_first: bool | None
    lowercase: bool | None = None
    strip_accents: bool | None = None
    unlike: tuple[str, ...] = ()


def vocabulary(folder: Path, rows: int, words: str = "") -> Vocabulary:
    """The vocabulary of a model folder. rows: of its embedding. words: a name to use whatever the table says.

    Raises RecipeError for tokenizers that llama.cpp has no counterpart of.
    """
    told = _told(folder)
    model = told["model"]
    tokens, types = _tokens(told, rows)
    if model["type"] == "WordPiece":
        marked = [_phantom(text, kind) for text, kind in zip(tokens, types, strict=True)]
        lower, strip = _folded(told.get("normalizer"))
        # transformers takes accents off by decomposing text, and that takes Hangul apart; llama.cpp leaves it whole
        unlike = ("HANGUL",) if strip else ()
        return Vocabulary("bert", words or "bert-bge", marked, types, None, None, lower, strip, unlike)
    if model["type"] != "BPE":
        raise RecipeError(f"a {model['type']} tokenizer is not written to GGUF here; BPE and WordPiece are")
    if _parts(told.get("decoder"), "ByteFallback") or model.get("byte_fallback"):
        return _pieces(told, tokens, types, _chats(folder))
    return Vocabulary("gpt2", words or _words(told), tokens, types, None, None)


def _told(folder: Path) -> dict[str, Any]:
    """tokenizer.json as transformers makes it of the folder: for some model types it cuts text otherwise than the file
    says."""
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise RecipeError(f"{folder} has no fast tokenizer ({said}); save one with save_pretrained first") from None
    told: dict[str, Any] = json.loads(backend.to_str())
    return told


def _tokens(told: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    tokens, types = [f"[PAD{n}]" for n in range(rows)], [UNUSED] * rows
    vocab = told["model"]["vocab"]
    if (last := max(vocab.values(), default=0)) >= rows:
        raise RecipeError(
            f"the tokenizer makes the id {last}, and the model has {rows} rows; one belongs to another model"
        )
    for text, number in vocab.items():
        tokens[number], types[number] = text, NORMAL
    for added in told.get("added_tokens", []):
        number = added["id"]
        if number >= rows:
            continue
        tokens[number], types[number] = added["content"], CONTROL if added["special"] else USER_DEFINED
    return tokens, types


def _folded(normalizer: dict[str, Any] | None) -> tuple[bool, bool]:
    """Whether WordPiece reads text in lower case, and without accents: as the first unless that is said."""
    parts = _parts(normalizer, "BertNormalizer")
    if not parts:
        return bool(_parts(normalizer, "Lowercase")), bool(_parts(normalizer, "StripAccents"))
    lower, strip = bool(parts[0].get("lowercase")), parts[0].get("strip_accents")
    return lower, lower if strip is None else bool(strip)


def _phantom(text: str, kind: int) -> str:
    """WordPiece as llama.cpp has it: beginnings of words are marked, not their rest."""
    if kind in (CONTROL, UNUSED):
        return text
    return text[2:] if text.startswith("##") else BLANK + text


def _chats(folder: Path) -> bool:
    """Whether there is a chat template."""
    config = folder / "tokenizer_config.json"
    said = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return bool(said.get("chat_template")) or (folder / "chat_template.jinja").is_file()


def _pieces(told: dict[str, Any], tokens: list[str], types: list[int], chats: bool) -> Vocabulary:
    """BPE over blanks and raw bytes, as sentencepiece made it: a merge's rank is what its score was.

    llama.cpp puts a blank before every text, and before every one that follows a special token, as the normalizer
    Prepend does. Metaspace leaves texts alone that begin with one; its `first` puts none after special tokens.
    """
    scheme = next((part.get("prepend_scheme") for part in _parts(told.get("pre_tokenizer"), "Metaspace")), "never")
    if scheme == "first" and chats:
        raise RecipeError(
            "llama.cpp puts a blank before what follows a special token, and this tokenizer does not (Metaspace, "
            "prepend_scheme first): its chats would be others; use onnx-genai or compressed-tensors"
        )
    model = told["model"]
    scores = [0.0] * len(tokens)
    number_of = model["vocab"]
    for rank, merge in enumerate(model["merges"]):
        made = "".join(merge.split(" ", 1) if isinstance(merge, str) else merge)
        if made in number_of and not scores[number_of[made]]:
            scores[number_of[made]] = -1.0 - rank
    unknown = model.get("unk_token")
    for number, text in enumerate(tokens):
        if text == unknown:
            types[number] = UNKNOWN
        elif types[number] == NORMAL and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            types[number] = BYTE
    first = bool(_parts(told.get("normalizer"), "Prepend")) or scheme != "never"
    unlike = () if scheme == "never" else (LEADING,)
    return Vocabulary("llama", "default", tokens, types, scores, first, unlike=unlike)


def _parts(told: dict[str, Any] | None, kind: str) -> list[dict[str, Any]]:
    """The parts of a pipeline of tokenizers that are of one kind."""
    if not told:
        return []
    lists = (told.get(name) for name in ("pretokenizers", "normalizers", "decoders"))
    inside: Sequence[dict[str, Any]] = next(filter(None, lists), [told])
    return [part for part in inside if part["type"] == kind]


def _words(told: dict[str, Any]) -> str:
    """The name under which llama.cpp knows the cutting of `told`. Raises RecipeError when it has none."""
    cut = told.get("pre_tokenizer") or {}
    steps: list[str] = []
    for part in cut.get("pretokenizers") or [cut]:
        kind = part.get("type")
        if kind == "Split":
            steps.append(str(part["pattern"].get("Regex") or part["pattern"].get("String")))
        elif kind == "Digits" and part.get("individual_digits"):
            steps.append("digit")
        elif kind == "ByteLevel" and not part.get("add_prefix_space"):
            steps += ["gpt2"] if part.get("use_regex", True) else []
        else:
            steps.append(f"{kind} {json.dumps(part)}")
    if told.get("normalizer") and not _parts(told["normalizer"], "NFC"):
        steps.append(f"normalizer {told['normalizer']['type']}")
    known = json.loads(TABLE.read_text(encoding="utf-8"))["words"]
    for name, pattern in known.items():
        if steps == pattern:
            return str(name)
    raise RecipeError(
        f"no name of llama.cpp is known here for how this tokenizer cuts text ({'; '.join(steps)[:160]}); if it has "
        "one, give it with --option words=NAME"
    )


def write_vocabulary(writer: Any, found: Vocabulary, folder: Path) -> None:
    """The vocabulary, special tokens and chat template into a GGUFWriter."""
    import gguf

    writer.add_tokenizer_model(found.kind)
    writer.add_tokenizer_pre(found.words)
    writer.add_token_list(found.tokens)
    if found.scores is not None:
        writer.add_token_scores(found.scores)
    writer.add_token_types(found.types)
    special = gguf.SpecialVocab(folder, load_merges=found.kind == "gpt2", n_vocab=len(found.tokens))
    special.add_to_gguf(writer, quiet=True)
    free = [key for key in ("eot", "eom") if key not in special.special_token_ids]
    told = set(special.special_token_ids.values())
    for key, number in zip(free, (n for n in _ends(folder, found.tokens) if n not in told), strict=False):
        getattr(writer, f"add_{key}_token_id")(number)
    if found.space_first is not None:
        writer.add_add_space_prefix(found.space_first)
    for name, value in (("lowercase", found.lowercase), ("strip_accents", found.strip_accents)):
        if value is not None:
            writer.add_bool(f"tokenizer.ggml.normalizer.{name}", value)


def _ends(folder: Path, tokens: list[str]) -> list[int]:
    """Ids at which writing ends, by generation_config.json, else by config.json, without those that llama.cpp knows by
    their text (llama-vocab.cpp, special_eog_ids)."""
    known = json.loads(TABLE.read_text(encoding="utf-8"))["ends"]
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        told = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
        if told is not None:
            several = told if isinstance(told, list) else [told]
            return [number for number in several if number < len(tokens) and tokens[number] not in known]
    return []
