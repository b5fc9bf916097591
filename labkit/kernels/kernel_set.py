"""A `KernelSet` names the function that computes each operation, so that one of them can be swapped for your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from labkit.errors import InputError
from labkit.kernels import reference

__all__ = ["REFERENCE", "KernelSet"]


@dataclass(frozen=True)
class KernelSet:
    """Functions by operation name; their signatures are those of `labkit.kernels.reference`.

    Running a net with a KernelSet goes node by node through these functions, in the layout (N, C, H, W).
    """

    name: str
    functions: Mapping[str, Callable[..., Any]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "functions", MappingProxyType(dict(self.functions)))

    def __getitem__(self, operation: str) -> Callable[..., Any]:
        return self.functions[operation]

    def with_override(self, operation: str, function: Callable[..., Any]) -> KernelSet:
        """The same set with ``function`` in place of ``operation``.

        ``operation`` is a name of `labkit.kernels.reference`, and ``function`` takes that function's parameters.

        Raises
        ------
        InputError
            There is no such operation, or ``function`` cannot be called.
        """
        if operation not in self.functions:
            raise InputError(
                f"There is no operation {operation!r} to override; choose one of {', '.join(self.functions)}."
            )
        if not callable(function):
            raise InputError(f"An override must be a function, got {type(function).__name__}.")
        return KernelSet(f"{self.name} with your {operation}", {**self.functions, operation: function})


REFERENCE = KernelSet("reference", {name: getattr(reference, name) for name in reference.__all__})
