"""Test ``predict.py``: the files it reads, its output and its errors."""

import contextlib
import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Call
from pictures import MNIST, USPS, WEIGHTS, drawn, files, prepared, row_of
from PIL import Image

from DJSW import predict
from DJSW.networks import build_model
from DJSW.pipelines import DATASETS, PEOPLE, open_split
from utils import handwriting
from utils.handwriting import UnreadableImage, check_prepared, read_image
from utils.records.checkpoint import load_checkpoint, write_checkpoint
from utils.records.files import ROOT


@pytest.fixture
def call(tmp_path, capsys):
    (tmp_path / "out").mkdir()

    def call(*arguments, username="sigurd"):
        flags = ["--load_checkpoint", WEIGHTS[username], "--output_dir", tmp_path / "out"]
        status = predict.main(list(map(str, [*flags, *arguments])))
        return status, *capsys.readouterr()

    return Call(call, tmp_path / "out")


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_several_networks_predict_by_their_mean(call, tmp_path):
    folder, weights = tmp_path / "in", WEIGHTS["sigurd"]
    folder.mkdir()
    files(folder)
    other = tmp_path / "other.pt"
    state = {name: 0.9 * each for name, each in load_checkpoint(ROOT / weights).weights.items()}
    torch.save(state, other)
    found = []
    for name, given in (("a", [weights]), ("b", [other]), ("both", [weights, other])):
        status, out, _ = call(folder, "--exp_name", name, "--load_checkpoint", *given)
        assert status == 0
        rows = table(call.out / f"{name}_predicted.csv")
        found.append(np.array([[float(row[f"p_{k}"]) for k in range(4, 10)] for row in rows]))
    assert "network     2 x SMLP 784-77-77-77-77-6" in out
    assert found[2] == pytest.approx((found[0] + found[1]) / 2, abs=1e-5)
    status, _, err = call(folder, "--load_checkpoint", weights, WEIGHTS["dennis"])
    assert status == 2 and "distinguishes the digits" in err and err.count("\n") == 1


def test_unreadable_files_in_a_folder_are_skipped(call, tmp_path):
    folder = tmp_path / "my digits"
    (folder / "below").mkdir(parents=True)
    files(folder)
    (folder / "gray.png").rename(folder / "below" / "gray.png")
    (folder / ".hidden").write_text("x")
    (folder / "notes.txt").write_text("x")
    (folder / "text.png").write_text("hello")
    (folder / "cut.jpg").write_bytes((folder / "large.jpg").read_bytes()[:2000])
    (folder / "nothing.png").touch()
    (folder / "gone.png").symlink_to(tmp_path / "gone.png")
    frames = [Image.new("L", (90, 90), shade) for shade in (0, 99)]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(folder / "nan.tif")
    Image.new("L", (90, 90), 200).save(folder / "blank.png")
    status, out, err = call(folder, "--exp_name", "mine")
    assert status == 2
    skipped = [line for line in err.splitlines() if line.startswith("skipped: ")]
    named = {Path(line.split(": ")[1]).name for line in skipped}
    assert named == {
        "notes.txt",
        "text.png",
        "cut.jpg",
        "nothing.png",
        "blank.png",
        "gone.png",
        "film.gif",
        "nan.tif",
    }
    assert err.splitlines()[-1] == "error: 8 of 23 files were skipped (see above)"
    assert len(err.splitlines()) == 9
    assert "gone.png: No such file or directory" in err
    assert "film.gif: several images in one file (give one image per file)" in err
    rows = table(call.out / "mine_predicted.csv")
    assert [row["predicted"] for row in rows] == ["4"] * 15
    assert list(rows[0])[7:] == [f"p_{digit}" for digit in range(4, 10)]
    for row in rows:
        p = {int(name[2:]): float(row[name]) for name in row if name.startswith("p_")}
        assert int(row["predicted"]) == max(p, key=lambda digit: p[digit]) and sum(
            p.values()
        ) == pytest.approx(1)
        line = next(line for line in out.splitlines() if line.startswith(Path(row["image"]).name))
        best = sorted(p, key=lambda digit: p[digit], reverse=True)[:3]
        assert re.findall(r"   (\d) ", line) == list(map(str, best))
        assert ("not sure" in line) == (max(p.values()) < predict.UNSURE)
    with Image.open(call.out / "mine_seen.png") as seen:
        assert seen.size[0] > 800
    status, _, err = call(folder, "--exp_name", "mine")
    assert status == 2 and err.startswith("error: ")
    assert "mine_predicted.csv exists already (give another --exp_name)" in err


def test_sheets_show_the_network_s_input(call, tmp_path, monkeypatch):
    """Check that the sheets show the predicted pixels with their predictions."""
    shown = []
    monkeypatch.setattr(
        "utils.report.figures.save_predictions", lambda path, *rest: shown.append((path, *rest))
    )
    for digit in (5, 7):
        Image.fromarray((255 * drawn(digit)).astype(np.uint8)).save(tmp_path / f"{digit}.png")
    paths = [tmp_path / "7.png", tmp_path / "5.png"]
    monkeypatch.setattr(predict, "SHEET", 1)
    assert call(*paths, "--exp_name", "two")[0] == 0
    assert [path.name for path, *_ in shown] == ["two_seen_1.png", "two_seen_2.png"]
    model, _ = build_model("sigurd", "mnist_4_9", load_checkpoint(ROOT / WEIGHTS["sigurd"]))
    for (_, pairs, captions), row, path in zip(
        shown, table(call.out / "two_predicted.csv"), paths, strict=True
    ):
        ((original, image),) = pairs
        assert np.array_equal(image, prepared(read_image(path), MNIST))
        assert original.min() == 0 and 0.2 < original.mean() < 0.9  # the digit fills the crop
        with torch.inference_mode():
            p = model(torch.from_numpy(image)[None, None]).softmax(1)[0].tolist()
        assert [float(row[f"p_{k + 4}"]) for k in range(6)] == pytest.approx(p, rel=1e-4, abs=1e-12)
        assert captions[0].startswith(f"{path.name}\n\n{row['predicted']}   ")


def test_a_row_is_read_as_a_row(call, tmp_path):
    """Each of its digits has a line in the table, with its place, and in the output."""
    row, one = row_of("98765"), drawn(7)
    for name, gray in (("row.png", row), ("one.png", one)):
        Image.fromarray((255 * gray).astype(np.uint8)).save(tmp_path / name)
    status, out, err = call(tmp_path / "row.png", tmp_path / "one.png", "--exp_name", "rows")
    assert (status, err) == (0, "")
    rows = table(call.out / "rows_predicted.csv")
    assert [Path(each["image"]).name for each in rows] == 5 * ["row.png"] + ["one.png"]
    assert [each["number"] for each in rows] == [*"12345", "1"]
    assert "".join(each["predicted"] for each in rows[:5]) == "98765"
    places = [float(each["left"]) for each in rows[:5]]
    assert places == sorted(places) and places[0] > 0.1 and float(rows[4]["right"]) < 0.9
    assert "row.png 2/5   8 " in out and "one.png       7 " in out
    read = next(line for line in out.splitlines() if line.startswith("row "))
    assert read.replace("?", "") == "row         row.png: 9 8 7 6 5"
    assert "predicted   1 x 5, 1 x 6, 2 x 7, 1 x 8, 1 x 9; " in out and " of 6 not sure" in out


def test_odd_names(call, tmp_path):
    """Accept names with TeX, a line break, and bytes that are not UTF-8."""
    folder = tmp_path / "odd"
    folder.mkdir()
    names = [b"a$\\frac$b.png", b"new\nline.png", b"bad\xff.png", "四 4.png".encode(), 200 * b"x"]
    Image.fromarray((255 * drawn(5)).astype(np.uint8)).save(tmp_path / "5.png")
    for encoded in names:
        os.link(tmp_path / "5.png", os.path.join(os.fsencode(folder), encoded))
    status, out, err = call(folder, "--exp_name", "odd")
    assert (status, err) == (0, "")
    shown = [Path(row["image"]).name for row in table(call.out / "odd_predicted.csv")]
    expected = {"a$\\frac$b.png", "new\\nline.png", "bad\\udcff.png", "四 4.png", 200 * "x"}
    assert set(shown) == expected
    for name in expected:
        assert sum(line.startswith(f"{name} ") for line in out.splitlines()) == 1


def test_raw_images_are_not_converted(call, tmp_path, processed):
    data = open_split("mnist_4_9", train=False)
    for number in range(5):
        Image.fromarray(data.images[number]).save(tmp_path / f"{number}.png")
    drawn_path = tmp_path / "large.png"
    Image.fromarray((255 * drawn(4)).astype(np.uint8)).save(drawn_path)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    assert call(*paths, "--raw", "--exp_name", "raw")[0] == 0
    model, _ = build_model("sigurd", "mnist_4_9", load_checkpoint(ROOT / WEIGHTS["sigurd"]))
    with torch.inference_mode():
        p = model(data[:5][0]).softmax(1)
    for row, expected in zip(table(call.out / "raw_predicted.csv"), p.tolist(), strict=True):
        found = [float(row[f"p_{digit}"]) for digit in range(4, 10)]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-12)
    status, _, err = call(drawn_path, "--raw")
    assert status == 2
    assert "400 x 400 pixels: the dataset has 28 x 28 (leave out --raw to convert it)" in err
    assert "none of the 1 files is a readable image (see above)" in err
    with pytest.raises(UnreadableImage):
        check_prepared(np.zeros((16, 16), np.float32), MNIST)
    with pytest.raises(UnreadableImage, match="black on white: the dataset is white on black"):
        check_prepared(1 - prepared(drawn(4), MNIST), MNIST)
    check_prepared(prepared(drawn(0, "DejaVuSans-Bold"), USPS), USPS)
    Image.fromarray(data.images[0]).convert("RGB").save(tmp_path / "gray.jpg")
    Image.new("RGB", (28, 28), "navy").save(tmp_path / "navy.png")
    status, out, err = call(tmp_path / "gray.jpg", tmp_path / "navy.png", "--raw")
    assert status == 2 and "navy.png: in color: the dataset is gray (convert it)" in err
    assert "1 of 2 files were skipped" in err and "\ngray.jpg " in out


def test_images_of_classes_with_names(tmp_path, processed, capsys):
    """A checkpoint of clothes takes images in its form only, and answers with names."""
    model, arguments = build_model("sigurd", "fashion")
    names = [*DATASETS["fashion"].classes.values()]
    metadata = {
        **{"model": {"name": "SMLP", "arguments": arguments}, "dataset": {"name": "fashion"}},
        **{"classes": [*range(10)], "class_names": names},
    }
    write_checkpoint(tmp_path / "c.pt", model.state_dict(), metadata)
    images = [*open_split("fashion", train=False).images[:2], np.full((28, 28), 250, np.uint8)]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "small.png")
    given = [*map(str, tmp_path.glob("?.png")), f"--output_dir={tmp_path}", "--exp_name=e"]
    given += ["--load_checkpoint", str(tmp_path / "c.pt")]
    assert predict.main(given) == 2
    assert "networks of handwritten digits only (give images of its" in capsys.readouterr().err
    assert predict.main([*given, "--raw"]) == 0, "a bright image is no digit on paper"
    out, rows = capsys.readouterr().out, table(tmp_path / "e_predicted.csv")
    assert "classes     T-shirt/top, trouser" in out
    assert len(rows) == 3 and all(row["predicted"] in names for row in rows)
    assert "p_ankle boot" in rows[0]
    columns = {line.index("%") for line in out.splitlines() if line[1:5] == ".png"}
    assert len(columns) == 1, "percentages are aligned"
    assert predict.main([str(tmp_path / "small.png"), *given[-4:], "--raw", "--exp_name=f"]) == 2
    assert "9 x 9 pixels: the dataset has 28 x 28 (resize it)" in capsys.readouterr().err


def test_errors_are_one_sentence(call, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "c.pt").write_text("hello")
    Image.fromarray((255 * drawn(4)).astype(np.uint8)).save(tmp_path / "4.png")
    for arguments, sentence in (
        ((tmp_path / "none.png",), "is no existing file or folder"),
        ((tmp_path / "empty",), "empty holds no files"),
    ):
        status, out, err = call(*arguments)
        assert status == 2 and sentence in err and err.count("\n") == 1 and out == ""
    for weights, sentence in (("c.pt", "c.pt is cut off, damaged or no"), ("none.pt", "none.pt")):
        flags = ("--load_checkpoint", tmp_path / weights, "--output_dir", call.out)
        assert predict.main(list(map(str, (tmp_path / "4.png", *flags)))) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and sentence in err and err.count("\n") == 1
    assert not list(call.out.iterdir())
    assert call(tmp_path / "4.png", "--check")[0] == 0
    assert not list(call.out.iterdir())


def test_arguments_that_the_network_cannot_use(call, tmp_path):
    """A checkpoint whose digest is right, with an argument that no constructor refuses."""
    checkpoint = load_checkpoint(ROOT / WEIGHTS["waly"])
    metadata: dict[str, Any] = {**checkpoint.metadata}
    arguments = {**metadata["model"]["arguments"], "negative_slope": "x"}
    metadata["model"] = {"name": "WMLP", "arguments": arguments}
    write_checkpoint(tmp_path / "c.pt", checkpoint.weights, metadata)
    Image.fromarray((255 * drawn(4)).astype(np.uint8)).save(tmp_path / "4.png")
    status, _, err = call(tmp_path / "4.png", "--load_checkpoint", tmp_path / "c.pt")
    assert status == 2 and "WMLP fails on images (2, 1, 16, 16) of usps_0_6: TypeError" in err
    assert err.count("\n") == 1 and not list(call.out.iterdir())


@pytest.mark.parametrize("username", PEOPLE)
def test_bare_weights_are_recognized(username, tmp_path, capsys):
    model, _ = build_model(username, "usps_0_6")
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    Image.fromarray((255 * drawn(4)).astype(np.uint8)).save(tmp_path / "4.png")
    flags = ["--load_checkpoint", tmp_path / "bare.pt", "--output_dir", tmp_path]
    assert predict.main(list(map(str, [tmp_path / "4.png", *flags]))) == 0
    out = capsys.readouterr().out
    assert f"network     {PEOPLE[username].model_name} " in out
    assert "digits      0, 1, 2, 3, 4, 5 and 6; a picture of anything else" in out
    assert len(list(tmp_path.glob("prediction_2*_predicted.csv"))) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_pipes_in_a_folder_are_skipped(call, tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    Image.fromarray((255 * drawn(4)).astype(np.uint8)).save(folder / "4.png")
    os.mkfifo(folder / "pipe.png")
    status, _, err = call(folder)
    assert status == 2 and len(table(next(call.out.glob("*.csv")))) == 1
    assert "pipe.png: a pipe or a device (give a file)" in err


def test_large_pictures_are_not_decoded(tmp_path, monkeypatch):
    """The limits are those of phones; memory and time follow from them."""
    path = tmp_path / "large.png"
    Image.new("1", (10_000, 5001)).save(path)
    with pytest.raises(UnreadableImage, match="10000 x 5001 pixels are more than 50 megapixels"):
        read_image(path)
    Image.new("L", (2000, 2000)).save(tmp_path / "large.jpg")
    monkeypatch.setattr(handwriting, "JPEG_MEGAPIXELS", 3)
    with pytest.raises(UnreadableImage, match="2000 x 2000 pixels are more than 3 megapixels"):
        read_image(tmp_path / "large.jpg")


def test_a_picture_that_takes_too_long(tmp_path, monkeypatch):
    """A JPEG may repeat its scans without end."""
    Image.new("L", (90, 90)).save(tmp_path / "slow.jpg")
    monkeypatch.setattr(handwriting, "SECONDS", -1)
    with pytest.raises(UnreadableImage, match="s to decode"):
        read_image(tmp_path / "slow.jpg")


def test_libraries_write_nothing_to_the_terminal(tmp_path, capfd):
    """Neither libtiff's own lines nor formats whose decoders start other programs."""
    path = tmp_path / "cut.tif"
    Image.fromarray((255 * drawn(4)).astype(np.uint8)).convert("1").save(path, compression="group4")
    content = bytearray(path.read_bytes())
    content[100:130] = 30 * b"\x55"
    path.write_bytes(content)
    (tmp_path / "loop.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n")
    with pytest.raises(UnreadableImage, match="not an image, or of an unknown format"):
        read_image(tmp_path / "loop.eps")
    with contextlib.suppress(UnreadableImage):
        read_image(path)
    assert capfd.readouterr() == ("", "")


def test_logits_that_are_not_finite_are_refused(tmp_path, capsys):
    """As in an evaluation."""
    model, _ = build_model("waly", "usps_0_6")
    weights = {name: 1e30 * tensor for name, tensor in model.state_dict().items()}
    torch.save(weights, tmp_path / "wild.pt")
    Image.fromarray((255 * drawn(4)).astype(np.uint8)).save(tmp_path / "4.png")
    flags = ["--load_checkpoint", tmp_path / "wild.pt", "--output_dir", tmp_path]
    assert predict.main(list(map(str, [tmp_path / "4.png", *flags]))) == 2
    assert "wild.pt gives logits that are not finite: its weights" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.csv"))


def test_heavy_modules_are_imported_lazily():
    """``--help`` needs none of them."""
    code = (
        "import sys, json; import DJSW.compare, DJSW.predict; print(json.dumps(list(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"torch", "sklearn", "matplotlib", "PIL", "scipy"} & set(ran.stdout.split())
