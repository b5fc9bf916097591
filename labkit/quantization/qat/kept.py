"""The file that lets a fine-tuning that was killed go on exactly where it stood."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from labkit import __version__
from labkit.errors import ModelError
from labkit.files import write_atomically
from labkit.frontends.torch_fx import parameters_digest
from labkit.graph.ir import FloatGraph
from labkit.quantization.plan import BitPlan
from labkit.quantization.qat.options import FineTuning
from labkit.quantization.qat.result import Epoch

__all__ = ["Kept", "fingerprint"]

_STATE = "labkit_fine_tuning"  # the key of the file's metadata


def fingerprint(
    module: nn.Module,
    graph: FloatGraph,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    plan: BitPlan,
    options: FineTuning,
    calibration_images: int,
) -> dict[str, Any]:
    """What two runs must have in common for one to go on with the other, as plain JSON values.

    Parameters
    ----------
    module, graph : before training, and what was traced of it
    images, labels : float32 [N, ...] and int64 [N]
    plan, options : of the training
    calibration_images : that the start looks at
    """
    data = hashlib.sha256(np.ascontiguousarray(images).data)
    data.update(np.ascontiguousarray(labels).data)
    return {
        "weights": parameters_digest(module),
        "network": hashlib.sha256(str(graph).encode()).hexdigest(),
        "data": data.hexdigest(),
        "calibration images": calibration_images,
        "versions": [__version__, torch.__version__],
        "plan": plan.to_json(),
        "options": options.as_dict(),
    }


_STATES = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")  # of SGD and of Adam


class Kept:
    """All that the rest of a training depends on, in one file, so that its parts cannot disagree.

    Parameters
    ----------
    path : the file; None keeps nothing
    identity : from `fingerprint`

    Raises
    ------
    ModelError
        The file is there and is damaged, or of another training: found out before any work.
    """

    def __init__(self, path: str | Path | None, identity: dict[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._identity = identity
        if self._path is not None and self._path.exists():
            self._read()

    def write(self, net: nn.Module, optimiser: torch.optim.Optimizer, history: tuple[Epoch, ...]) -> None:
        """Keep the state after the last epoch of ``history``: the network ``net``, and what ``optimiser`` remembers.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        if self._path is None:
            return
        tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
        for name, parameter in net.named_parameters():
            for key, value in optimiser.state[parameter].items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{key} of {name}"] = value.contiguous()
        state = {"identity": self._identity, "history": [asdict(epoch) for epoch in history]}
        write_atomically(self._path, save(tensors, {_STATE: json.dumps(state)}))

    def restore(self, net: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[Epoch, ...]:
        """Put back what `write` kept, into ``net`` and ``optimiser``, and return the epochs done; none where there is no file.

        Raises
        ------
        ModelError
            The file is damaged, or of another training.
        """
        if self._path is None or not self._path.exists():
            return ()
        tensors, history = self._read()
        try:
            net.load_state_dict({name: tensors[name] for name in net.state_dict()})
            for name, parameter in net.named_parameters():
                for key in _STATES:
                    if f"{key} of {name}" in tensors:
                        value = tensors[f"{key} of {name}"]
                        like = torch.empty_like(parameter, requires_grad=False) if value.shape else torch.empty(())
                        optimiser.state[parameter][key] = like.copy_(value)  # in the same memory order
        except (KeyError, RuntimeError) as error:
            raise ModelError(f"{self._path} cannot be read: {error}. {self._again}") from error
        return history

    def remove(self) -> None:
        """Remove the file: the training is over."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    @property
    def _again(self) -> str:
        return f"Remove {self._path} to start anew, or give another file."

    def _read(self) -> tuple[dict[str, torch.Tensor], tuple[Epoch, ...]]:
        assert self._path is not None
        try:
            with safe_open(self._path, "pt") as file:
                state = json.loads((file.metadata() or {})[_STATE])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            history = tuple(Epoch(**epoch) for epoch in state["history"])
            differing = [key for key, value in self._identity.items() if state["identity"].get(key) != value]
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            raise ModelError(f"{self._path} cannot be read: {error}. {self._again}") from error
        if differing:
            raise ModelError(
                f"{self._path} belongs to a fine-tuning with other {' and '.join(differing)}. {self._again}"
            )
        return tensors, history
