"""What recipes are made of, each against something that was not written here."""

import json
import math
import shutil
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from DJSW import main as djsw
from DJSW import recipes, reproduce
from DJSW.pipelines import DATASETS, build_model
from DJSW.recipes import RECIPES, Deformation, Recipe
from utils.adam import Adam
from utils.checkpoint import load_checkpoint, read_plain, weights_sha256
from utils.deformations import Deformer
from utils.failures import UsageError
from utils.gradients import AutogradGradients, StackGradients
from utils.schedules import one_cycle
from utils.signals import stop_request

CPU = torch.device("cpu")
STILL = {"rotation": 0, "scale": 0, "shear": 0, "shift": 0, "elastic": 0, "nodes": 4}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("steps", [10, 100, 992])
def test_one_cycle_is_torchs(steps):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        assert 3e-3 * one_cycle(step, steps) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_one_cycle_of_a_single_step():
    assert 0 < one_cycle(0, 1) <= 1 and 0 < one_cycle(1, 2) <= 1


def test_weight_decay_is_torchs_adamw():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    adam = Adam(ours, lr=0.01, weight_decay=0.1)
    reference = torch.optim.AdamW(
        theirs.parameters(), lr=0.01, weight_decay=0.1, foreach=False, fused=False
    )
    for step in range(20):
        x = torch.randn(8, 5, generator=generator(step))
        for model in (ours, theirs):
            model.zero_grad(set_to_none=False)
            model(x).square().sum().backward()
        adam.step()
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-7)


def test_averaging_is_torchs_moving_average():
    """After the first steps, in which less is kept: (1 + step) / (10 + step)."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    adam = Adam(model, lr=0.05, averaging=0.9)
    mean = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
    for step in range(1, 121):
        for parameter in model.parameters():
            parameter.grad.copy_(torch.randn(parameter.shape, generator=generator(step)))
        adam.step()
        kept = min(0.9, (1 + step) / (10 + step))
        mean = kept * mean + (1 - kept) * adam.values.double()
    before = adam.values.clone()
    with adam.averaged():
        inside = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert torch.allclose(inside.double(), mean, atol=1e-6)
        assert not torch.allclose(inside, before, atol=1e-3)
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), before)
    again = Adam(nn.Linear(4, 2), lr=0.05, averaging=0.9)
    again.load_state_dict(adam.state_dict())
    assert torch.equal(again.average, adam.average)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_is_torchs(smoothing):
    torch.manual_seed(0)
    model, _ = build_model("waly", "usps_0_6")
    images, classes = torch.rand(9, 1, 16, 16), torch.arange(9) % 7
    expected = F.cross_entropy(model(images), classes, label_smoothing=smoothing)
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    Adam(model, lr=0.1)
    for ours in (StackGradients(*model.stack(), smoothing), AutogradGradients(model, smoothing)):
        assert ours(images, classes).item() == pytest.approx(9 * expected.item(), rel=1e-5)
        for parameter, wanted in zip(model.parameters(), gradients, strict=True):
            assert torch.allclose(parameter.grad, wanted, atol=1e-6)


@pytest.fixture
def images():
    """Smooth blobs, so that another interpolation gives nearly the same."""
    noise = np.random.default_rng(0).random((6, 28, 28))
    noise[:, :6] = noise[:, -6:] = noise[:, :, :6] = noise[:, :, -6:] = 0
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 2, 2))).float()[:, None] * 4


def test_deforming_by_nothing_changes_nothing(images):
    deformer = Deformer((28, 28), CPU, **STILL)
    assert torch.allclose(deformer(images, deformer.draw(6, generator())), images, atol=1e-6)


@pytest.mark.parametrize("width", [28, 20])
@pytest.mark.parametrize("what", ["rotation", "scale", "shear", "shift"])
def test_affine_part_is_scipys(images, what, width):
    """The drawn map, in pixels, applied by ``scipy.ndimage.affine_transform``."""
    amount = {"rotation": 20, "scale": 0.2, "shear": 0.3, "shift": 3}[what]
    images = images[..., :width]
    deformer = Deformer((28, width), CPU, **{**STILL, what: amount})
    drawn = deformer.draw(6, generator())
    found = deformer(images, drawn)
    for image, result, coefficients in zip(images, found, drawn.double(), strict=True):
        (xx, xy, x0), (yx, yy, y0) = coefficients[:, :3].tolist()
        xy, yx, x0, y0 = xy * width / 28, yx * 28 / width, x0 * width / 2, y0 * 14
        matrix = np.array([[yy, yx], [xy, xx]])  # SciPy's order is (y, x)
        centre = np.array([27, width - 1]) / 2
        offset = centre - matrix @ centre + np.array([y0, x0])
        expected = ndimage.affine_transform(
            image[0].numpy(), matrix, offset, order=1, mode="grid-constant"
        )
        assert np.abs(result[0].numpy() - expected).max() < 1e-4
        moved = np.array([[xx, xy], [yx, yy]])
        if what == "rotation":
            assert np.allclose(moved @ moved.T, np.eye(2), atol=1e-6)
            assert abs(math.degrees(math.atan2(yx, xx))) <= 20
        if what == "scale":
            assert 0.8 <= xx <= 1.2 and 0.8 <= yy <= 1.2 and xy == yx == 0
        if what == "shear":
            assert abs(xy) <= 0.3 + 1e-6 and (xx, yx, yy) == (1, 0, 1)
        if what == "shift":
            assert max(abs(x0), abs(y0)) <= 3 + 1e-6 and np.array_equal(moved, np.eye(2))


@pytest.mark.parametrize("size", [(28, 28), (16, 16), (20, 30)])
def test_elastic_part_moves_pixels_by_so_much_and_smoothly(size):
    deformer = Deformer(size, CPU, **{**STILL, "elastic": 1.5, "nodes": 5})
    drawn = deformer.draw(4000, generator())[:, :, 3:] @ deformer.fields[3:]
    in_pixels = (drawn / deformer.pixel[:, None]).view(4000, 2, *size)
    spread = in_pixels.std(0)
    assert spread.min() > 1.4 and spread.max() < 1.6  # everywhere, in both directions
    steps = in_pixels.diff(dim=3).std()
    assert steps < 1.5 * 2 / (size[1] / 4)  # a fraction of what neighbours at random would differ


def test_deformations_are_drawn_anew_and_again(images):
    deformer = Deformer((28, 28), CPU, **asdict(Deformation(9, 0.07, 0.1, 1, 0.8, 6)))
    before = images.clone()
    first, same = (deformer(images, deformer.draw(6, generator(1))) for _ in range(2))
    other = deformer(images, deformer.draw(6, generator(2)))
    assert torch.equal(first, same) and not torch.allclose(first, other, atol=0.01)
    assert first.shape == images.shape and first.dtype == images.dtype
    assert 0 <= first.min() and first.max() <= images.max()
    assert torch.equal(images, before)


def parsed(*words):
    flags = ("--username=waly", "--exp_name=e", "--output_dir=.", "--train")
    return djsw.parser().parse_args([*flags, *words])


def test_flags_change_the_recipe(monkeypatch):
    standard = recipes.settings(parsed(), "usps_0_6")
    assert (standard.num_epochs, standard.batch_size, standard.lr) == (10, 64, 1e-3)
    assert (standard.recipe, standard.seed, standard.patience) == ("standard", 42, None)
    assert (standard.schedule, standard.deformation) == ("constant", None)
    assert (standard.weight_decay, standard.label_smoothing, standard.averaging) == (0, 0, 0)
    tuned = replace(RECIPES["standard"]["usps_0_6"], num_epochs=7, lr=0.1, weight_decay=0.2)
    monkeypatch.setitem(RECIPES, "tuned", {"usps_0_6": tuned})
    found = recipes.settings(parsed("--recipe=tuned", "--lr=0.5"), "usps_0_6")
    assert (found.num_epochs, found.lr, found.weight_decay) == (7, 0.5, 0.2)
    with pytest.raises(UsageError, match="no recipe 'tuned' for mnist_4_9; give --recipe standard"):
        recipes.settings(parsed("--recipe=tuned"), "mnist_4_9")


def test_every_dataset_has_the_standard_recipe():
    assert RECIPES["standard"].keys() == DATASETS.keys()
    assert RECIPES["standard"].keys() >= RECIPES["tuned"].keys() > set()


def test_a_tuned_training_resumes_to_the_same_bits(tmp_path, processed, monkeypatch):
    """All ingredients at once: stopped within the second epoch, and never stopped."""
    everything = Recipe(
        num_epochs=3,
        batch_size=16,
        lr=3e-3,
        schedule="one_cycle",
        weight_decay=0.05,
        label_smoothing=0.1,
        averaging=0.9,
        deformation=Deformation(9, 0.07, 0.1, 1, 0.8, 5),
    )
    monkeypatch.setitem(RECIPES, "tuned", {"usps_0_6": everything})
    monkeypatch.setattr(sys, "argv", ["main.py"])
    flags = ["--username=waly", f"--output_dir={tmp_path}", "--train", "--recipe=tuned"]
    assert djsw.main([*flags, "--exp_name=whole"]) == 0
    steps = []

    def stop(self):
        steps.append(1)
        if len(steps) == 9:  # of 7 an epoch
            stop_request.signal = "SIGUSR1"
        return step(self)

    step = Adam.step
    with monkeypatch.context() as patch:
        patch.setattr(Adam, "step", stop)
        assert djsw.main([*flags, "--exp_name=parts"]) == 75
    stop_request.signal = None
    assert djsw.main([*flags, "--exp_name=parts", "--resume"]) == 0
    histories, weights = [], []
    for name in ("whole", "parts"):
        rows = (tmp_path / f"{name}_history.csv").read_text().splitlines()
        histories.append([row.split(",")[:5] for row in rows])
        weights.append(load_checkpoint(tmp_path / f"{name}_checkpoint_epoch_3.pt").weights)
    assert histories[0] == histories[1] and len(histories[0]) == 4
    assert weights_sha256(weights[0]) == weights_sha256(weights[1])
    rates = [float(row[4]) for row in histories[0][1:]]
    assert rates[-1] < 1e-6 < rates[0]  # the schedule's end
    state = read_plain(tmp_path / "parts_resume.pt")
    model, _ = build_model("waly", "usps_0_6")
    model.load_state_dict(state["weights"])
    assert weights_sha256(model.state_dict()) != weights_sha256(weights[0])  # the mean was saved
    record = json.loads((tmp_path / "parts_run.json").read_text())
    assert record["settings"]["deformation"]["elastic"] == 0.8
    assert record["settings"]["recipe"] == "tuned"


def test_a_schedule_s_length_is_fixed(tmp_path, processed, monkeypatch, capsys):
    """More epochs would have had other learning rates from the first step on."""
    recipe = Recipe(num_epochs=2, batch_size=32, schedule="one_cycle")
    monkeypatch.setitem(RECIPES, "tuned", {"usps_0_6": recipe})
    monkeypatch.setattr(sys, "argv", ["main.py"])
    flags = ["--username=waly", f"--output_dir={tmp_path}", "--train", "--exp_name=e"]
    assert djsw.main([*flags, "--recipe=tuned"]) == 0
    capsys.readouterr()
    assert djsw.main([*flags, "--recipe=tuned", "--num_epochs=3", "--resume"]) == 2
    assert "was trained with settings.num_epochs 2, not 3" in capsys.readouterr().err


def test_reproduction_of_a_tuned_training(tmp_path, processed, monkeypatch, capsys):
    recipe = Recipe(num_epochs=2, batch_size=32, averaging=0.9, schedule="one_cycle")
    monkeypatch.setitem(RECIPES, "tuned", {"usps_0_6": recipe})
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    flags = ["--username=waly", f"--output_dir={tmp_path}", "--train", "--exp_name=e"]
    assert djsw.main([*flags, "--recipe=tuned", "--device=cpu", "--lr=0.002"]) == 0
    assert reproduce.main([str(tmp_path / "e_run.json")]) == 0
    assert "identical   all" in capsys.readouterr().out
    changed = replace(recipe, weight_decay=0.5)
    monkeypatch.setitem(RECIPES, "tuned", {"usps_0_6": changed})
    shutil.rmtree(tmp_path / "reports")
    assert reproduce.main([str(tmp_path / "e_run.json")]) == 1
    assert "recipe      weight_decay was 0.0, is 0.5" in capsys.readouterr().out
