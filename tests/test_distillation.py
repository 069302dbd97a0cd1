"""Targets and gradients of distillation against float64, and runs that learn from others."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Call, write_datasets
from small_runs import outcome
from torch import nn
from torch.nn import functional as F

from DJSW import main as djsw
from DJSW import reproduce
from DJSW.networks import build_model
from DJSW.pipelines import PEOPLE
from utils.engine.backward import AutogradGradients, gradients_of
from utils.engine.distillation import Teachers
from utils.engine.optimizer import Adam

TRAIN = ("--username", "waly", "--train", "--batch_size", 16, "--num_epochs", 3)


def test_targets_agree_with_a_loop_in_float64():
    torch.manual_seed(0)
    networks: Any = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(3)]
    images, classes = torch.rand(5, 1, 2, 2), torch.tensor([0, 2, 1, 1, 0])
    found = Teachers(networks, 0.7)(images, classes)
    for image, number, target in zip(images.flatten(1).double(), classes, found, strict=True):
        expected = np.zeros(3)
        for _, linear in networks:
            z = (linear.weight.double() @ image + linear.bias.double()).detach().numpy()
            expected += np.exp(z) / np.exp(z).sum() / 3
        expected = 0.7 * expected + 0.3 * np.eye(3)[number]
        assert target.numpy() == pytest.approx(expected, abs=1e-6)
    assert not found.requires_grad and found.sum(1).numpy() == pytest.approx(np.ones(5))


@pytest.mark.parametrize("username", PEOPLE)
def test_gradients_of_probabilities_equal_float64_autograd(username):
    torch.manual_seed(0)
    model, _ = build_model(username, PEOPLE[username].dataset)
    inputs, classes = (next(iter(model.parameters())).shape[1], [*model.parameters()][-1].shape[0])
    images, targets = torch.rand(9, 1, 1, inputs), torch.rand(9, classes).softmax(1)
    double = build_model(username, PEOPLE[username].dataset)[0].double()
    double.load_state_dict(model.state_dict())
    expected = -(double(images.double()).log_softmax(1) * targets).sum(1).mean()
    expected.backward()
    Adam(model, lr=0.1)
    other, _ = build_model(username, PEOPLE[username].dataset)
    other.load_state_dict(model.state_dict())
    for parameter in other.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ours = (model, gradients_of(model)), (other, AutogradGradients(other))
    for network, gradients in ours:
        loss = gradients(images, targets, 9)
        assert loss.item() / 9 == pytest.approx(expected.item(), rel=1e-5)
        for mine, reference in zip(network.parameters(), double.parameters(), strict=True):
            assert mine.grad is not None
            torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-7)


@pytest.fixture
def run(processed, tmp_path, capsys):
    """Call ``main.py`` in ``out``; return the exit status and stderr."""
    (tmp_path / "out").mkdir()

    def call(name, *flags):
        given = (*TRAIN, "--exp_name", name, "--output_dir", tmp_path / "out", *flags)
        status = djsw.main([*map(str, given)])
        return status, capsys.readouterr().err

    return Call(call, tmp_path / "out")


def checkpoint(run, name):
    return run.out / f"{name}_checkpoint_best.pt"


def test_run_with_teachers(run, processed, capsys):
    for seed in (1, 2):
        assert run(f"t_{seed}", "--seed", seed)[0] == 0
    teachers = ("--teachers", checkpoint(run, "t_1"), checkpoint(run, "t_2"))
    taught = (*teachers, "--teacher_weight", 0.5, "--augmentation", "weak")
    assert run("e", *taught) == (0, "")
    whole = outcome(run.out)
    record = json.loads((run.out / "e_run.json").read_text())
    assert [each["file"].split("/")[-1] for each in record["teachers"]] == [
        "t_1_checkpoint_best.pt",
        "t_2_checkpoint_best.pt",
    ]
    assert record["settings"]["teacher_weight"] == 0.5
    other = run("e", "--resume", *teachers[:2], *taught[3:])
    assert other[0] == 2 and "was trained with teachers [" in other[1]
    assert run("alone", "--augmentation", "weak")[0] == 0
    assert outcome(run.out)["e_checkpoint_best.pt"] == whole["e_checkpoint_best.pt"]
    histories = [(run.out / f"{name}_history.csv").read_text() for name in ("e", "alone")]
    assert histories[0] != histories[1]
    assert reproduce.main([str(run.out / "e_run.json")]) == 0
    assert "identical   all" in capsys.readouterr().out


def test_cross_entropy_with_true_classes_is_the_limit_without_teachers(run):
    """Half of a target from a teacher that is certain and right is the usual target."""
    logits = torch.tensor([[9e3, 0.0], [0.0, 9e3]])
    target = Teachers([lambda_network(logits)], 0.5)(torch.rand(2, 1, 1, 1), torch.arange(2))
    assert torch.equal(target, torch.eye(2))
    assert F.cross_entropy(logits, target) == F.cross_entropy(logits, torch.arange(2))


def lambda_network(logits):
    class Fixed(nn.Module):
        def forward(self, images):
            return logits

    return Fixed()


def test_wrong_use(run, processed):
    assert run("t")[0] == 0
    teacher = ("--teachers", checkpoint(run, "t"))
    weight = ("--teacher_weight", 0.5)
    for flags in (teacher, weight, ("--recipe", "distilled")):
        status, error = run("e", *flags)
        assert status == 2 and "(docs/recipes.md#distilled)" in error
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("--username", "dennis", *teacher, *weight), "distinguishes the digits"),
        ((*teacher, *weight, "--fold", "1/2"), "it has seen validation images"),
        (("--teachers", run.out / "t_run.json", *weight), "is JSON, no checkpoint"),
        (("--teachers", run.out / "no", *weight), "--teachers"),
    ]
    for flags, expected in cases:
        status, error = run("e", *flags)
        assert status == 2 and expected in error and error.count("\n") == 1
    assert not list(run.out.glob("e_*"))
    for value in ("0", "1.5", "x"):
        with pytest.raises(SystemExit):
            run("e", *teacher, "--teacher_weight", value)


def test_folds_that_share_no_writer(run, processed):
    status, error = run("e", "--fold", "1/4/writers")
    assert status == 1 and "does not say who wrote its digits" in error
    write_datasets(processed, writers=12)
    assert run("e", "--fold", "1/4/writers") == (0, "")
    record = json.loads((run.out / "e_run.json").read_text())
    assert record["settings"]["fold"] == "1/4/writers" and "writers_sha256" in record["dataset"]
