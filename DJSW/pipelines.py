"""Who runs what: the table of people and the table of datasets.

To add yourself, write ``models/yours.py`` and one entry of ``PEOPLE``. The command line, its help,
the tests and the documentation follow from the tables. Networks are named, not imported, so that a
command's flags can be read before torch is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from utils.failures import RunError, UsageError
from utils.files import ROOT

if TYPE_CHECKING:
    from torch import nn

    from utils.checkpoint import Checkpoint
    from utils.mnist_dataset import MnistH5Dataset


@dataclass(frozen=True)
class Person:
    """A network, and the dataset that it runs on unless another is asked for.

    :ivar model: ``"module:Class"`` of the network.
    :ivar dataset: a key of :data:`DATASETS`.
    :ivar input_argument: the constructor's argument for the number of pixels of an image.
    :ivar output_argument: its argument for the number of classes.
    """

    model: str
    dataset: str
    input_argument: str
    output_argument: str

    @property
    def model_name(self) -> str:
        """The class's name, as in ``weights/NAME/`` and in checkpoints."""
        return self.model.partition(":")[2]


@dataclass(frozen=True)
class DigitDataset:
    """Some digits of one source, in a file a split.

    :ivar source: ``"mnist"`` or ``"usps"``, as the file states it.
    :ivar digits: the digits that it holds; ``digits[k]`` is class ``k``.
    :ivar image_size: height and width of the images, in pixels.
    :ivar digit_size: the longer side of the digit in them, in pixels.
    :ivar centred: what of the digit is at the middle: its centre of ``"mass"`` or its ``"box"``.
    :ivar train_file: name of the training file in ``data/processed/``.
    :ivar test_file: name of the test file there.
    :ivar create: ``"module:function"`` that makes a file
        (``create(output_path, train=…, labels_to_keep=…)``).
    :ivar epochs: what every network is trained for when they are compared; USPS has a sixth of the
        images.
    """

    source: str
    digits: tuple[int, ...]
    image_size: tuple[int, int]
    digit_size: int
    centred: str
    train_file: str
    test_file: str
    create: str
    epochs: int


PEOPLE = {
    "sigurd": Person(
        model="models.smlp:SMLP",
        dataset="mnist_4_9",
        input_argument="input_size",
        output_argument="output_size",
    ),
    "waly": Person(
        model="models.wmlp:WMLP",
        dataset="usps_0_6",
        input_argument="input_dim",
        output_argument="output_dim",
    ),
    "dennis": Person(
        model="models.dmlp:DMLP",
        dataset="mnist_0_3",
        input_argument="input_dim",
        output_argument="output_dim",
    ),
}

_create_mnist = "datasetprep.create_mnist_dataset:create_mnist_h5"
_create_usps = "datasetprep.create_usps_dataset:create_usps_h5"

DATASETS = {
    "mnist_4_9": DigitDataset(
        source="mnist",
        digits=(4, 5, 6, 7, 8, 9),
        image_size=(28, 28),
        digit_size=20,
        centred="mass",
        train_file="mnist_4_9.h5",
        test_file="mnist_test_4_9.h5",
        create=_create_mnist,
        epochs=10,
    ),
    "usps_0_6": DigitDataset(
        source="usps",
        digits=(0, 1, 2, 3, 4, 5, 6),
        image_size=(16, 16),
        digit_size=16,
        centred="box",
        train_file="usps_0_6.h5",
        test_file="usps_test_0_6.h5",
        create=_create_usps,
        epochs=100,
    ),
    "mnist_0_3": DigitDataset(
        source="mnist",
        digits=(0, 1, 2, 3),
        image_size=(28, 28),
        digit_size=20,
        centred="mass",
        train_file="mnist_0_3.h5",
        test_file="mnist_test_0_3.h5",
        create=_create_mnist,
        epochs=10,
    ),
}

PROCESSED = ROOT / "data" / "processed"


def named(name: str) -> Any:
    """The object that ``"module:attribute"`` names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def open_split(dataset: str, *, train: bool) -> MnistH5Dataset:
    """The training or the test file of a dataset, made first if it is not there.

    Labels are classes 0 … C-1.

    :raises RunError: the file is damaged, is of another dataset, or cannot be made.
    """
    import numpy as np

    from utils.mnist_dataset import DigitClasses, MnistH5Dataset

    entry = DATASETS[dataset]
    path = PROCESSED / (entry.train_file if train else entry.test_file)
    if not path.exists():
        print(f"{path} is not there yet: making it", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        named(entry.create)(path, train=train, labels_to_keep=entry.digits)
    data = MnistH5Dataset(path, target_transform=DigitClasses(entry.digits))
    if data.images.shape[1:] != entry.image_size:
        raise RunError(
            f"{path} holds images of {data.images.shape[1:]} pixels, {dataset} has "
            f"{entry.image_size}; delete it to have it made anew"
        )
    strangers = sorted(set(np.unique(data.labels).tolist()) - set(entry.digits))
    if strangers:
        raise RunError(
            f"{path} holds the labels {strangers}, {dataset} has only {list(entry.digits)}; "
            "delete it to have it made anew"
        )
    wanted = {
        "dataset": entry.source,
        "split": "train" if train else "test",
        "kept_labels": list(entry.digits),
    }
    for name, value in wanted.items():
        stated = np.asarray(data.attributes.get(name, value)).tolist()
        if stated != value:  # earlier files state nothing
            raise RunError(
                f"{path} is not what its name says: its {name} is {stated}, not {value}; "
                "delete it to have it made anew"
            )
    for name, found in data.sha256.items():
        if data.attributes.get(name, found) != found:
            raise RunError(
                f"{path} is damaged: its {name} is {found}, it was written with "
                f"{data.attributes[name]}; delete it to have it made anew"
            )
    return data


def build_model(
    username: str, dataset: str, checkpoint: Checkpoint | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """A person's network for a dataset, and the arguments it was built with.

    Weights are drawn anew, or are the checkpoint's. A checkpoint also says its own arguments; a
    bare state dict says its depth, where the network has ``arguments_of(weights)``.

    :raises UsageError: the checkpoint is another network's, or its classes are not the dataset's.
    """
    from inspect import signature

    from utils.checkpoint import load_weights

    person, entry = PEOPLE[username], DATASETS[dataset]
    network = named(person.model)
    height, width = entry.image_size
    arguments = {
        person.input_argument: height * width,
        person.output_argument: len(entry.digits),
    }
    if checkpoint is not None:
        _check_fit(checkpoint, username, dataset)
        if checkpoint.about:
            arguments = checkpoint.about["model"]["arguments"] | arguments
        elif hasattr(network, "arguments_of"):
            arguments |= network.arguments_of(checkpoint.weights)
    try:
        bound = signature(network).bind(**arguments)
        bound.apply_defaults()  # recorded too, so that a default can change without harm
        model: nn.Module = network(**bound.arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        if checkpoint is None:
            raise
        raise UsageError(
            f"{checkpoint.path} was made with {arguments}, which {network.__name__} does not take "
            f"({error}); use the version that wrote it"
        ) from None
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return model, dict(bound.arguments)


def recognise(checkpoint: Checkpoint, dataset: str | None = None) -> tuple[str, str]:
    """Whose network a checkpoint holds, and the dataset whose digits it tells apart.

    A checkpoint says both; a bare state dict is whoever's network it fits.

    :param dataset: the dataset, where it is known.
    :raises UsageError: it fits nobody's network.
    """
    about, reason = checkpoint.about, None
    for username, person in PEOPLE.items():
        if about and about["model"]["name"] != person.model_name:
            continue
        own = about["dataset"]["name"] if about else person.dataset
        for name in [dataset] if dataset else [own, *DATASETS]:
            if name not in DATASETS:
                continue
            try:
                build_model(username, name, checkpoint)
            except UsageError as error:
                reason = reason or error
            else:
                return username, name
    if reason and about:
        raise reason
    raise UsageError(
        f"{checkpoint.path} fits no network of DJSW/pipelines.py on {dataset or 'any dataset'}; "
        f"give a checkpoint of {', '.join(PEOPLE)}"
    )


def _check_fit(checkpoint: Checkpoint, username: str, dataset: str) -> None:
    """What a checkpoint says about itself must agree with what it is asked to run as."""
    if not checkpoint.about:
        return
    model_name = checkpoint.about["model"]["name"]
    if model_name != PEOPLE[username].model_name:
        owners = [name for name, person in PEOPLE.items() if person.model_name == model_name]
        raise UsageError(
            f"{checkpoint.path} holds {model_name}, {username} runs {PEOPLE[username].model_name}; "
            f"give --username {' or '.join(owners) or 'of the person who runs it'}"
        )
    classes, digits = checkpoint.about["classes"], list(DATASETS[dataset].digits)
    if classes != digits:
        raise UsageError(
            f"{checkpoint.path} tells the digits {classes} apart, {dataset} holds {digits}; "
            f"give --dataset {checkpoint.about['dataset']['name']}"
        )
