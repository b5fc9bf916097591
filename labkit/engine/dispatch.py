"""From an operation to the function that plans its kernel calls; each module of lowerings adds its own."""

from __future__ import annotations

from functools import singledispatch

from labkit.engine.plan import Plan
from labkit.errors import UnsupportedOperation
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import IntNode

__all__ = ["lower", "lower_op", "unsupported"]


def lower(plan: Plan, node: IntNode) -> None:
    """Give ``node`` a place in ``plan`` and add its kernel calls.

    Raises
    ------
    UnsupportedOperation
        The fast kernels do not serve its shape.
    """
    lower_op(node.op, plan, node)


@singledispatch
def lower_op(op: IntOp, plan: Plan, node: IntNode) -> None:
    """`lower` for the ``op`` of ``node`` in ``plan``: the function that is registered for its class.

    Raises
    ------
    UnsupportedOperation
        No function is registered for the class of ``op``, or that function does not serve its shape.
    """
    raise unsupported(node, f"there is no kernel for {type(op).__name__}")


def unsupported(node: IntNode, why: str) -> UnsupportedOperation:
    """The error to raise where ``node`` cannot be planned; ``why`` completes the sentence after its name."""
    return UnsupportedOperation(
        f"{node.name}: {why}. The fast kernels do not serve this; run the net with the reference kernels instead."
    )
