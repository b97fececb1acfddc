"""Plug-ins are files; errors form one tree; fingerprints name what differs; recipes hold the defaults."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

import pytest

from compress.core import errors, registry
from compress.core.errors import CompressError, MissingExtraError, RecipeError, UsageError
from compress.core.fingerprint import differences, digest, file_sha256
from compress.recipe import Recipe

CODES = {
    "CompressError": 1, "HessianError": 1, "StorageError": 1, "UsageError": 2, "MissingExtraError": 2, "InputError": 3,
    "ModelError": 3, "DataError": 3, "RecipeError": 3, "OutputError": 3, "BudgetError": 4, "VerificationError": 5,
    "MissingRuntimeError": 5,     "Interrupted": 130,
}  # fmt: skip


def test_every_error_has_its_exit_code_and_stands_in_the_drawing() -> None:
    found = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
    assert {name: kind.exit_code for name, kind in found.items()} == CODES
    assert all(issubclass(kind, CompressError) for kind in found.values())
    drawing = errors.__doc__ or ""
    for name, code in CODES.items():
        assert any(name in line and line.rstrip().split()[1:] for line in drawing.splitlines()), name
        line = next(line for line in drawing.splitlines() if name in line)
        assert f" {code}  " in line
        parent = found[name].__mro__[1].__name__
        assert parent in CODES or name == "CompressError"


def test_a_missing_extra_carries_its_install_line() -> None:
    assert "pip install 'compress-models[gguf]'" in str(MissingExtraError("gguf", "gguf"))


def test_names_are_files() -> None:
    for kind, (package, attribute) in registry.HOMES.items():
        for name, file in registry.files(kind).items():
            assert file.is_file()
            assert file.parent == Path(*package.split(".")).resolve()
            assert type(registry.load(kind, name)).__name__ != "NoneType", attribute
    assert {"gptq", "rtn"} <= set(registry.names("method"))
    assert "compressed-tensors" in registry.names("format")


@pytest.mark.parametrize("name", ["magic", "", "../rtn", "__init__", "GPTQ"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        registry.load("method", name)
    assert repr(name) in str(refused.value)
    assert ", ".join(registry.names("method")) in str(refused.value)


def test_fingerprints(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "d": None}) == ["b: 2 -> 3", "c: 3 -> None"]


def test_a_recipe_is_frozen_and_knows_every_key() -> None:
    recipe = Recipe.build(bits=3)
    assert (recipe.bits, recipe.group_size, recipe.method) == (3, "auto", "gptq")
    with pytest.raises(ValueError, match="frozen"):
        recipe.bits = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"bits": 7}, ("--bits 7", "2, 3, 4, 5, 6, 8")),
        ({"group_size": 8}, ("--group-size 8", "16 to 256")),
        ({"group_size": "big"}, ("group_size", "big")),
        ({"samples": 0}, ("samples", "0")),
        ({"eval_samples": -1}, ("eval_samples", "-1")),
        ({"head": "int4"}, ("head", "int4")),
        ({"bitz": 4}, ("bitz",)),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings: dict[str, object], parts: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as refused:
        Recipe.build(**settings)
    assert "\n" not in str(refused.value)
    for part in parts:
        assert part in str(refused.value)


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("bits: 3\nseed: 7\n", encoding="utf-8")
    recipe = Recipe.read(file, bits=8)
    assert (recipe.bits, recipe.seed) == (8, 7)
    file.write_text("", encoding="utf-8")
    assert Recipe.read(file) == Recipe()


@pytest.mark.parametrize("content", [b"bits: [", b"- 1", b"\xff\xfe", b"just text", b"bits: &a [*a]"])
def test_recipe_files_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError) as refused:
        Recipe.read(file)
    assert refused.value.exit_code == 3
