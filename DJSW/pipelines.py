"""Who runs what, on which images: the table of people and the table of datasets.

To add yourself, write ``models/mine.py`` and one entry of ``PEOPLE``. The command line, its help,
and the tests follow from the tables. Networks are named, not imported, so that
the flags of a command can be read before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from utils.errors import RunError, UsageError
from utils.records.files import ROOT

if TYPE_CHECKING:
    from utils.mnist_dataset import MnistH5Dataset


@dataclass(frozen=True)
class Person:
    """A network and the dataset that it runs on by default.

    :ivar model: ``"module:Class"`` of the network.
    :ivar dataset: a key of :data:`DATASETS`.
    :ivar input_argument: the constructor's argument for the number of values of an image, if any.
    :ivar output_argument: its argument for the number of classes, if any.
    :ivar channels_argument: for the channels of an image, 1 or 3, if any; likewise
        ``height_argument`` and ``width_argument``, in pixels.
    :ivar arguments: other arguments of the constructor; ``--set`` changes them for a run.
    """

    model: str
    dataset: str
    input_argument: str | None = None
    output_argument: str | None = None
    channels_argument: str | None = None
    height_argument: str | None = None
    width_argument: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        """The name of the class, as in ``weights/NAME/`` and in checkpoints."""
        return self.model.partition(":")[2]


@dataclass(frozen=True)
class ImageDataset:
    """Images of some classes of one source, in one file for each split.

    :ivar source: such as ``"mnist"``, as the file states it.
    :ivar classes: from label, 0 to 255, to name; the k-th is class ``k`` of the logits.
    :ivar image_shape: (H, W) of gray images, (H, W, 3) of images in color.
    :ivar train_file: name of the training file in ``data/processed/``.
    :ivar test_file: name of the test file there.
    :ivar create: ``"module:function"`` that makes a file
        (``create(output_path, train=…, labels_to_keep=…)``).
    :ivar digit_size: of digits: the longer side of the digit, in pixels; 0 of others.
    :ivar centered: what of the digit is in the middle: its center of ``"mass"`` or its ``"box"``.
    """

    source: str
    classes: Mapping[int, str]
    image_shape: tuple[int, ...]
    train_file: str
    test_file: str
    create: str
    digit_size: int = 0
    centered: str = "mass"

    def __post_init__(self) -> None:
        """Refuse shapes and labels that no file has, and labels without a name."""
        entry, shape = f"the entry of {self.train_file} has", self.image_shape
        sides = isinstance(shape, tuple) and all(type(side) is int and side > 0 for side in shape)
        if not sides or len(shape) < 2 or shape[2:] not in ((), (3,)):
            raise ValueError(f"{entry} image_shape {shape}, expected (H, W) or (H, W, 3)")
        labels = isinstance(self.classes, Mapping) and [*self.classes]
        if not labels or not all(type(each) is int and 0 <= each <= 255 for each in labels):
            raise ValueError(f"{entry} classes {self.classes}, expected names by label, 0 to 255")
        names = {name for name in self.classes.values() if isinstance(name, str) and name.strip()}
        if len(names) < max(len(labels), 2):
            raise ValueError(f"{entry} classes {self.classes}, expected two or more, named apart")

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels, in the order of the logits."""
        return tuple(self.classes)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        height, width = self.image_shape[:2]
        return height, width

    @property
    def channels(self) -> int:
        """1 of gray images, 3 of images in color."""
        return 3 if len(self.image_shape) == 3 else 1

    @property
    def names(self) -> list[str] | None:
        """The names, in the order of the logits; ``None`` of digits, which are their own."""
        own = [*self.classes.values()]
        return None if own == [*map(str, self.classes)] else own


def digits(*labels: int) -> dict[int, str]:
    """Return digits as classes.

    >>> digits(4, 5)
    {4: '4', 5: '5'}
    """
    return {label: str(label) for label in labels}


#: As arguments, since Python refuses a name that is given twice.
PEOPLE = dict(
    sigurd=Person(
        model="models.smlp:SMLP",
        dataset="mnist_4_9",
        input_argument="input_size",
        output_argument="output_size",
    ),
    waly=Person(
        model="models.wmlp:WMLP",
        dataset="usps_0_6",
        input_argument="input_dim",
        output_argument="output_dim",
    ),
    dennis=Person(
        model="models.dmlp:DMLP",
        dataset="mnist_0_3",
        input_argument="input_dim",
        output_argument="output_dim",
    ),
)
for _name, _person in PEOPLE.items():
    if not isinstance(_person, Person):
        raise TypeError(f"the entry of {_name} is a {type(_person).__name__}, expected Person(...)")
for _person in PEOPLE.values():
    for _other in PEOPLE.values():
        if _other.model_name == _person.model_name and _other.model != _person.model:
            raise ValueError(f"{_person.model} and {_other.model} have one name; rename a class")

CREATE_MNIST = "datasetprep.create_mnist_dataset:create_mnist_h5"
CREATE_USPS = "datasetprep.create_usps_dataset:create_usps_h5"

DATASETS = {
    "mnist_4_9": ImageDataset(
        source="mnist",
        classes=digits(4, 5, 6, 7, 8, 9),
        image_shape=(28, 28),
        train_file="mnist_4_9.h5",
        test_file="mnist_test_4_9.h5",
        create=CREATE_MNIST,
        digit_size=20,
    ),
    "usps_0_6": ImageDataset(
        source="usps",
        classes=digits(0, 1, 2, 3, 4, 5, 6),
        image_shape=(16, 16),
        train_file="usps_0_6.h5",
        test_file="usps_test_0_6.h5",
        create=CREATE_USPS,
        digit_size=16,
        centered="box",
    ),
    "mnist_0_3": ImageDataset(
        source="mnist",
        classes=digits(0, 1, 2, 3),
        image_shape=(28, 28),
        train_file="mnist_0_3.h5",
        test_file="mnist_test_0_3.h5",
        create=CREATE_MNIST,
        digit_size=20,
    ),
    "fashion": ImageDataset(
        source="fashion",
        classes={
            0: "T-shirt/top",
            1: "trouser",
            2: "pullover",
            3: "dress",
            4: "coat",
            5: "sandal",
            6: "shirt",
            7: "sneaker",
            8: "bag",
            9: "ankle boot",
        },
        image_shape=(28, 28),
        train_file="fashion.h5",
        test_file="fashion_test.h5",
        create="datasetprep.create_fashion_dataset:create_fashion_h5",
    ),
    "svhn": ImageDataset(
        source="svhn",
        classes=digits(*range(10)),
        image_shape=(32, 32, 3),
        train_file="svhn.h5",
        test_file="svhn_test.h5",
        create="datasetprep.create_svhn_dataset:create_svhn_h5",
    ),
}

PROCESSED = ROOT / "data" / "processed"


def import_object(name: str) -> Any:
    """Import the object that ``"module:attribute"`` names."""
    module, _, attribute = name.partition(":")
    if not attribute or "/" in module:
        raise ImportError("it is not of the form 'module:Class', such as 'models.smlp:SMLP'")
    return getattr(import_module(module), attribute)


def dataset_of(username: str) -> str:
    """Return the dataset of a person.

    :raises UsageError: it is not in the table.
    """
    name = PEOPLE[username].dataset
    if name not in DATASETS:
        raise UsageError(
            f"DJSW/pipelines.py: {username}'s dataset {name!r} is not in DATASETS; it has "
            f"{', '.join(DATASETS)}"
        )
    return name


def open_split(dataset: str, *, train: bool) -> MnistH5Dataset:
    """Open the training or the test file of a dataset; create it first if it does not exist.

    Labels are classes 0 … C-1.

    :raises UsageError: ``create`` of its entry is no function.
    :raises RunError: the file is damaged, is of another dataset, or cannot be created.
    """
    from utils.mnist_dataset import DigitClasses, MnistH5Dataset

    entry = DATASETS[dataset]
    path = PROCESSED / (entry.train_file if train else entry.test_file)
    if not path.exists():
        print(f"{path} does not exist yet: creating it", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            create = import_object(entry.create)
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"DJSW/pipelines.py: create of {dataset} is {entry.create!r}: {error}; name a "
                "function as 'module:function'"
            ) from None
        create(path, train=train, labels_to_keep=entry.labels)
    data = MnistH5Dataset(path, target_transform=DigitClasses(entry.labels))
    _check_content(data, entry, train=train)
    if data.source is None:
        print(f"note        {path} does not say where its images are from: their origin is unknown")
    return data


def _check_content(data: MnistH5Dataset, entry: ImageDataset, *, train: bool) -> None:
    """Compare a file with the entry of the table, and with what it says about itself.

    :raises RunError: they differ.
    """
    import numpy as np

    remedy = "(delete it to create it again, or correct the entry in DJSW/pipelines.py)"
    shape = data.images.shape[1:]
    if shape != entry.image_shape:
        raise RunError(f"{data.h5_path}: images {shape}, expected {entry.image_shape} {remedy}")
    unexpected_labels = sorted(set(np.unique(data.labels).tolist()) - set(entry.labels))
    if unexpected_labels:
        raise RunError(
            f"{data.h5_path}: labels {unexpected_labels}, expected {list(entry.labels)} {remedy}"
        )
    split = "train" if train else "test"
    data.check_attributes(dataset=entry.source, split=split, kept_labels=sorted(entry.labels))
