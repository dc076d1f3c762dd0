import json
import sys
import threading
import types

import pytest
from tensorboardX.proto.event_pb2 import Event

from dscint_jax.run.trackers.in_background import InBackground
from dscint_jax.run.trackers.json_lines import JsonLines, read_lines, read_metrics
from dscint_jax.run.trackers.tracker import import_tracker
from dscint_jax.run.trackers.trackers import Trackers, check_trackers, open_trackers
from tfds_builder.commandline.errors import UserError

CONFIG = {"steps": 12, "optimizer": {"name": "adamw"}, "data": {"clip": 3.0}, "sizes": (1, 2)}


def _open(names, workdir, start_step=0):
    workdir.mkdir(exist_ok=True)
    return open_trackers(names, workdir, start_step, CONFIG, "bones")


class FakeRun:
    def __init__(self, settings):
        self.settings, self.logged, self.finished, self.metrics = settings, [], False, []
        self.id = settings["id"] or "made-by-wandb"

    def define_metric(self, name, **options):
        self.metrics.append((name, options))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    fake = types.ModuleType("wandb")
    fake.runs = []
    fake.Settings = dict

    def init(**settings):
        fake.runs.append(FakeRun(settings))
        return fake.runs[-1]

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


class FakeClient:
    """Keeps its runs in the class, as a server would."""

    store: dict = {}  # noqa: RUF012
    experiments: dict = {}  # noqa: RUF012

    def get_experiment_by_name(self, name):
        number = self.experiments.get(name)
        return number and types.SimpleNamespace(experiment_id=number)

    def create_experiment(self, name):
        self.experiments[name] = f"e{len(self.experiments) + 1}"
        return self.experiments[name]

    def create_run(self, number, run_name):
        run = f"run{len(self.store) + 1}"
        self.store[run] = {
            "experiment": number, "name": run_name, "metrics": [], "params": {}, "status": "RUNNING"
        }  # fmt: skip
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run))

    def update_run(self, run, status):
        self.store[run]["status"] = status

    def set_terminated(self, run, status):
        self.store[run]["status"] = status

    def log_batch(self, run, metrics=(), params=()):
        assert len(params) <= 100
        self.store[run]["metrics"] += metrics
        self.store[run]["params"].update(params)


@pytest.fixture
def mlflow(monkeypatch):
    fake, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    FakeClient.store, FakeClient.experiments = {}, {}
    fake.MlflowClient = FakeClient
    entities.Metric = lambda name, value, timestamp, step: (step, name, value)
    entities.Param = lambda name, value: (name, value)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return fake


def test_lines_of_steps_to_come_and_lines_cut_short_are_dropped_on_resume(tmp_path):
    log = _open((), tmp_path)
    for step in range(1, 6):
        log.write(step, {"loss": step / 8})
    log.close()
    with (tmp_path / "train_metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    log = _open((), tmp_path, start_step=3)
    log.write(4, {"loss": 9.0})
    log.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [
        (1, 0.125), (2, 0.25), (3, 0.375), (4, 9.0)
    ]  # fmt: skip


def test_lines_that_are_no_metrics_are_passed_over(tmp_path):
    text = b'3\n{"step": "x"}\n\xff\n{"step": 1, "loss": 2.0}\n[]\n'
    (tmp_path / "train_metrics.jsonl").write_bytes(text)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_speeds_stand_apart_from_metrics_that_two_runs_share(tmp_path, wandb):
    log = _open(("wandb",), tmp_path)
    log.write(1, {"loss": 0.5})
    log.write_speed(1, {"images_per_second": 143.0})
    log.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    speeds = read_lines(tmp_path / "train_speed.jsonl")
    assert speeds == [{"step": 1, "images_per_second": 143.0}]
    assert wandb.runs[0].logged[1] == {"step": 1, "speed/images_per_second": 143.0}


def _scalars(folder):
    """(step, name, value) of every event, by the frames of the file's own format."""
    found = []
    for path in folder.iterdir():
        data, place = path.read_bytes(), 0
        while place < len(data):
            length = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            place += 12 + length + 4
    return found


def test_tensorboard_has_every_value_at_its_step(tmp_path):
    log = _open(("tensorboard",), tmp_path)
    log.write(4, {"loss": 0.5, "validation_f1": 0.25})
    log.close()
    expected = [(4, "loss", 0.5), (4, "validation_f1", 0.25)]
    assert sorted(_scalars(tmp_path / "tensorboard")) == expected


def test_resumed_run_goes_on_in_the_same_run_of_wandb(tmp_path, wandb):
    workdir = tmp_path / "knee"
    for start in (0, 3):
        log = _open(("wandb",), workdir, start)
        log.write(start + 1, {"loss": 0.5})
        log.close()
    first, second = wandb.runs
    assert first.settings["project"] == "bones"
    assert first.settings["name"] == "knee"
    assert first.settings["config"] == json.loads(json.dumps(CONFIG))
    assert first.settings["id"] is None
    assert second.settings["id"] == first.id == "made-by-wandb"
    assert second.settings["resume"] == "allow"
    assert first.logged == [{"step": 1, "loss": 0.5}]
    assert ("*", {"step_metric": "step"}) in first.metrics
    assert first.finished


def test_resumed_run_goes_on_in_the_same_run_of_mlflow(tmp_path, mlflow):
    workdir = tmp_path / "knee"
    for start in (0, 3):
        log = _open(("mlflow",), workdir, start)
        log.write(start + 1, {"loss": 0.5})
        log.close()
    (run,) = FakeClient.store.values()
    assert run["name"] == "knee"
    assert run["status"] == "FINISHED"
    assert FakeClient.experiments == {"bones": run["experiment"]}
    assert run["metrics"] == [(1, "loss", 0.5), (4, "loss", 0.5)]
    assert run["params"] == {
        "steps": "12", "optimizer.name": "adamw", "data.clip": "3.0", "sizes": "[1, 2]"
    }  # fmt: skip


def test_run_that_mlflow_has_forgotten_is_begun_anew(tmp_path, mlflow, capsys):
    log = _open(("mlflow",), tmp_path)
    log.close()
    FakeClient.store.clear()
    log = _open(("mlflow",), tmp_path, start_step=3)
    log.close()
    assert "mlflow cannot resume its run run1" in capsys.readouterr().err
    assert len(FakeClient.store) == 1


def test_unknown_tracker_is_named_with_the_known():
    with pytest.raises(UserError, match="'wandbb'; it may list 'tensorboard', 'wandb', 'mlflow'"):
        check_trackers(("tensorboard", "wandbb"))
    check_trackers(("tensorboard", "wandb", "mlflow"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_package_is_named_with_its_command(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"package {name} is not .* -m pip install {name}"):
        import_tracker(name)
    with pytest.raises(UserError, match=f"pip install {name}"):
        _open((name,), tmp_path)


def test_folder_of_the_packages_name_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    with pytest.raises(UserError, match="wandb is not installed"):
        import_tracker("wandb")


class Breaking:
    def __init__(self, at):
        self.at, self.written, self.closed = at, [], False

    def write(self, step, values):
        if step == self.at:
            raise ConnectionError("the network\nis down")
        self.written.append(step)

    def close(self):
        self.closed = True


def test_tracker_that_fails_is_left_out_after_one_warning(tmp_path, capsys):
    log, breaking, whole = _open((), tmp_path), Breaking(at=3), Breaking(at=None)
    log.add("first", breaking)
    log.add("second", whole)
    for step in range(1, 6):
        log.write(step, {"loss": 1.0})
    log.close()
    error = capsys.readouterr().err
    assert error.count("warning") == 1
    assert "first takes no more metrics after step 3 (ConnectionError: the network is down)" in (
        error
    )
    assert breaking.written == [1, 2]
    assert whole.written == [1, 2, 3, 4, 5]
    assert whole.closed
    assert len(read_metrics(tmp_path)) == 5


def test_tracker_that_cannot_start_stops_a_new_run_but_not_a_resumed_one(
    tmp_path, wandb, monkeypatch, capsys
):
    def refuse(**settings):
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"wandb of config\.trackers .* api_key not configured"):
        _open(("wandb",), tmp_path)
    log = _open(("wandb",), tmp_path, start_step=4)
    assert not log._optional
    assert "wandb could not be started" in capsys.readouterr().err


def test_full_disk_ends_the_run_and_says_so(tmp_path):
    lines = JsonLines(tmp_path / "train_metrics.jsonl", start_step=0)
    lines._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    log = Trackers(lines)
    with pytest.raises(
        UserError, match=r"train_metrics\.jsonl cannot be written: the disk is full"
    ):
        log.write(1, {"loss": 1.0})


def test_process_that_does_not_write_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = Trackers()
    log.write(1, {"loss": 1.0})
    log.write_speed(1, {"images_per_second": 1.0})
    log.close()
    assert not list(tmp_path.iterdir())


class Stuck:
    def __init__(self):
        self.go = threading.Event()
        self.written = []

    def write(self, step, values):
        self.go.wait(30)
        self.written.append((step, values))

    def close(self):
        self.written.append("closed")


def test_slow_tracker_does_not_hold_up_the_training():
    stuck = Stuck()
    tracker = InBackground(lambda: stuck)
    for step in range(3):
        tracker.write(step, {"loss": float(step)})
    assert not stuck.written
    stuck.go.set()
    tracker.close()
    assert stuck.written == [*((n, {"loss": float(n)}) for n in range(3)), "closed"]


def test_tracker_that_never_answers_does_not_hold_up_the_end(capsys):
    stuck = Stuck()
    log = Trackers()
    log.add("slow", InBackground(lambda: stuck, close_timeout_s=0.05))
    log.write(1, {"loss": 1.0})
    log.close()
    assert "slow did not take its last values (TimeoutError" in capsys.readouterr().err
    stuck.go.set()


def test_failure_in_the_background_is_told_to_the_training(capsys):
    log, breaking = Trackers(), Breaking(at=1)
    tracker = InBackground(lambda: breaking)
    log.add("server", tracker)
    log.write(1, {"loss": 1.0})
    tracker._thread.join(10)
    log.write(2, {"loss": 1.0})
    log.write(3, {"loss": 1.0})
    log.close()
    assert capsys.readouterr().err.count("server takes no more metrics") == 1


def test_server_that_is_not_there_is_not_waited_for():
    go = threading.Event()
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        InBackground(lambda: go.wait(30), open_timeout_s=0.05)
    go.set()
    with pytest.raises(ZeroDivisionError):
        InBackground(lambda: 1 / 0)
