"""Assemble the page to draw on: ``sphinx-build docs docs/_build`` writes it, ``try.html``.

It is one file, which works from a disk and from any host: the published networks and some test
images are in it. ``docs/try/`` has its parts.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from DJSW.networks import build_model
from DJSW.pipelines import DATASETS, PEOPLE, open_split
from DJSW.predict import threshold
from DJSW.results import Result, results
from utils.errors import RunError
from utils.records.checkpoint import load_checkpoint
from utils.records.evaluation import Evaluation, read_evaluation
from utils.records.files import ROOT

PARTS = Path(__file__).resolve().parent / "try"
#: Most parameters of a person's networks: three of SMLP or of WMLP, one of DMLP. All would make
#: the page twice as large.
MOST = 450_000
#: Bits of a weight. With 22 the logits of the published networks differ by less than 5e-5.
BITS = 22
#: Test images of a dataset: the first ones, and errors of its networks.
SAMPLES = 12


def page() -> str:
    """Return the page as HTML.

    :raises UsageError: what is published does not fit together.
    """
    networks: list[dict[str, Any]] = []
    missing: list[str] = []
    evaluations: dict[str, list[tuple[str, Evaluation]]] = {}
    for found in results().values():
        parameters = 0
        for result in reversed(found):  # the last recipe is the best one
            person = PEOPLE[result.username]
            entry, name = DATASETS[person.dataset], f"{person.model_name} {result.recipe}"
            if entry.channels > 1 or not entry.digit_size:
                missing.append(f"{name} (it reads no handwritten digits)")
                continue
            network = describe_network(result)
            if network is None:
                missing.append(f"{name} (it has other than linear layers)")
                continue
            parameters += sum(inputs * outputs for inputs, outputs in pairwise(network["sizes"]))
            if parameters <= MOST:
                networks.append(network)
            else:
                missing.append(f"{name} (it is too large)")
            metrics = ROOT / "reports" / result.recipe / f"{result.name}_metrics.json"
            evaluation = name, read_evaluation(metrics)
            evaluations.setdefault(network["dataset"], []).append(evaluation)
    datasets = {name: describe_dataset(name, own) for name, own in evaluations.items()}
    content = {"networks": networks, "missing": missing, "datasets": datasets}
    data = json.dumps(content, separators=(",", ":"))
    html = (PARTS / "page.html").read_text(encoding="utf-8")
    for name in ("style.css", "prepare.js", "page.js"):
        html = html.replace(f"/* {name} */", (PARTS / name).read_text(encoding="utf-8"))
    # A "<" in the data could end the script.
    return html.replace("{/* data */}", data.replace("<", "\\u003c"))


def describe_network(result: Result) -> dict[str, Any] | None:
    """Return a published network with its weights, for the page; ``None`` without ``stack()``."""
    person = PEOPLE[result.username]
    path = ROOT / "weights" / person.model_name / f"{result.name}_checkpoint_best.pt"
    model, _ = build_model(result.username, person.dataset, load_checkpoint(path))
    stack: Any = getattr(model, "stack", None)  # as in utils.engine.backward
    if stack is None:
        return None
    layers, slope = stack()
    return {
        "name": person.model_name,
        "recipe": result.recipe,
        "dataset": person.dataset,
        "classes": [*DATASETS[person.dataset].classes.values()],
        "threshold": threshold([path]),
        "slope": slope,
        "sizes": [layers[0].in_features, *(layer.out_features for layer in layers)],
        "weights": deflated(b"".join(map(packed, layers))),
    }


def packed(layer: nn.Linear) -> bytes:
    """Return a layer as three planes of bytes, and the scales and biases of its rows.

    Weights are whole numbers times a scale for each row; zigzag coding (0, -1, 1, -2, …) makes
    their first bytes alike, which compress well.
    """
    weights = layer.weight.detach().numpy()
    scales = np.abs(weights).max(1) / np.float32(2 ** (BITS - 1) - 1)
    scales[scales == 0] = 1
    numbers = np.rint(weights / scales[:, None]).astype(np.int32)
    zigzag = (numbers << 1) ^ (numbers >> 31)
    planes = [(zigzag >> shift & 255).astype(np.uint8).tobytes() for shift in (16, 8, 0)]
    return b"".join([*planes, scales.tobytes(), layer.bias.detach().numpy().tobytes()])


def describe_dataset(name: str, evaluations: Sequence[tuple[str, Evaluation]]) -> dict[str, Any]:
    """Return the form of a dataset and some of its test images, if they are at hand.

    :param evaluations: of networks, with their names.
    """
    entry = DATASETS[name]
    height, width = entry.image_size
    form = {"height": height, "width": width, "digit_size": entry.digit_size}
    try:
        data = open_split(name, train=False)
        hashes = {own.record["dataset"]["images_sha256"] for _, own in evaluations}
        if hashes != {data.sha256["images_sha256"]}:
            raise RunError(f"{data.h5_path} holds other images than were evaluated")
    except RunError as error:
        print(f"note        no test images of {name} on the page to draw on: {error}")
        return {**form, "centered": entry.centered, "samples": [], "images": deflated(b"")}
    wrong = np.sum([~own.correct for _, own in evaluations], 0)
    hardest = np.argsort(-wrong, kind="stable")[:SAMPLES]
    rows = [*range(SAMPLES), *(int(row) for row in hardest if wrong[row] and row >= SAMPLES)]
    samples = []
    for row in rows:
        taken: dict[int, list[str]] = {}
        for network, own in evaluations:
            if not own.correct[row]:
                taken.setdefault(int(own.predicted[row]), []).append(network)
        errors = "; ".join(f"{entry.classes[k]} by {', '.join(who)}" for k, who in taken.items())
        samples.append({"name": entry.classes[int(data.labels[row])], "errors": errors})
    images = deflated(np.ascontiguousarray(data.images[rows]).tobytes())
    return {**form, "centered": entry.centered, "samples": samples, "images": images}


def deflated(content: bytes) -> str:
    """Return bytes compressed and in base64."""
    return base64.b64encode(zlib.compress(content, 9)).decode()
