import jax
import jax.numpy as jnp
import pytest

from dscint_jax.training import profiling
from dscint_jax.training.profiling import NO_STEPS, Profiler, parse_window
from tfds_builder.commandline.errors import UserError


@pytest.mark.parametrize(("text", "window"), [("20:10", range(20, 30)), (" 1:100 ", range(1, 101))])
def test_window_is_its_first_step_and_their_number(text, window):
    assert parse_window(text) == window


@pytest.mark.parametrize("text", ["", "20", "0:5", "5:0", "-1:5", "5:10:2", "a:b", "5-10", "٣:5"])
def test_what_is_no_window_is_named(text):
    with pytest.raises(UserError, match=r"--profile is .* must be FIRST:COUNT"):
        parse_window(text)


def test_window_that_would_fill_the_disk_is_refused():
    with pytest.raises(UserError, match="--profile 1:101 is 101 steps long; 100 at most"):
        parse_window("1:101")


def _train(workdir, window, steps, *, start=0, stop_at=None):
    @jax.jit
    def step(x):
        return jnp.tanh(x @ x)

    state = step(jnp.ones((64, 64)))
    with Profiler(workdir, window) as profiler:
        for number in range(start + 1, steps + 1):
            profiler.before(number)
            state = step(state)
            profiler.after(number, state)
            if number == stop_at:
                raise KeyboardInterrupt


def _traced_steps(workdir):
    """The numbers of the steps in the one trace that a work directory has."""
    (path,) = (workdir / "profile").rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(path))
    found, others = set(), 0
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                others += 1
                if event.name == profiling.STEP_NAME:
                    found.add(dict(event.stats)["step_num"])
    assert others > len(found)
    return sorted(found)


def test_trace_holds_the_steps_of_the_window_and_says_where_it_is(tmp_path, capsys):
    _train(tmp_path, range(3, 7), 12)
    assert _traced_steps(tmp_path) == [3, 4, 5, 6]
    printed = capsys.readouterr().out
    assert str(tmp_path / "profile") in printed
    assert "xprof --logdir" in printed


def test_run_resumed_within_the_window_traces_the_rest_of_it(tmp_path):
    _train(tmp_path, range(3, 7), 12, start=4)
    assert _traced_steps(tmp_path) == [5, 6]


def test_interrupted_run_leaves_a_whole_trace(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, range(3, 7), 12, stop_at=4)
    assert _traced_steps(tmp_path) == [3, 4]


def test_run_that_ends_within_the_window_leaves_a_whole_trace(tmp_path):
    _train(tmp_path, range(3, 43), 5)
    assert _traced_steps(tmp_path) == [3, 4, 5]


@pytest.mark.parametrize("window", [NO_STEPS, range(20, 23)])
def test_without_a_window_nothing_is_written(tmp_path, window, capsys):
    _train(tmp_path, window, 5)
    assert not list(tmp_path.iterdir())
    said = "no profile: no step from 20 to 22 was taken" if window else ""
    assert capsys.readouterr().out.strip() == said


def test_folder_that_cannot_be_made_is_one_warning(tmp_path, capsys):
    (tmp_path / "profile").write_text("in the way")
    _train(tmp_path, range(2, 4), 6)
    assert capsys.readouterr().err.count("warning: no trace could be written") == 1
    # And the profiler is free for the next run of this process.
    _train(tmp_path / "other", range(2, 4), 6)
    assert _traced_steps(tmp_path / "other") == [2, 3]


def test_trace_that_is_refused_at_its_end_is_one_warning(tmp_path, monkeypatch, capsys):
    def refuse():
        stop()
        raise RuntimeError("No space left\non device")

    stop = jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "stop_trace", refuse)
    _train(tmp_path, range(2, 4), 6)
    captured = capsys.readouterr()
    assert "profile (No space left on device); training goes on" in captured.err
    assert not captured.out
