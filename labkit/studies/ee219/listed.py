"""The studies of the EE219 lab. Importing this imports none of them."""

from __future__ import annotations

from labkit.studies.study import Study

__all__ = ["EE219"]

_LAB = "EE219 quantization lab report (2022)"

EE219: tuple[Study, ...] = ()
