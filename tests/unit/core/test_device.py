"""The machine as this process sees it, against the system's own tools."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compress.core import device
from compress.core.errors import UsageError

MIB = 1 << 20


def test_import_is_light() -> None:
    code = "import sys, compress.core.device; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=device.child_environment(), check=False).returncode == 0


def test_threads_are_set_and_zero_means_usable_cores() -> None:
    before = torch.get_num_threads()
    try:
        assert device.set_threads(1) == 1 == torch.get_num_threads()
        assert device.set_threads(0) == device.usable_cores() == torch.get_num_threads()
        assert 1 <= device.usable_cores() <= len(os.sched_getaffinity(0))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [-1, 1025])
def test_impossible_threads(threads: int) -> None:
    with pytest.raises(UsageError, match=f"{threads} threads .* 1 to 1024"):
        device.set_threads(threads)


def test_affinity_bounds_the_cores() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from compress.core.device import usable_cores; raise SystemExit(usable_cores())"
    )
    assert subprocess.run([sys.executable, "-c", code], env=device.child_environment(), check=False).returncode == 1


def test_pick_device() -> None:
    assert device.pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="device 'tpu' is not known; use cpu, cuda or cuda:N"):
        device.pick_device("tpu")
    with pytest.raises(UsageError, match=r"cuda:99 was asked for.*--device cpu"):
        device.pick_device("cuda:99")


def test_generator_repeats_and_refuses() -> None:
    draws = [torch.rand(4, generator=device.seed_generator(seed)) for seed in (7, 7, 8)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    with pytest.raises(UsageError, match="seed -1"):
        device.seed_generator(-1)


def test_peak_sees_a_freed_block_and_can_be_reset() -> None:
    if not device.reset_peak_rss():
        pytest.skip("this system cannot reset the peak: /proc/self/clear_refs is not writable")
    start = device.current_rss_bytes()
    block = torch.ones(64 * MIB // 4)
    del block
    device.release_memory()
    assert 60 * MIB < device.peak_rss_bytes() - start < 96 * MIB
    assert device.reset_peak_rss()
    assert device.peak_rss_bytes() - device.current_rss_bytes() < 16 * MIB


def test_tuned_allocator_gives_blocks_back() -> None:
    """6 MiB blocks, half of them freed out of order, are kept for the next ones and leave when asked to."""
    code = """
from compress.core.device import tune_allocator, release_memory, current_rss_bytes
tune_allocator()
import torch
torch.ones(1)
before = current_rss_bytes()
for _ in range(3):
    blocks = [torch.ones(6 << 18) for _ in range(8)]
    keep = torch.ones(1000)
    del blocks[::2]
    release_memory()
    held = current_rss_bytes() - before
    assert held < 30 << 20, held
    del blocks
    assert current_rss_bytes() - before > 20 << 20
release_memory()
assert current_rss_bytes() - before < 10 << 20, current_rss_bytes() - before
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=device.child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_free_disk_of_a_folder_to_be(tmp_path: Path) -> None:
    stat = os.statvfs(tmp_path)
    assert device.free_disk_bytes(tmp_path / "not" / "yet") == pytest.approx(stat.f_bavail * stat.f_frsize, rel=0.05)


def test_environment_says_what_is_installed() -> None:
    env = device.environment()
    assert env["packages"]["torch"] == torch.__version__
    assert env["python"] == ".".join(map(str, sys.version_info[:3]))
    assert 0 < device.free_memory_bytes() <= env["memory_bytes"] == device.total_memory_bytes()
    assert device.environment_id(env) == device.environment_id(dict(reversed(env.items())))
    assert device.environment_id(env) != device.environment_id({**env, "threads": env["threads"] + 1})


def test_isa_agrees_with_torch() -> None:
    level = torch.backends.cpu.get_cpu_capability()  # what torch's own cpuid dispatch chose
    found = device.isa()
    if level.startswith("AVX"):
        assert found["avx2"]
        assert found["avx512f"] or level != "AVX512"
    else:
        assert found["neon"] == (level in ("NEON", "SVE", "SVE256")) or not found["known"]


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up version 2 cgroup tree: /job/step, limits on the parent."""
    texts = {
        "job/memory.max": "1000000000",
        "job/memory.current": "700000000",
        "job/memory.stat": "anon 1\ninactive_file 100000000\n",
        "job/cpu.max": "150000 100000",
        "job/step/memory.max": "max",
        "job/step/cpu.max": "max 100000",
    }
    for name, text in texts.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    folders = [tmp_path / "job/step", tmp_path / "job", tmp_path]
    monkeypatch.setattr(device, "_cgroup_files", lambda name, controller: [f / name for f in folders])
    return tmp_path


def test_a_limit_on_the_parent_cgroup_binds(cgroup: Path) -> None:
    assert device.total_memory_bytes() == 1_000_000_000
    assert device.free_memory_bytes() == 400_000_000  # cache that can be dropped is free
    assert device.usable_cores() == 1  # 1.5 cores
