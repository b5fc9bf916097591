"""`labkit verify` on a net of several inputs, of which some are indices and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from parity.encoders import Sizes, encoder, sentences, whole_sentences
from unit.cli.conftest import Command

import labkit

SIZES = Sizes()


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nets") / "net.lab"
    labkit.quantize(encoder(SIZES), whole_sentences(SIZES, 6)).save(path)
    return path


@pytest.mark.parametrize("against", ["torch", "labkit"])
def test_a_saved_encoder_needs_no_data(against: str, net: Path, labkit_command: Command) -> None:
    code, out, err = labkit_command("verify", net, "--against", against, "--images", 5)
    assert code == 0, err
    assert "Bit for bit equal: 0 of" in out
    assert ("5 random sequences, seed 0" in out) is (against == "labkit")
    assert "5 images" in out or against == "labkit"


def test_several_inputs_come_from_one_file(net: Path, tmp_path: Path, labkit_command: Command) -> None:
    given = sentences(SIZES, 4)
    np.savez(tmp_path / "x.npz", ids=given["ids"], mask=given["mask"].astype(bool))
    code, out, err = labkit_command("verify", net, "--input", tmp_path / "x.npz")
    assert code == 0, err
    assert "4 images" in out


def test_one_array_is_not_enough(net: Path, tmp_path: Path, labkit_command: Command) -> None:
    np.save(tmp_path / "x.npy", sentences(SIZES, 4)["ids"])
    code, _, err = labkit_command("verify", net, "--input", tmp_path / "x.npy")
    assert code == 2
    assert "takes the inputs ids, mask, and x.npy holds one array. Give an .npz file" in " ".join(err.split())
