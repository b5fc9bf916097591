"""The leaderboard: every figure is measured again, and whoever claims another one is refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import labkit
from labkit.allocation.costs import bit_operations, weight_bytes
from labkit.course import leaderboard
from labkit.course.entries import COURSE_BUDGET, Budget, Entry, entry_of, make_entry, parameter_bytes
from labkit.course.leaderboard import Leaderboard, eight_bits, read_leaderboard, relative_time
from labkit.data.dataset import DataSet
from labkit.errors import InputError, ModelError
from labkit.frontends.torch_fx import from_torch
from labkit.graph import storage
from labkit.graph.passes import simplify
from labkit.net import IntegerNet

WIDE = Budget(10**9, 10**12)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return labkit.data.load("mnist5k")


@pytest.fixture(scope="module")
def nets(data: DataSet) -> dict[str, IntegerNet]:
    module = labkit.models.load("lenet", data="mnist5k")
    images = data.calibration(64)
    return {f"w{w}a{a}": labkit.quantize(module, images, weights=w, activations=a) for w, a in ((8, 8), (4, 8), (2, 2))}


@pytest.fixture
def entered(tmp_path: Path, nets: dict[str, IntegerNet], data: DataSet) -> Path:
    for name, net in nets.items():
        make_entry(net, f"team {name}", data, tmp_path / name)
    return tmp_path


def change_claim(folder: Path, **changes: Any) -> None:
    path = folder / "entry.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def board(folder: Path, budget: Budget = WIDE) -> Leaderboard:
    return read_leaderboard(folder, budget=budget, timed=False)


def reasons(found: Leaderboard) -> dict[str, str]:
    return {one.folder: one.reason for one in found.refused}


def test_the_bytes_of_a_net_are_counted_by_hand(nets: dict[str, IntegerNet]) -> None:
    weights = [12 * 3 * 25, 32 * 12 * 9, 256 * 1152, 64 * 256, 10 * 64]
    scales = 12 + 32 + 256 + 64 + 10  # LeNet has no biases
    for name, bits in (("w8a8", 8), ("w4a8", 4), ("w2a2", 2)):
        assert parameter_bytes(nets[name].graph) == sum(-(-n * bits // 8) for n in weights) + 4 * scales


def test_bytes_and_bit_operations_are_those_that_plans_are_made_with(
    nets: dict[str, IntegerNet], data: DataSet
) -> None:
    graph = simplify(from_torch(labkit.models.load("lenet", data="mnist5k"), (3, 32, 32)))
    entry, _ = entry_of(storage.dumps(nets["w4a8"].graph), "somebody", data)
    assert entry.size == weight_bytes(graph).uniform(4)
    assert entry.bit_operations == bit_operations(graph).uniform(4)


def test_biases_count_where_there_are_any() -> None:
    data = labkit.data.load("mnist5k")
    module = labkit.models.load("lenet", data="mnist5k")
    with_bias = type(module)(last_bias=True)
    with_bias.load_state_dict(module.state_dict(), strict=False)
    images = data.calibration(16)
    more = parameter_bytes(labkit.quantize(with_bias, images).graph) - parameter_bytes(
        labkit.quantize(module, images).graph
    )
    assert more == 10 * 4


def test_an_entry_is_two_files_of_plain_data(entered: Path, nets: dict[str, IntegerNet]) -> None:
    folder = entered / "w4a8"
    assert {path.name for path in folder.iterdir()} == {"net.lab", "entry.json"}
    assert (folder / "net.lab").read_bytes() == storage.dumps(nets["w4a8"].graph)
    entry = Entry.from_json(json.loads((folder / "entry.json").read_text()))
    assert entry.labkit == labkit.__version__
    assert entry.accuracy == 100 * entry.right / entry.images


def test_accuracy_is_that_of_the_engine_on_all_test_images(
    entered: Path, nets: dict[str, IntegerNet], data: DataSet
) -> None:
    x, y = data.test()
    for place in board(entered).places:
        right = np.count_nonzero(nets[place.folder].run(x).argmax(1) == y)
        assert (place.entry.right, place.entry.images) == (right, len(y))


def test_the_best_within_the_budget_comes_first(entered: Path) -> None:
    found = board(entered)
    rights = [place.entry.right for place in found.places]
    assert rights == sorted(rights, reverse=True)
    assert found.places[-1].folder == "w2a2"
    size = next(place.entry.size for place in found.places if place.folder == "w4a8")
    narrow = board(entered, Budget(size, 10**12))
    assert [(place.folder, place.within) for place in narrow.places] == [
        ("w4a8", True),
        ("w2a2", True),
        ("w8a8", False),
    ]


@pytest.mark.parametrize(("less", "within"), [(0, True), (1, False)])
def test_a_budget_may_be_met_and_not_exceeded(entered: Path, less: int, within: bool) -> None:
    entry = next(place.entry for place in board(entered).places if place.folder == "w2a2")
    for budget in (Budget(entry.size - less, 10**12), Budget(10**9, entry.bit_operations - less)):
        assert budget.holds(entry) is within


def test_of_equal_accuracy_the_smaller_comes_first(entered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def equally_good(content: bytes, name: str, data: DataSet) -> Any:
        entry, _ = entry_of(content, name, data)
        return replace(entry, right=900, accuracy=90.0), np.arange(1000) < 900

    monkeypatch.setattr(leaderboard, "entry_of", equally_good)
    for name in ("w8a8", "w4a8", "w2a2"):
        change_claim(entered / name, right=900, accuracy=90.0)
    assert [place.folder for place in board(entered).places] == ["w2a2", "w4a8", "w8a8"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("right", 999), ("accuracy", 99.9), ("size", 1), ("bit_operations", 1), ("images", 2000)],
)
def test_a_false_figure_is_refused_by_name(entered: Path, field: str, value: float) -> None:
    change_claim(entered / "w4a8", **{field: value})
    found = board(entered)
    assert [place.folder for place in found.places] == ["w8a8", "w2a2"]
    assert f"claims {field.replace('_', ' ')} {value}" in reasons(found)["w4a8"]


def test_another_net_than_the_one_entered_is_refused(entered: Path) -> None:
    (entered / "w2a2" / "net.lab").write_bytes((entered / "w8a8" / "net.lab").read_bytes())
    assert "not the file that was entered" in reasons(board(entered))["w2a2"]


def test_a_damaged_net_is_refused_even_with_its_hash(entered: Path) -> None:
    import hashlib

    path = entered / "w4a8" / "net.lab"
    content = path.read_bytes()[:-100]
    path.write_bytes(content)
    change_claim(entered / "w4a8", sha256=hashlib.sha256(content).hexdigest())
    assert "net.lab" in reasons(board(entered))["w4a8"]


def test_a_pickle_is_never_opened(entered: Path, tmp_path: Path) -> None:
    import hashlib

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "boom",))

    content = pickle.dumps(Bomb())
    (entered / "w4a8" / "net.lab").write_bytes(content)
    change_claim(entered / "w4a8", sha256=hashlib.sha256(content).hexdigest())
    assert "not a .lab file" in reasons(board(entered))["w4a8"]
    assert not (tmp_path / "boom").exists()


def test_another_data_set_is_refused(entered: Path) -> None:
    change_claim(entered / "w4a8", data="cifar10")
    assert "'cifar10'" in reasons(board(entered))["w4a8"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"schema": "labkit.entry/1"}'])
def test_a_claim_that_is_none_is_refused(entered: Path, content: bytes) -> None:
    (entered / "w4a8" / "entry.json").write_bytes(content)
    found = board(entered)
    assert list(reasons(found)) == ["w4a8"]
    assert len(found.places) == 2


@pytest.mark.parametrize(
    "changes", [{"right": "900"}, {"size": True}, {"name": ""}, {"name": "a\nb"}, {"name": "x" * 61}]
)
def test_fields_of_other_types_are_refused(entered: Path, changes: dict[str, Any]) -> None:
    change_claim(entered / "w4a8", **changes)
    assert list(reasons(board(entered))) == ["w4a8"]


@pytest.mark.parametrize("missing", ["net.lab", "entry.json"])
def test_half_an_entry_is_refused(entered: Path, missing: str) -> None:
    (entered / "w4a8" / missing).unlink()
    assert missing in reasons(board(entered))["w4a8"]


@pytest.mark.parametrize("name", ["net.lab", "entry.json"])
def test_a_link_out_of_the_folder_is_refused(entered: Path, name: str) -> None:
    path = entered / "w4a8" / name
    path.unlink()
    path.symlink_to(entered / "w8a8" / name)
    assert "ordinary file" in reasons(board(entered))["w4a8"]


def test_too_much_to_run_is_refused(entered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaderboard, "_MOST_MACS", 10**6)
    found = board(entered)
    assert not found.places
    assert all("multiply-accumulates" in reason for reason in reasons(found).values())
    monkeypatch.setattr(leaderboard, "_LARGEST_NET", 10)
    assert all("are allowed" in reason for reason in reasons(board(entered)).values())


def test_a_net_of_other_classes_is_refused(tmp_path: Path, data: DataSet) -> None:
    from torch import nn

    net = labkit.quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 7)), data.calibration(16))
    with pytest.raises(InputError, match="10 logits"):
        make_entry(net, "somebody", data, tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


def test_an_older_labkit_may_have_measured(entered: Path) -> None:
    change_claim(entered / "w4a8", labkit="0.0.1")
    assert not board(entered).refused


def test_the_same_net_twice_is_shown(entered: Path, nets: dict[str, IntegerNet], data: DataSet) -> None:
    make_entry(nets["w4a8"], "somebody else", data, entered / "zz")
    found = {place.folder: place for place in board(entered).places}
    assert found["zz"].same_as == "w4a8"
    assert found["w4a8"].same_as == ""
    assert "the net of w4a8" in str(board(entered))


def test_the_distance_to_the_first_is_paired(entered: Path) -> None:
    first, *others = board(entered).places
    assert (first.behind, first.behind_error) == (0.0, 0.0)
    for place in others:
        only_first = np.count_nonzero(first.right & ~place.right)
        only_other = np.count_nonzero(~first.right & place.right)
        assert place.behind == pytest.approx((only_first - only_other) / 10)
        assert place.behind_error == pytest.approx((only_first + only_other) ** 0.5 / 10)


def test_times_are_ratios_to_eight_bits(entered: Path, data: DataSet, nets: dict[str, IntegerNet]) -> None:
    found = read_leaderboard(entered, budget=WIDE)
    for place in found.places:
        assert place.time is not None
        median, p10, p90 = place.time
        assert 0 < p10 <= median <= p90

    class Slow(IntegerNet):
        def run(self, *args: Any, **options: Any) -> Any:
            for _ in range(20):
                super().run(*args, **options)

    x = data.test(1)[0]
    assert relative_time(Slow(nets["w8a8"].graph), eight_bits(data), x)[0] > 5


def test_the_leaderboard_says_all_of_it_as_json(entered: Path, tmp_path: Path) -> None:
    change_claim(entered / "w2a2", right=1000)
    found = board(entered, COURSE_BUDGET)
    found.save(entered / "leaderboard.json")
    values = json.loads((entered / "leaderboard.json").read_text())
    assert values == found.to_json()
    assert [one["folder"] for one in values["refused"]] == ["w2a2"]
    assert [one["place"] for one in values["places"]] == [None, None]  # both are over the course's budget
    assert "team w8a8" in found._repr_html_()
    assert "refused: w2a2" in str(found)


def test_html_in_a_name_stays_text(tmp_path: Path, nets: dict[str, IntegerNet], data: DataSet) -> None:
    make_entry(nets["w4a8"], "<script>", data, tmp_path / "a")
    assert "<script>" not in board(tmp_path)._repr_html_()


def test_folders_without_entries_are_passed_over(entered: Path) -> None:
    (entered / "notes").mkdir()
    (entered / "notes" / "readme.txt").write_text("nothing")
    (entered / "readme.txt").write_text("nothing")
    assert len(board(entered).places) == 3
    with pytest.raises(InputError, match="holds an entry"):
        board(entered / "notes")
    with pytest.raises(InputError, match="There is no folder"):
        board(entered / "nowhere")


def test_no_known_data_set_is_an_error(entered: Path) -> None:
    for folder in ("w8a8", "w4a8", "w2a2"):
        change_claim(entered / folder, data="auto")
    with pytest.raises(InputError, match="mnist5k"):
        board(entered)


def test_bytes_that_are_no_net_cannot_be_entered(data: DataSet) -> None:
    with pytest.raises(ModelError):
        entry_of(b"labkit", "somebody", data)
