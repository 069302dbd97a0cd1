"""TensorBoard events."""

import pytest

from DJSW.main import main


def test_events_are_those_of_the_history(processed, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = ["--username", "waly", "--train", "--exp_name", "e", "--output_dir", str(tmp_path)]
    for epochs in ("2", "4"):
        assert main([*flags, "--num_epochs", epochs, "--resume"]) == 0
    events = EventAccumulator(str(tmp_path / "e_tensorboard"))
    events.Reload()
    rows = (tmp_path / "e_history.csv").read_text().splitlines()
    for column, name in enumerate(rows[0].split(",")[1:], start=1):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [float(row.split(",")[column]) for row in rows[1:]]
        assert found == [(n, pytest.approx(v, rel=1e-6)) for n, v in enumerate(expected, 1)]
