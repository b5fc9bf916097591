"""What is switched on at each step of fine-tuning, and how fast it learns."""

from __future__ import annotations

import math

from labkit.quantization.qat.network import Phase
from labkit.quantization.qat.options import FineTuning

__all__ = ["learning_rate_at", "phase_at"]


def learning_rate_at(options: FineTuning, step: int, steps: int) -> float:
    """The learning rate by ``options`` at ``step``, counted from 0, of ``steps``: a straight rise, then half a cosine to 0."""
    rise = options.warm_up * steps
    if step < rise:
        return options.learning_rate * (step + 1) / (rise + 1)
    return options.learning_rate * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


def phase_at(options: FineTuning, step: int, steps: int) -> Phase:
    """What ``options`` switch on at ``step``, counted from 0, of ``steps`` in all."""
    done = step / steps
    late = options.freeze_at > 0 and done >= options.freeze_at
    observing = options.activation_scales == "ema" and done < options.ema_delay
    return Phase(quantize_activations=not observing, live_norms=done < options.freeze_at, move_ranges=not late)
