"""What this machine is and what this process takes of it: threads, device, memory, seeds, instructions.

The only file besides recipe.py that looks at the machine. Importing it does not import torch.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from compress.core.errors import StorageError, UsageError

if TYPE_CHECKING:
    import torch

MAX_THREADS = 1024
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "compressed-tensors",
    "datasets",
    "accelerate",
    "numpy",
    "gguf",
    "plotly",
)
# our name -> the kernel's flag, x86 (`flags`) and arm (`Features`) alike
ISA_FLAGS = {
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx_vnni": "avx_vnni",
    "amx_tile": "amx_tile",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "neon": "asimd",
    "dotprod": "asimddp",
    "i8mm": "i8mm",
    "sve": "sve",
}
# glibc malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
MMAP_FROM_BYTES = 1 << 23
TRIM_FROM_BYTES = 1 << 30


# --- threads, device, seeds ---------------------------------------------------------------------------


def set_threads(threads: int) -> int:
    """Set torch's intra-op threads and return the number; 0 means every physical core this process may use.

    Raises UsageError for a negative or absurd number.
    """
    if not 0 <= threads <= MAX_THREADS:
        raise UsageError(f"{threads} threads cannot be used; give 1 to {MAX_THREADS}, or 0 for the physical cores")
    import torch

    chosen = threads or usable_cores()
    torch.set_num_threads(chosen)
    return chosen


def usable_cores() -> int:
    """Physical cores, bounded by the affinity mask and by the cgroup's cpu quota; at least 1."""
    logical = os.cpu_count() or 1
    bounds = [psutil.cpu_count(logical=False) or logical]
    if hasattr(os, "sched_getaffinity"):
        bounds.append(len(os.sched_getaffinity(0)))
    if (quota := _cgroup_cores()) is not None:
        bounds.append(max(1, int(quota)))
    return max(1, min(bounds))


def pick_device(name: str) -> torch.device:
    """The torch device called `cpu`, `cuda` or `cuda:N`.

    Raises UsageError for another name, and for a CUDA device that is not there.
    """
    import torch

    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if not match:
        raise UsageError(f"device {name!r} is not known; use cpu, cuda or cuda:N")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match[1] or 0) >= count:
        has = f"this machine has {count}" if count else "torch sees no CUDA device here"
        raise UsageError(f"device {name} was asked for, but {has}; use --device cpu")
    return torch.device(name)


def seed_generator(seed: int) -> torch.Generator:
    """A CPU generator seeded with `seed`, the one source of randomness.

    Raises UsageError for a seed that is negative or beyond 63 bits.
    """
    import torch

    if not 0 <= seed < 2**63:
        raise UsageError(f"seed {seed} is out of range; use 0 to 2^63 - 1")
    return torch.Generator().manual_seed(seed)


# --- memory ----------------------------------------------------------------------------------------------


def current_rss_bytes() -> int:
    """Resident bytes of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_rss_bytes() -> int:
    """Most resident bytes of this process since it started, or since `reset_peak_rss` (linux: VmHWM)."""
    if (peak := _status_bytes("VmHWM")) is not None:
        return peak
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


def reset_peak_rss() -> bool:
    """Start `peak_rss_bytes` again from the present. False where the system has no such thing."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def release_memory() -> None:
    """Collect garbage and hand free heap pages back to the system (glibc; elsewhere only the garbage)."""
    gc.collect()
    trim_memory()


def trim_memory() -> None:
    """Hand free heap pages back to the system: what one stage leaves does not fit the tensors of the next.

    Measured at width 1024: without it between the steps of a block, the peak is 100 to 250 MB of free pages higher, by
    chance more or less.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def tune_allocator() -> None:
    """Keep freed tensors of up to 8 MiB for the next one, in one place, until `trim_memory` is called.

    Mapping every tensor anew costs a page fault for each of its pages: a fifth of the time of a run. Keeping them
    costs no memory that the same step would not take again, and the loop trims after every step, so the peak does
    not depend on how many blocks the model has. Larger ones are mapped: a heap of few large pieces fits badly. Two
    arenas instead of eight a core. Harmless elsewhere.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_FROM_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_FROM_BYTES)
        libc.mallopt(M_ARENA_MAX, 2)


def share_cores() -> None:
    """Ask OpenMP not to spin while it waits; to be called before torch is imported, the user's own setting wins.

    Spinning threads starve the thread they wait for as soon as another program wants a core: passes took twice as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread: for loops of many small operations.

    Waking a second thread costs more than such an operation does, and many times more when another program wants the
    core (measured: a solver's step of 1 s became 100 s). The result then does not depend on the number of threads.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def free_memory_bytes() -> int:
    """Bytes that can still be allocated without swapping, bounded by the cgroup's limit."""
    return max(0, min([int(psutil.virtual_memory().available), *(free for _, free in _cgroup_memory())]))


def total_memory_bytes() -> int:
    """Bytes of memory, bounded by the cgroup's limit."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _cgroup_memory())])


def free_disk_bytes(path: str | Path) -> int:
    """Bytes that can be written where `path` is or will be (its nearest existing parent).

    Raises StorageError when the disk does not answer.
    """
    place = Path(path).expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError as error:
        raise StorageError(f"free space of {place} is not known ({error}); choose another folder") from None


# --- what this machine is ---------------------------------------------------------------------------------


def isa() -> dict[str, Any]:
    """Instruction sets that matter to quantized kernels, True or False; `known`: the system told us."""
    flags: set[str] = set()
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    found: dict[str, Any] = {name: flag in flags for name, flag in ISA_FLAGS.items()}
    arm = platform.machine().lower() in ("arm64", "aarch64")
    found["neon"] = found["neon"] or arm  # every 64-bit arm has it
    return {"known": bool(flags), **found}


def load_average() -> float | None:
    """Processes that wanted a core in the last minute; None where the system does not count them."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def environment() -> dict[str, Any]:
    """Versions, processor, memory and threads of this run, ready for JSON; nothing heavy is imported for it.

    `threads` are torch's when torch is already in the process, the usable cores otherwise.
    """
    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores_physical": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "cores_logical": os.cpu_count() or 1,
        "memory_bytes": total_memory_bytes(),
        "threads": torch.get_num_threads() if torch is not None else usable_cores(),
        "isa": isa(),
        "packages": {name: version for name in PACKAGES if (version := package_version(name))},
    }


def environment_id(env: dict[str, Any]) -> str:
    """Twelve hex digits that are the same for the same environment, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(env, sort_keys=True).encode()).hexdigest()[:12]


def package_version(name: str) -> str | None:
    """The installed version of the distribution `name`, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def child_environment() -> dict[str, str]:
    """This process's variables for a worker process, with its import path, so that it runs the same code."""
    path = os.pathsep.join(dict.fromkeys(p or os.getcwd() for p in sys.path))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}


def plain_environment() -> dict[str, str]:
    """This process's variables for an interpreter with packages of its own: without our import path."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    return {**kept, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONNOUSERSITE": "1"}


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _status_bytes(field: str) -> int | None:
    match = re.search(rf"^{field}:\s+(\d+) kB", _read("/proc/self/status"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _cgroup_files(name: str, controller: str) -> list[Path]:
    """`name` in this process's cgroup and in every parent: a limit anywhere on the way up binds."""
    files = []
    for line in _read("/proc/self/cgroup").splitlines():
        number, controllers, inside = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            root = Path("/sys/fs/cgroup")
        elif controller in controllers.split(","):
            root = Path("/sys/fs/cgroup") / controller
        else:
            continue
        place = root / inside.lstrip("/")
        files += [folder / name for folder in (place, *place.parents) if folder.is_relative_to(root)]
    return files


def _cgroup_memory() -> list[tuple[int, int]]:
    """(limit, free) of every cgroup above this process that has a limit; file cache it can drop is free."""
    pairs = []
    for limits, usage in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        for file in _cgroup_files(limits, "memory"):
            limit, used = _read(file).strip(), _read(file.with_name(usage)).strip()
            if limit.isdigit() and used.isdigit():
                cache = re.search(r"^(?:total_)?inactive_file (\d+)", _read(file.with_name("memory.stat")), re.M)
                pairs.append((int(limit), int(limit) - int(used) + (int(cache[1]) if cache else 0)))
    return pairs


def _cgroup_cores() -> float | None:
    cores = []
    for file in _cgroup_files("cpu.max", "cpu"):
        quota, _, period = _read(file).strip().partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            cores.append(int(quota) / int(period))
    for file in _cgroup_files("cpu.cfs_quota_us", "cpu"):
        quota, period = _read(file).strip(), _read(file.with_name("cpu.cfs_period_us")).strip()
        if quota.isdigit() and period.isdigit() and int(period):
            cores.append(int(quota) / int(period))
    return min(cores, default=None)


def _read(path: str | Path) -> str:
    """The text of a small system file, empty when it is not there."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt, libc.malloc_trim  # noqa: B018 - both must be there
    except (OSError, AttributeError):
        return None
    return libc


def cache_folder() -> Path:
    """Where converted models are kept: $COMPRESS_CACHE, else the platform's user cache."""
    if os.environ.get("COMPRESS_CACHE"):
        return Path(os.environ["COMPRESS_CACHE"])
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "compress-models"
