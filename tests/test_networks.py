"""Networks: built, tried on a batch, and the sentences that mistakes of one's own get."""

import re
import sys
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from DJSW import networks
from DJSW.main import main
from DJSW.networks import build_model, identify_checkpoint, model_arguments, start_from
from DJSW.pipelines import DATASETS, PEOPLE, Person, open_split
from models.smlp import SMLP
from utils.errors import UsageError
from utils.records.checkpoint import Checkpoint, load_checkpoint, weights_sha256, write_checkpoint

CNN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, channels=4):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(4),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(channels * 16, classes),
        )
        self.more = [nn.Linear(256, classes)]

    def forward(self, x):
        return self.layers(x)
"""


@pytest.fixture
def anna(tmp_path, processed, capsys, monkeypatch):
    """Call the command as a new person, with her network and the fields of her entry."""
    root = tmp_path / "root"
    (root / "own").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(networks, "ROOT", root)
    monkeypatch.syspath_prepend(root)

    def call(*flags: object, text: str = CNN, entry: Any = None, train: bool = True):
        (root / "own" / "net.py").write_text(text)
        fields = {"model": "own.net:Net", "dataset": "usps_0_6", "output_argument": "classes"}
        monkeypatch.setitem(PEOPLE, "anna", Person(**{**fields, **(entry or {})}))
        for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
            del sys.modules[name]
        argv = ["--username=anna", "--exp_name=e", f"--output_dir={tmp_path / 'out'}"]
        argv += ["--train", "--num_epochs=1"] if train else []
        status = main([*argv, *map(str, flags)])
        return status, *capsys.readouterr()

    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    yield call
    sys.dont_write_bytecode = before
    for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
        del sys.modules[name]


#: Mistake -> (replacement in the network, changed fields of the entry, flags, parts of the error).
MISTAKES: dict[str, tuple[tuple[str, str], dict[str, Any], list[str], list[str]]] = {
    "no such module": (
        ("", ""),
        {"model": "own.nett:Net"},
        [],
        ["DJSW/pipelines.py: anna's network 'own.nett:Net'", "No module named 'own.nett'"],
    ),
    "no such class": (("", ""), {"model": "own.net:Nett"}, [], ["has no attribute 'Nett'"]),
    "no colon": (("", ""), {"model": "own.net.Net"}, [], ["not of the form 'module:Class'"]),
    "no class": (("", ""), {"model": "own.net:nn"}, [], ["is not a torch.nn.Module (class"]),
    "syntax": (
        ("nn.ReLU(),", "nn.ReLU("),
        {},
        [],
        ["own/net.py, line ", "cannot be imported: SyntaxError"],
    ),
    "missing import": (
        ("from torch import nn", "import torchh"),
        {},
        [],
        ["own/net.py, line 2: ", "No module named 'torchh'"],
    ),
    "dataset": (("", ""), {"dataset": "usps"}, [], ["'usps' is not in DATASETS", "usps_0_6"]),
    "argument missing": (
        ("channels=4", "channels"),
        {},
        [],
        ["entry of anna gives classes, which does not fit Net(classes, channels)", "'channels'"],
    ),
    "argument unknown": (
        ("", ""),
        {"input_argument": "inputs"},
        [],
        ["unexpected keyword argument 'inputs'", "correct input_argument"],
    ),
    "constructor": (
        ("channels * 16,", "channels * width,"),
        {},
        [],
        ["own/net.py, line 14: Net cannot be built", "NameError: name 'width' is not defined"],
    ),
    "classes": (
        ("16, classes)", "16, 6)"),
        {},
        [],
        ["returns (2, 6) for images (2, 1, 16, 16) of usps_0_6, expected (2, 7)"],
    ),
    "size of a layer": (
        ("channels * 16,", "channels * 49,"),
        {},
        [],
        ["own/net.py, line 19: Net fails", "mat1 and mat2 shapes cannot be multiplied"],
    ),
    "no flatten": (("            nn.Flatten(),\n", ""), {}, [], ["line 18: Net fails"]),
    "nothing returned": (
        ("return self", "self"),
        {},
        [],
        ["returns a NoneType", "expected (2, 7)"],
    ),
    "nothing to train": (
        ("        self.layers = ", "        self.layers = nn.Flatten()\n        unused = "),
        {},
        [],
        ["no parameters to train; make layers in the constructor"],
    ),
    "argument given twice": (
        ("", ""),
        {"arguments": {"classes": 7}},
        [],
        ["remove classes from arguments"],
    ),
    "path": (("", ""), {"model": "own/net.py:Net"}, [], ["such as 'models.smlp:SMLP'"]),
    "input changed": (
        ("return self.layers(x)", "x -= 0.5; return self.layers(x)"),
        {},
        [],
        ["Net changes its input"],
    ),
    "tuple": (("return self.layers(x)", "return self.layers(x), 0"), {}, [], ["returns a tuple"]),
    "not finite": (("return self.layers(x)", "return self.layers(x) / 0"), {}, [], ["not finite"]),
    "detached": (
        ("return self.layers(x)", "return self.layers(x).detach()"),
        {},
        [],
        ["other weights than its parameters", "without detach()"],
    ),
    "list of layers": (
        ("return self.layers(x)", "return self.layers(x) + self.more[0](x.flatten(1))"),
        {},
        [],
        ["lists of them nn.ModuleList"],
    ),
    "lazy": (("nn.Linear(channels * 16,", "nn.LazyLinear("), {}, [], ["lazy layers"]),
    "exit": (("return self.layers(x)", "raise SystemExit(3)"), {}, [], ["line 19: Net fails"]),
    "one image in the last batch": (
        (
            "            nn.Linear",
            "            nn.BatchNorm1d(channels * 16),\n            nn.Linear",
        ),
        {},
        ["--batch_size=107"],
        ["fails on images (1, 1, 16, 16)", "Expected more than 1 value per channel"],
    ),
    "set unknown": (
        ("", ""),
        {},
        ["--set=widths=8"],
        ["no argument 'widths'; it has classes, channels"],
    ),
    "set by the dataset": (
        ("", ""),
        {},
        ["--set=classes=8"],
        ["classes is 7 by the dataset usps_0_6"],
    ),
    "set to a word": (
        ("", ""),
        {},
        ["--set", "channels=x"],
        ["cannot be built", "'channels': 'x'"],
    ),
}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence_and_leave_nothing(anna, tmp_path, mistake, check):
    (before, after), entry, flags, parts = MISTAKES[mistake]
    assert before in CNN
    text = CNN.replace(before, after) if before else CNN
    status, _, error = anna(*flags, *["--check"] * check, text=text, entry=entry)
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    for part in parts:
        assert part in error
    assert not list((tmp_path / "out").iterdir())


def test_a_cnn_trains_without_input_argument(anna, tmp_path):
    status, out, error = anna("--batch_size=4")
    assert (status, error) == (0, "") and "warning" not in out
    assert "anna trains Net on usps_0_6\nparameters  503\n" in out
    weights = tmp_path / "out" / "e_checkpoint_best.pt"
    assert identify_checkpoint(load_checkpoint(weights))[:2] == ("anna", "usps_0_6")
    status, out, error = anna(f"--load_checkpoint={weights}", train=False)
    assert (status, error) == (0, "") and "note" not in out


def test_trying_a_network_changes_nothing(anna, monkeypatch):
    anna("--check")  # her entry and module
    model, _ = build_model("anna", "usps_0_6")
    before, random = weights_sha256(model.state_dict()), torch.get_rng_state()
    networks.try_model(model, "anna", "usps_0_6", 2, train=True)
    assert weights_sha256(model.state_dict()) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_arguments_of_entry_and_flag(anna, tmp_path):
    status, out, _ = anna("--set=channels=3", entry={"arguments": {"channels": 2}})
    assert status == 0 and f"parameters  {3 * 10 + 6 + 48 * 7 + 7}\n" in out
    weights = tmp_path / "out" / "e_checkpoint_best.pt"
    assert load_checkpoint(weights).metadata["model"]["arguments"] == {"classes": 7, "channels": 3}
    assert model_arguments("anna", "usps_0_6") == {"classes": 7, "channels": 2}
    status, _, error = anna("--resume", "--num_epochs=2")
    assert status == 2 and "with model.arguments.channels 3, not 4" in error
    status, out, error = anna("--resume", "--num_epochs=2", "--set=channels=3")
    assert status == 0 and "resumed" in out, error
    status, out, _ = anna(f"--load_checkpoint={weights}", train=False)
    assert status == 0
    assert "note        channels is 3, by default 4" in out


@pytest.mark.parametrize("function", ["softmax(1)", "sigmoid()", "log_softmax(1)"])
def test_probabilities_are_a_warning(anna, function):
    text = CNN.replace("self.layers(x)", f"self.layers(x).{function}")
    status, out, error = anna("--check", text=text)
    assert (status, error) == (0, "")
    assert ("warning     Net returns values from 0 to 1" in out) == (function != "log_softmax(1)")


@pytest.mark.parametrize("lr", [1e4, 1e-3])
def test_a_first_epoch_worse_than_a_guess_is_a_warning(anna, lr):
    status, out, error = anna(f"--lr={lr}", "--batch_size=4")
    assert (status, error) == (0, "")
    assert ("is above 1.9459, that of a guess; change --lr" in out) == (lr > 1)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("username", PEOPLE)
def test_builds_learns_a_batch_saves_and_loads(username, dataset, processed, tmp_path):
    torch.manual_seed(0)
    model, arguments = build_model(username, dataset)
    images, classes = open_split(dataset, train=True)[:64]
    assert sorted(set(classes.tolist())) == list(range(len(DATASETS[dataset].labels)))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(model(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2

    metadata = {
        "model": {"name": PEOPLE[username].model_name, "arguments": arguments},
        "dataset": {"name": dataset},
        "classes": list(DATASETS[dataset].labels),
        **({"class_names": DATASETS[dataset].names} if DATASETS[dataset].names else {}),
    }
    write_checkpoint(tmp_path / "own.pt", model.state_dict(), metadata)
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    for name in ("own.pt", "bare.pt"):
        again, _ = build_model(username, dataset, load_checkpoint(tmp_path / name))
        assert weights_sha256(again.state_dict()) == weights_sha256(model.state_dict())
        with torch.no_grad():
            assert torch.equal(again.eval()(images), model.eval()(images))


def test_checkpoint_of_another_person_classes_or_version(tmp_path):
    model, arguments = build_model("sigurd", "mnist_4_9")
    metadata: dict[str, Any] = {
        "model": {"name": "SMLP", "arguments": arguments},
        "dataset": {"name": "mnist_4_9"},
        "classes": [4, 5, 6, 7, 8, 9],
    }
    path = tmp_path / "c.pt"
    write_checkpoint(path, model.state_dict(), metadata)
    with pytest.raises(UsageError, match="holds SMLP, waly runs WMLP; give --username sigurd"):
        build_model("waly", "mnist_4_9", load_checkpoint(path))
    with pytest.raises(UsageError, match=r"\[0, 1, 2, 3\]; it fits the dataset mnist_4_9"):
        build_model("sigurd", "mnist_0_3", load_checkpoint(path))
    metadata["model"]["arguments"] = {**arguments, "unheard_of": 3}
    write_checkpoint(path, model.state_dict(), metadata)
    with pytest.raises(UsageError, match="SMLP does not take .*unheard_of"):
        build_model("sigurd", "mnist_4_9", load_checkpoint(path))
    for wrong in (-1, "x", 10.5):
        metadata["model"]["arguments"] = {**arguments, "hidden_size": wrong}
        write_checkpoint(path, model.state_dict(), metadata)
        with pytest.raises(UsageError, match="SMLP does not take"):
            build_model("sigurd", "mnist_4_9", load_checkpoint(path))


def trained(path, username: str, dataset: str, *, bare: bool = False, **metadata: Any):
    """Return a checkpoint of random weights, of a person on a dataset, with changed metadata."""
    torch.manual_seed(1)
    model, arguments = build_model(username, dataset)
    entry, weights = DATASETS[dataset], model.state_dict()
    own: dict[str, Any] = {
        "model": {"name": PEOPLE[username].model_name, "arguments": arguments},
        "dataset": {"name": dataset},
        "classes": [*entry.labels],
        "class_names": entry.names,
    }
    own = {name: value for name, value in {**own, **metadata}.items() if value is not None}
    torch.save(weights, path) if bare else write_checkpoint(path, weights, own)
    return load_checkpoint(path)


def started(username: str, dataset: str, checkpoint: Checkpoint) -> tuple[str, str]:
    """Return the layers with the weights of the file, and those of a new network of that seed."""
    torch.manual_seed(7)
    new = build_model(username, dataset)[0].state_dict()
    torch.manual_seed(7)
    model, _, *layers = start_from(checkpoint, username, dataset, {})
    found = model.state_dict()
    assert found.keys() == new.keys() == checkpoint.weights.keys()
    kept, drawn = dict[str, None](), dict[str, None]()
    for name, tensor in found.items():
        layer = name.split(".parametrizations")[0].removesuffix(f".{name.split('.')[-1]}")
        if torch.equal(tensor, checkpoint.weights[name]):
            kept[layer] = None
        else:
            assert torch.equal(tensor, new[name])
            drawn[layer] = None
    assert layers == [[*kept], [*drawn]] or (layers == [[], []] and not drawn)
    return " ".join(kept), " ".join(drawn)


DIGITS = {"classes": [*range(10)], "class_names": None}
STARTS: dict[str, tuple[str, str, str, dict[str, Any], str, str]] = {
    "fewer": ("sigurd", "mnist_4_9", "mnist_0_3", {}, "layer1 layer2 layer3 layer4", "layer5"),
    "more": ("dennis", "mnist_0_3", "fashion", {}, "net.0 net.2 net.4", "net.6"),
    "smaller": ("waly", "fashion", "usps_0_6", {}, "fc2", "fc1 fc3"),
    "as many": ("waly", "fashion", "fashion", DIGITS, "fc1 fc2", "fc3"),
    "other labels": ("waly", "usps_0_6", "usps_0_6", {"classes": [*range(1, 8)]}, "fc1 fc2", "fc3"),
    "same digits in color": ("waly", "fashion", "svhn", DIGITS, "fc2 fc3", "fc1"),
    "same": ("waly", "usps_0_6", "usps_0_6", {}, "fc1 fc2 fc3", ""),
    "bare": ("waly", "usps_0_6", "mnist_4_9", {"bare": True}, "fc2", "fc1 fc3"),
}


@pytest.mark.parametrize("case", STARTS)
def test_a_start_keeps_the_layers_that_fit(tmp_path, case):
    username, before, dataset, changed, kept, drawn = STARTS[case]
    checkpoint = trained(tmp_path / "c.pt", username, before, **changed)
    assert started(username, dataset, checkpoint) == (kept, drawn)
    if drawn:
        with pytest.raises(UsageError, match="distinguishes|does not fit"):
            build_model(username, dataset, checkpoint)


def test_an_earlier_network_of_ten_digits_is_a_start(tmp_path):
    torch.save(SMLP(output_size=10, hidden_layers=3).state_dict(), tmp_path / "c.pt")
    earlier = load_checkpoint(tmp_path / "c.pt")
    torch.manual_seed(3)
    model, arguments, *_ = start_from(earlier, "sigurd", "mnist_4_9", {})
    torch.manual_seed(3)
    new, found = SMLP(hidden_layers=3).state_dict(), model.state_dict()
    assert arguments["hidden_layers"] == 3 and found.keys() == earlier.weights.keys()
    for name, tensor in found.items():
        expected = new if name.startswith("layer4") else earlier.weights
        assert torch.equal(tensor, expected[name])


def test_a_start_of_a_cnn(anna, tmp_path):
    """Statistics of a batch norm, parametrizations and parameters of its own belong to layers."""
    text = """
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

class Net(nn.Module):
    def __init__(self, classes, channels, height, width, values=False):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1))
        self.conv = nn.Sequential(nn.Conv2d(channels, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.hidden = weight_norm(nn.Linear(4 * (height - 2) * (width - 2), 5))
        self.output = weight_norm(nn.Linear(5, classes))
        self.norm = nn.BatchNorm1d(classes)
        if values:
            self.scale.sum().item()

    def forward(self, x):
        return self.norm(self.output(self.hidden(self.scale * self.conv(x).flatten(1))))
"""
    sizes = {f"{name}_argument": name for name in ("channels", "height", "width")}
    assert anna("--check", text=text, entry=sizes)[0] == 0
    checkpoint = trained(tmp_path / "c.pt", "anna", "usps_0_6")
    for tensor in checkpoint.weights.values():
        tensor += 1  # as if it was trained
    assert started("anna", "mnist_4_9", checkpoint) == ("scale conv.0 conv.1", "hidden output norm")
    assert started("anna", "svhn", checkpoint) == ("scale conv.1", "conv.0 hidden output norm")
    checkpoint.metadata["classes"] = [*range(1, 8)]
    fits = "scale conv.0 conv.1 hidden"
    assert started("anna", "usps_0_6", checkpoint) == (fits, "output norm")
    # What needs values while it is built does not show what depends on the classes.
    checkpoint.metadata["model"]["arguments"] |= {"values": True}
    with pytest.raises(UsageError, match="distinguishes"):
        start_from(checkpoint, "anna", "usps_0_6", {})


def test_all_is_kept_where_nothing_depends_on_the_classes(anna, tmp_path):
    text, entry = CNN.replace("classes, channels", "channels"), {"output_argument": None}
    assert anna("--check", text=text.replace("classes", "7"), entry=entry)[0] == 0
    checkpoint = trained(tmp_path / "c.pt", "anna", "usps_0_6", classes=[*range(1, 8)])
    assert started("anna", "usps_0_6", checkpoint) == ("layers.0 layers.1 layers.6", "")


def test_starts_that_are_refused(anna, tmp_path):
    one = "from torch import nn\n\nclass Net(nn.Sequential):\n    def __init__(self, classes):\n"
    one += "        super().__init__(nn.Flatten(), nn.Linear(256, classes))\n"
    assert anna("--check", text=one)[0] == 0
    checkpoint = trained(tmp_path / "c.pt", "anna", "usps_0_6", classes=[*range(1, 8)])
    with pytest.raises(UsageError, match="Net 256-7 on usps_0_6: no layer could be kept"):
        start_from(checkpoint, "anna", "usps_0_6", {})
    bare = trained(tmp_path / "c.pt", "anna", "usps_0_6", bare=True)
    with pytest.raises(UsageError, match="no layer could be kept"):
        start_from(bare, "anna", "mnist_4_9", {})
    checkpoint = trained(tmp_path / "c.pt", "waly", "usps_0_6")
    with pytest.raises(UsageError, match="waly|dennis runs DMLP"):
        start_from(checkpoint, "dennis", "mnist_0_3", {})
    with pytest.raises(UsageError, match="no layer could be kept"):
        start_from(checkpoint, "waly", "mnist_0_3", {"hidden_dim": 50})
    weights = {name: each for name, each in checkpoint.weights.items() if name != "fc3.bias"}
    with pytest.raises(UsageError, match="distinguishes"):  # not a WMLP
        start_from(Checkpoint(checkpoint.path, weights, checkpoint.metadata), "waly", "fashion", {})
    checkpoint.metadata["model"]["arguments"]["hidden_dim"] = 10**9
    with pytest.raises(UsageError, match="distinguishes"):  # without having built it
        start_from(checkpoint, "waly", "mnist_0_3", {})


def test_arguments_are_recorded_with_their_defaults():
    assert build_model("waly", "usps_0_6")[1] == {
        "input_dim": 256,
        "output_dim": 7,
        "hidden_dim": 100,
        "negative_slope": 0.01,
    }


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (60_000, "hidden_dim is 60000, it holds 36,507 weights"),
        (10**18, "hidden_dim is 1000000000000000000, it holds 36,507 weights"),
        (
            36_000,
            r"does not fit WMLP 256-36000-36000-7: it has fc1.bias \(100,\), the model has fc1",
        ),
        ("wide", "WMLP does not take"),
    ],
)
def test_arguments_out_of_proportion_are_refused_before_they_take_memory(tmp_path, size, sentence):
    model, arguments = build_model("waly", "usps_0_6")
    arguments = {**arguments, "hidden_dim": size}
    metadata = {
        "model": {"name": "WMLP", "arguments": arguments},
        "dataset": {"name": "usps_0_6"},
        "classes": [*range(7)],
    }
    write_checkpoint(tmp_path / "c.pt", model.state_dict(), metadata)
    with pytest.raises(UsageError, match=sentence):
        build_model("waly", "usps_0_6", load_checkpoint(tmp_path / "c.pt"))


def test_a_checkpoint_is_loaded_without_drawing_more_random_numbers(tmp_path):
    """Training from starting weights draws the same numbers, however they were checked."""
    model, arguments = build_model("waly", "usps_0_6")
    metadata = {
        "model": {"name": "WMLP", "arguments": arguments},
        "dataset": {"name": "usps_0_6"},
        "classes": [*range(7)],
    }
    write_checkpoint(tmp_path / "c.pt", model.state_dict(), metadata)
    states = []
    for checkpoint in (None, load_checkpoint(tmp_path / "c.pt")):
        torch.manual_seed(0)
        build_model("waly", "usps_0_6", checkpoint)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


ENTRIES = {
    "keyword": ('dataset="usps_0_6"', 'datset="usps_0_6"', "TypeError: Person.__init__() got an"),
    "missing": ('dataset="usps_0_6",', "", "TypeError: Person.__init__() missing 1 required"),
    "quotes": ('dataset="usps_0_6"', "dataset=usps_0_6", "NameError: name 'usps_0_6' is not"),
    "comma": ('dataset="usps_0_6",', 'dataset="usps_0_6"', "SyntaxError: invalid syntax"),
    "twice": ("    waly=Person", "    sigurd=Person", "SyntaxError: keyword argument repeated"),
    "tuple": (
        "    waly=Person(",
        "    eve=(1, 2),\n    waly=Person(",
        "the entry of eve is a tuple",
    ),
    "class": ("models.wmlp:WMLP", "models.other:SMLP", "have one name; rename a class"),
}


@pytest.mark.parametrize("mistake", ENTRIES)
def test_mistakes_in_the_table_are_one_sentence(checkout, run_script, mistake):
    before, after, sentence = ENTRIES[mistake]
    table = checkout / "DJSW" / "pipelines.py"
    text = table.read_text()
    assert text.count(before) == 1
    table.write_text(text.replace(before, after))
    ran = run_script(checkout / "DJSW" / "main.py", "--help")
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1, ran.stderr
    assert re.match(r"error: .*/DJSW/pipelines.py, line \d+: ", ran.stderr)
    assert sentence in ran.stderr
