"""Data sets: CIFAR-10 where it is found, and 5,000 MNIST digits that come with labkit."""

from __future__ import annotations

from labkit.data.dataset import DataSet, normalise
from labkit.data.select import load, names, resolve

__all__ = ["DataSet", "load", "names", "normalise", "resolve"]
