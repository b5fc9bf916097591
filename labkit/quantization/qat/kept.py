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

from labkit.errors import ModelError
from labkit.files import write_atomically
from labkit.frontends.torch_fx import parameters_digest
from labkit.quantization.plan import BitPlan
from labkit.quantization.qat.network import TrainableNet
from labkit.quantization.qat.options import FineTuning
from labkit.quantization.qat.result import Epoch

__all__ = ["Kept", "fingerprint"]

_STATE = "labkit_fine_tuning"  # the key of the file's metadata


def fingerprint(
    module: nn.Module, images: NDArray[np.float32], labels: NDArray[np.int64], plan: BitPlan, options: FineTuning
) -> dict[str, Any]:
    """What two runs must have in common for one to go on with the other, as plain JSON values.

    Parameters
    ----------
    module : before training
    images, labels : float32 [N, ...] and int64 [N]
    plan, options : of the training
    """
    return {
        "weights": parameters_digest(module),
        "data": hashlib.sha256(np.ascontiguousarray(images).tobytes() + labels.tobytes()).hexdigest(),
        "plan": plan.to_json(),
        "options": options.as_dict(),
    }


_STATES = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")  # of SGD and of Adam


class Kept:
    """All that the rest of a training depends on, in one file, so that its parts cannot disagree.

    Parameters
    ----------
    path : the file; None keeps nothing
    net : in training
    identity : from `fingerprint`
    """

    def __init__(self, path: str | Path | None, net: TrainableNet, identity: dict[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._net, self._identity = net, identity

    def write(self, optimiser: torch.optim.Optimizer, history: tuple[Epoch, ...]) -> None:
        """Keep the state after the last epoch of ``history``: the network, and what ``optimiser`` remembers.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        if self._path is None:
            return
        tensors = {name: tensor.contiguous() for name, tensor in self._net.state_dict().items()}
        for name, parameter in self._net.named_parameters():
            for key, value in optimiser.state[parameter].items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{key} of {name}"] = value.contiguous()
        state = {"identity": self._identity, "history": [asdict(epoch) for epoch in history]}
        write_atomically(self._path, save(tensors, {_STATE: json.dumps(state)}))

    def restore(self, optimiser: torch.optim.Optimizer) -> tuple[Epoch, ...]:
        """Put back what `write` kept, into the network and ``optimiser``, and return the epochs done.

        There are none where there is no file.


        Raises
        ------
        ModelError
            The file is damaged, or of another training.
        """
        if self._path is None or not self._path.exists():
            return ()
        again = f"Remove {self._path} to start anew, or give another file."
        try:
            with safe_open(self._path, "pt") as file:
                state = json.loads((file.metadata() or {})[_STATE])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            differing = [key for key, value in self._identity.items() if state["identity"].get(key) != value]
            if differing:
                raise ModelError(f"{self._path} belongs to a fine-tuning with other {' and '.join(differing)}. {again}")
            self._net.load_state_dict({name: tensors[name] for name in self._net.state_dict()})
            for name, parameter in self._net.named_parameters():
                for key in _STATES:
                    if f"{key} of {name}" in tensors:
                        value = tensors[f"{key} of {name}"]
                        like = torch.empty_like(parameter, requires_grad=False) if value.shape else torch.empty(())
                        optimiser.state[parameter][key] = like.copy_(value)  # in the same memory order
            return tuple(Epoch(**epoch) for epoch in state["history"])
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
            raise ModelError(f"{self._path} cannot be read: {error}. {again}") from error

    def remove(self) -> None:
        """Remove the file: the training is over."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
