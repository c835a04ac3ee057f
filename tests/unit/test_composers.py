"""Composers: trained on real pictures, measured beside sums of vectors, resumed, refused; run without torch."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from pgembed.algebra import reject, slerp, swap
from pgembed.cli.main import main
from pgembed.composers import Trained, train_composer
from pgembed.composers.fitting import Pairs, Plan, Weights, fit, to_onnx
from pgembed.composers.ways import WAYS, ranks, unit
from pgembed.encoders import EncoderPolicy, Needs, load_encoder
from pgembed.encoders.builtin import LiteEncoder
from pgembed.encoders.composer import ComposerEncoder, ComposerManifest, shipped
from pgembed.errors import EncoderError, EncoderMismatch, InvalidInput, InvalidQuery, MissingExtra, UnsupportedModality
from pgembed.inputs import Text

PICTURES = sorted((Path(__file__).parents[1] / "data").glob("*/*.jpg"))
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}
DIM = 4


def written(folder: Path, lines: list[list[str]], header: str = "reference,target,new,old") -> Path:
    with (folder / "triplets.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *lines])
    return folder / "triplets.csv"


def tinted(folder: Path) -> list[list[str]]:
    """Twelve photographs in three colours, and the triplets from each colour to each other."""
    for picture in PICTURES:
        grey = PIL.ImageOps.grayscale(PIL.Image.open(picture)).resize((64, 64))
        for colour, middle in COLOURS.items():
            made = PIL.ImageOps.colorize(grey, "black", "white", mid=middle)  # pyright: ignore[reportArgumentType]
            made.save(folder / f"{picture.stem}-{colour}.png")
    return [
        [f"{picture.stem}-{a}.png", f"{picture.stem}-{b}.png", f"in {b}", f"in {a}"]
        for picture in PICTURES
        for a in COLOURS
        for b in COLOURS
        if a != b
    ]


def test_the_ways_without_training_are_the_operations_of_queries() -> None:
    random = np.random.default_rng(2)
    vectors = [unit(random.normal(size=(9, 16))) for _ in range(3)]
    p, o, n = (Text(name) for name in ("picture", "old", "new"))
    for weight in (0.25, 0.7, 1.4):
        same = {
            "sum": p + weight * n,
            "minus and plus": p + weight * n - weight * o,
            "swap": swap(p, o, n, weight),
            "slerp": slerp(p, n, weight),
            "reject and sum": reject(p, o) + weight * n,
        }
        assert set(WAYS) == {*same, "picture only", "words only"}
        for name, expression in same.items():
            found = unit(WAYS[name][1](*vectors, weight))
            for row in range(9):
                known = {text: of[row] for text, of in zip((p, o, n), vectors, strict=True)}
                assert found[row] == pytest.approx(expression.resolve(known.__getitem__), abs=1e-6), name


BAD = [
    (["gone.png", "cow-red.png", "in red", ""], "the reference gone.png is not there"),
    (["cow-red.png", "cow-blue.png", "", ""], "'new' is empty"),
    (["cow-red.png", "cow-red.png", "in red", ""], "the same picture"),
    (["cow-red.png", "broken.png", "in blue", ""], "broken.png cannot be read"),
    (["cow-red.png", "cow-blue.png", "in blue", "", "more"], "more fields"),
    (["cow-red.png", "cow-blue.png", "✓", ""], "'✓' cannot be encoded"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("triplets")
    lines = tinted(folder)
    (folder / "broken.png").write_bytes(b"no picture")
    file = written(folder, [*[line for line, _ in BAD], *lines])
    plan = Plan(steps=60, batch=32, hidden=0, every=20)
    return train_composer(file, load_encoder("builtin:lite"), folder / "models" / "recolour", plan=plan)


def test_it_learns_from_pictures_and_says_what_it_is_worth(trained: Trained) -> None:
    assert trained.held_out == 6 * round(36 * 0.2) // 3
    assert trained.composer.recall[1] > trained.untrained["picture only"].recall[1]
    assert set(trained.untrained) == set(WAYS)
    manifest = json.loads((trained.folder / "manifest.json").read_text())
    assert manifest["measured"]["composer"]["R@1"] == round(trained.composer.recall[1], 4)
    assert manifest["trained_on"]["triplets"] == len(PICTURES) * 6 - trained.held_out
    assert manifest["space"] == LiteEncoder.load("lite", {}).space
    assert sorted(file.name for file in trained.folder.iterdir()) == ["composer.onnx", "manifest.json"]
    assert not trained.folder.with_name("recolour.part").exists()


def test_every_bad_line_is_told_by_its_number_and_the_others_are_used(trained: Trained) -> None:
    assert [line.line for line in trained.bad] == [2, 3, 4, 5, 6, 7]
    for found, (_, reason) in zip(trained.bad, BAD, strict=True):
        assert reason in str(found)


def test_it_runs_without_torch_and_gives_unit_vectors(trained: Trained) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'onnx'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from pgembed.encoders.composer import ComposerEncoder\n"
        f"composer = ComposerEncoder.load('{trained.folder}', {{}})\n"
        "given = np.random.default_rng(0).normal(size=(3, 2, 256))\n"
        "print(np.linalg.norm(composer.compose(*given), axis=1).tolist(), composer.compose(*given[:2]).shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("(2, 256)")
    assert json.loads(done.stdout.split("]")[0] + "]") == pytest.approx([1, 1], abs=1e-5)


def pairs(seed: int = 0, count: int = 60) -> Pairs:
    """Vectors of 60 things in which one number is turned by the words: no sum of vectors does that."""
    rng = np.random.default_rng(seed)
    gallery = rng.normal(size=(count, 8)).astype(np.float32)
    gallery[1::2] = gallery[::2]
    gallery[1::2, 0] *= -1
    reference = np.arange(count)
    words = np.tile(unit(np.eye(8, dtype=np.float32)[:1]), (count, 1))
    return Pairs(unit(gallery), reference, reference ^ 1, words, np.zeros_like(words))


def first(weights: Weights, of: Pairs) -> float:
    found = weights.compose(of.gallery[of.reference], of.new, of.old)
    return float((ranks(found, of.gallery, of.reference, of.target) == 0).mean())


PLAN = Plan(steps=80, batch=40, every=20, hidden=16, rate=1e-2, alone=0.0)


def test_the_graph_computes_what_was_trained_and_training_helps(tmp_path: Path) -> None:
    seen, others = pairs(), pairs(1)
    start = fit([seen], [others], (0.5, 0.0), Plan(steps=0))
    found = fit([seen], [others], (0.5, 0.0), PLAN)
    assert first(found, pairs(2)) > first(start, pairs(2)) + 0.2
    composer = saved(tmp_path, found, dim=8)
    given = seen.gallery[seen.reference], seen.new, seen.old
    assert composer.compose(*given[:2]) == pytest.approx(unit(found.compose(*given)), abs=2e-3)  # half precision


def test_a_run_that_was_cut_off_ends_as_one_without_a_break(tmp_path: Path) -> None:
    seen, others, file = pairs(), pairs(1), tmp_path / "checkpoint.pt"

    class Stopped(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == 50:
            raise Stopped

    with pytest.raises(Stopped):
        fit([seen], [others], (0.5, 0.0), PLAN, file, stop)
    steps: list[int] = []
    again = fit([seen], [others], (0.5, 0.0), PLAN, file, lambda done, _: steps.append(done))
    assert steps[0] == 41  # the last checkpoint was at 40
    whole = fit([seen], [others], (0.5, 0.0), PLAN)
    assert np.abs(again.map - whole.map).max() < 1e-5
    file.write_bytes(b"of another version")
    fit([pairs(3)], [others], (0.5, 0.0), PLAN, file, lambda done, _: steps.append(done))
    assert steps[-PLAN.steps] == 1  # other data: not that checkpoint


def test_other_right_answers_are_no_wrong_ones() -> None:
    """Two targets of one change: training on one does not push the other away."""
    seen = pairs()
    twice = Pairs(
        np.concatenate([seen.gallery, seen.gallery + 1e-3]), np.concatenate([seen.reference] * 2),
        np.concatenate([seen.target, seen.target + 60]), *(np.concatenate([each] * 2) for each in (seen.new, seen.old)),
    )  # fmt: skip
    from pgembed.composers.fitting import _hidden, _right_answers

    answers = _right_answers(twice)
    assert answers[0] == [1, 61]
    few = twice.chosen(np.array([0, 5]))
    hidden = _hidden(few, [answers[0], answers[5]], np.arange(120), few.target)
    assert np.flatnonzero(hidden[0]).tolist() == [0, 61]


def saved(folder: Path, weights: Weights, dim: int = DIM, space: str = "s") -> ComposerEncoder:
    folder.mkdir(exist_ok=True)
    (folder / "composer.onnx").write_bytes(to_onnx(weights, dim))
    ComposerManifest(dim, space, "builtin:lite", "f").write(folder)
    return ComposerEncoder.load(str(folder), {})


def linear(dim: int = DIM) -> Weights:
    one = np.eye(dim, dtype=np.float32)
    return Weights(np.concatenate([one, 0.5 * one, -0.5 * one]))


def test_what_it_is_given_must_fit(tmp_path: Path) -> None:
    composer, one = saved(tmp_path, linear()), np.eye(DIM)
    assert composer.compose(2 * one[:1], one[1:2], one[2:3]) == pytest.approx(unit(np.array([[1, 0.5, -0.5, 0]])))
    with pytest.raises(EncoderMismatch, match=r"takes arrays of \(n, 4\), not \(1, 5\)"):
        composer.compose(np.ones((1, 5)), np.ones((1, 5)))
    with pytest.raises(InvalidQuery, match="zero or not finite"):
        composer.compose(one[:1], np.zeros((1, DIM)))
    with pytest.raises(EncoderError, match="gives no direction"):
        saved(tmp_path, Weights(np.zeros((3 * DIM, DIM), dtype=np.float32))).compose(one[:1], one[1:2])
    with pytest.raises(UnsupportedModality, match="is a composer"):
        composer.encode_text(["red"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), r"no manifest\.json in .*pgembed train composer"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "no manifest of a composer"),
        (lambda folder: edit(folder, dim="4"), "'dim' is '4'"),
        (lambda folder: edit(folder, more=1), "'more' is 1"),
        (lambda folder: edit(folder, dim=5), r"its manifest says reference, new, old of 5 numbers"),
        (lambda folder: (folder / "composer.onnx").write_bytes(b"no graph"), "could not load the graph"),
        (lambda folder: (folder / "composer.onnx").unlink(), r"no composer\.onnx"),
    ],
)
def test_what_is_wrong_in_a_folder_is_told(change: Any, message: str, tmp_path: Path) -> None:  # noqa: ANN401
    saved(tmp_path, linear())
    change(tmp_path)
    with pytest.raises(EncoderError, match=message):
        ComposerEncoder.load(str(tmp_path), {})


def edit(folder: Path, **facts: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | facts))


def test_a_changed_weight_changes_the_fingerprint(tmp_path: Path) -> None:
    before = saved(tmp_path, linear()).fingerprint
    other = Weights(linear().map * 2)
    assert saved(tmp_path, other).fingerprint.split()[1] != before.split()[1]
    assert saved(tmp_path, linear(), space="other").fingerprint != before


def test_a_folder_is_loaded_only_below_the_model_directory(tmp_path: Path) -> None:
    saved(tmp_path / "here", linear())
    policy = EncoderPolicy(model_dirs=(tmp_path / "models",))
    with pytest.raises(EncoderError, match="outside of the model directory"):
        load_encoder(f"composer:{tmp_path / 'here'}", policy=policy)
    assert load_encoder(f"composer:{tmp_path / 'here'}", policy=EncoderPolicy(model_dirs=(tmp_path,))).dim == DIM
    assert ComposerEncoder.needs("lite", {}) == Needs()


def test_the_shipped_one_is_for_the_shipped_encoder_and_small() -> None:
    """Whoever changes the weights of builtin:lite trains it again: python -m training.composer."""
    composer, encoder = ComposerEncoder.load("lite", {}), LiteEncoder.load("lite", {})
    assert (composer.space, composer.manifest.fingerprint) == (encoder.space, encoder.fingerprint)
    assert sum(len(file.read_bytes()) for file in shipped().iterdir()) < 2**20
    measured = composer.manifest.measured
    assert measured["composer"]["R@1"] > max(way["R@1"] for way in measured["untrained"].values())
    with pytest.raises(EncoderError, match="has no setting 'threads'"):
        ComposerEncoder.load("lite", {"threads": 1})


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        ("reference,new", [], "has no column 'target'"),
        (
            "reference,target,new",
            [["gone.png", "gone.png", "a"]] * 3,
            "0 triplets that can be used(.|\n)*line 2: the ref",
        ),
    ],
)
def test_a_file_that_is_of_no_use(header: str, lines: list[list[str]], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        train_composer(written(tmp_path, lines, header), load_encoder("builtin:lite"), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InvalidInput, match="is there already"):
        train_composer(tmp_path / "triplets.csv", load_encoder("builtin:lite"), tmp_path / "full")


def test_without_torch_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"the extra 'composer'.*pip install"):
        train_composer(tmp_path / "a.csv", load_encoder("builtin:lite"), tmp_path / "out")
    with pytest.raises(SystemExit, match="1"):
        main(["train", "composer", str(tmp_path / "a.csv"), str(tmp_path / "out"), "--encoder", "builtin:lite"])
    assert "needs the extra 'composer'" in capsys.readouterr().err
