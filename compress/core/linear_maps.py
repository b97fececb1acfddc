"""Every weight matrix a model multiplies by, found by the class of its module; nothing is traced or run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from compress.core.roles import Roles

Container = Literal["linear", "conv1d", "experts", "experts_t"]

READS_HIDDEN = frozenset({"gate_proj", "up_proj", "gate_up_proj", "fc1"})
WRITES_HIDDEN = frozenset({"down_proj", "fc2"})


@dataclass(frozen=True)
class LinearMap:
    """One parameter that holds one matrix, or E of them. shape: (O, I) of each, whatever the storage order.

    path: its module. key: the parameter's name there. experts: E, or None. certain: False when the storage
    order of experts cannot be told from the shapes.
    """

    path: str
    key: str
    shape: tuple[int, int]
    container: Container
    experts: int | None = None
    certain: bool = True

    @property
    def param(self) -> str:
        """The parameter's full name."""
        return f"{self.path}.{self.key}" if self.path else self.key

    @property
    def label(self) -> str:
        """The path that roles are looked up by: the module, and the parameter unless called `weight`."""
        return self.path if self.key == "weight" else self.param

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1] * (self.experts or 1)


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is transformers' Conv1D, a linear map stored (I, O); asked without importing it."""
    classes = type(module).__mro__
    return any(c.__name__ == "Conv1D" and c.__module__.startswith("transformers.") for c in classes)


def find_routers(model: nn.Module, roles: Roles) -> frozenset[str]:
    """Paths of the modules that choose experts, and of everything in them.

    By the name (`router`, `shared_expert_gate`), the class (`...Router`), or called `gate` next to experts.
    """
    found: list[str] = []
    for path, module in model.named_modules():
        last = path.rpartition(".")[2]
        named = last in roles.routers or last.endswith("router") or type(module).__name__.endswith("Router")
        if named or (last == "gate" and _beside_experts(model, path)):
            found.append(path)
    inside = {path for path, _ in model.named_modules() if any(path.startswith(f"{r}.") for r in found)}
    return frozenset({*found, *inside})


def _beside_experts(model: nn.Module, path: str) -> bool:
    parent = model.get_submodule(path.rpartition(".")[0])
    return any("expert" in name for name, _ in parent.named_children())


def linear_maps(model: nn.Module, config: Any, roles: Roles) -> list[LinearMap]:
    """All linear maps of `model` in the order they are registered, routers left out; a shared module once."""
    routers = find_routers(model, roles)
    return [
        m for path, module in model.named_modules() if path not in routers for m in _maps(path, module, config, roles)
    ]


def bare_matrices(model: nn.Module, roles: Roles, known: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Parameters of two or more dimensions that are not in `known`, nor of an embedding, conv or router.

    These are matrices that a model multiplies by without saying so (xlnet's `rel_attn.q`); they stay dense.
    """
    routers = find_routers(model, roles)
    plain = (nn.Embedding, nn.modules.conv._ConvNd, nn.Linear)
    for path, module in model.named_modules():
        if path in routers or isinstance(module, plain):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{key}" if path else key
            if parameter.dim() >= 2 and not key.endswith("bias") and name not in known:
                yield name, parameter


def _maps(path: str, module: nn.Module, config: Any, roles: Roles) -> list[LinearMap]:
    if isinstance(module, nn.Linear):
        return [LinearMap(path, "weight", (module.weight.shape[0], module.weight.shape[1]), "linear")]
    if is_conv1d(module):
        weight = module.get_parameter("weight")
        return [LinearMap(path, "weight", (weight.shape[1], weight.shape[0]), "conv1d")]
    if "expert" in f"{path}.{type(module).__name__}".lower():
        return _expert_maps(path, module, config, roles)
    return []


def _expert_maps(path: str, module: nn.Module, config: Any, roles: Roles) -> list[LinearMap]:
    """The fused 3-D parameters of a module of experts, (E, O, I) or (E, I, O)."""
    stored = {
        key: p
        for key, p in module.named_parameters(recurse=False)
        if p.dim() == 3 and not key.endswith("bias") and not isinstance(module, nn.modules.conv._ConvNd)
    }
    named = {key: roles.of(path if key == "weight" else f"{path}.{key}") for key in stored}
    transposed = _transposed(module, config, {named[key]: p for key, p in stored.items()})
    found = []
    for key, p in stored.items():
        count, rows, columns = p.shape
        shape, container = ((columns, rows), "experts_t") if transposed else ((rows, columns), "experts")
        order: Container = "experts_t" if container == "experts_t" else "experts"
        found.append(LinearMap(path, key, shape, order, count, transposed is not None))
    return found


def _transposed(module: nn.Module, config: Any, by_role: dict[str, Tensor]) -> bool | None:
    """Whether experts are stored (E, I, O): the module says so, else the side that is the hidden size does.

    None when neither tells.
    """
    said = getattr(module, "is_transposed", None)
    if isinstance(said, bool):
        return said
    hidden = _hidden_size(module, config)
    for role, p in by_role.items():
        first, second = p.shape[1] == hidden, p.shape[2] == hidden
        if first != second and role in READS_HIDDEN | WRITES_HIDDEN:
            return first if role in READS_HIDDEN else second
    return None


def _hidden_size(module: nn.Module, config: Any) -> int | None:
    for owner, key in (
        (module, "hidden_size"),
        (module, "hidden_dim"),
        (config, "hidden_size"),
        (config, "d_model"),
    ):
        size = getattr(owner, key, None)
        if isinstance(size, int):
            return size
    return None
