"""The networks of ``torchvision.models``: built quickly, filled with torchvision's own weights, and their preprocessing."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import hub, nn

from labkit.data.preprocessing import Preprocessing
from labkit.data.torchvision_shim import import_torchvision
from labkit.errors import ModelError
from labkit.models.weights_files import AUXILIARY_HEADS

__all__ = ["TorchvisionNet", "find_torchvision_net"]

# What is asked for where the network's class takes it. init_weights: Inception's truncated normal takes 30 s, and the
# weights are filled in afterwards. transform_input: it repeats the normalisation inside the network, see `preprocessing`.
_QUIETER = {"init_weights": False, "transform_input": False}
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class TorchvisionNet:
    """A builder of ``torchvision.models``, by its ``name`` there.

    Attributes
    ----------
    name
        For example ``resnet18``.
    builder
        Makes the module; takes ``weights``.
    weights
        torchvision's enum of the weights that it offers for this network, in the order of their age.
    """

    name: str
    builder: Callable[..., nn.Module]
    weights: Any

    @property
    def normalises_itself(self) -> bool:
        """Whether torchvision's builder can put a normalisation into the network, see `preprocessing`."""
        return "transform_input" in self._parameters()

    def named(self, weights: str) -> Any:
        """The member of the enum that ``weights`` names: DEFAULT, IMAGENET1K_V1, also with the enum's name before it.

        Raises
        ------
        ModelError
            There is none of that name.
        """
        allowed = self.weights.__members__  # with aliases, of which DEFAULT is one
        try:
            return allowed[weights.removeprefix(f"{self.weights.__name__}.")]
        except KeyError:
            raise ModelError(
                f"There is no file {weights}, and torchvision has no weights of that name for {self.name}: it offers "
                f"{', '.join(allowed)}. Name one of them, or a .safetensors or .pth file."
            ) from None

    def recognised(self, file: Path) -> Any | None:
        """The member of the enum whose download ``file`` is, by its SHA-256; None for other files.

        torchvision puts the first eight digits of the SHA-256 into the name of each file that it offers.
        """
        known = {
            found[1]: member for member in self.weights if (found := re.search(r"-([0-9a-f]{8})\.pth", member.url))
        }
        try:
            with file.open("rb") as stream:
                return known.get(hashlib.file_digest(stream, "sha256").hexdigest()[:8])
        except OSError:
            return None  # who reads the file will say it

    def build(self, member: Any | None = None) -> nn.Module:
        """The network with the weights ``member`` of the enum, downloaded where they are not yet; None: random ones.

        Auxiliary heads, which take no part in evaluation, are left out.

        Raises
        ------
        ModelError
            The weights cannot be downloaded or read.
        """
        taken = {name: value for name, value in _QUIETER.items() if name in self._parameters()}
        if member is None:
            module = self.builder(weights=None, **taken)
        else:
            self._fetch(member)
            module = self.builder(weights=member, progress=False, **taken)
        for head in AUXILIARY_HEADS:
            if isinstance(getattr(module, head, None), nn.Module):
                setattr(module, head, None)
                module.aux_logits = False  # type: ignore[assignment]
        return module

    def preprocessing(self, member: Any | None = None) -> Preprocessing | None:
        """What torchvision does to pictures before this network with the weights ``member``; None where it is no classifier.

        For None, weights of the user's own, it is what belongs to the oldest weights: those of later recipes are tested on
        pictures of another size than they were trained on, which holds for them alone.

        Inception's and GoogLeNet's weights were made for pixels in [-1, 1]. torchvision normalises them as for the others, and
        its builder then adds ``transform_input``, a layer that undoes it. Both are left out here, which is the same function.
        """
        found: Any = (next(iter(self.weights)) if member is None else member).transforms()
        try:
            sides = found.resize_size[0], found.crop_size[0]
            preset = Preprocessing(*sides, tuple(found.mean), tuple(found.std), found.interpolation.value)
        except AttributeError:
            return None
        if member is not None and self.normalises_itself:
            preset = replace(preset, mean=_HALF, std=_HALF)
        return preset

    def _parameters(self) -> set[str]:
        """The parameters of the network's class; the builder hands through what it is given."""
        returned = inspect.get_annotations(inspect.unwrap(self.builder), eval_str=True).get("return")
        return set(inspect.signature(returned).parameters) if inspect.isclass(returned) else set()

    def _fetch(self, member: Any) -> None:
        """Download the weights, and read them as tensors only: torchvision's builder would run what a bad file says."""
        try:
            member.get_state_dict(progress=True, check_hash=True, weights_only=True)
        except Exception as error:  # no network, a full disk, a damaged or foreign file in the cache
            folder = Path(hub.get_dir()) / "checkpoints"
            raise ModelError(
                f"The weights {member} of torchvision cannot be had from {member.url} "
                f"({type(error).__name__}: {' '.join(str(error).split())[:120]}). Download that file where there is a network "
                f"and name it, --weights {Path(member.url).name}, or put it into {folder}; if it is there already, it is damaged."
            ) from error


def find_torchvision_net(module: str, attribute: str) -> TorchvisionNet | None:
    """The network that torchvision registers under ``module``:``attribute``, for example torchvision.models:resnet18.

    None where ``module`` is not torchvision's, or the callable is no builder with weights to offer.
    """
    if module.partition(".")[0] != "torchvision":
        return None
    import_torchvision()
    from torchvision import models

    if attribute not in models.list_models():
        return None
    builder = models.get_model_builder(attribute)
    if module not in ("torchvision.models", builder.__module__):
        return None
    return TorchvisionNet(attribute, builder, models.get_model_weights(attribute))
