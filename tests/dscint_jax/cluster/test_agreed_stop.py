import random

import pytest

from dscint_jax.cluster import AgreedStop
from tests.dscint_jax.cluster.conftest import ends

LOOP = """\
draw = random.Random(f"{seed} {{index}}")
wishes = []
signal.signal(signal.{name}, lambda *_: wishes.append("{name}"))
with AgreedStop(lambda: wishes[0] if wishes else None, cluster) as stop:
    for step in range(101, 1000):
        time.sleep(draw.uniform(0, 0.02 + 0.03 * index))
        if step == {told_at} and index in {told}:
            os.kill(os.getpid(), signal.{name})
        if stop.asked():
            break
print("stopped after", step, stop.reason)
"""


@pytest.mark.parametrize(
    ("told", "name"), [((0,), "SIGTERM"), ((1,), "SIGUSR1"), ((0, 1), "SIGTERM")]
)
def test_all_stop_after_the_same_step_whoever_is_told_and_know_why(run, told, name):
    seed = random.SystemRandom().randrange(2**32)
    print(f"paces drawn from seed {seed}")
    # Nothing else keeps the loops together: one runs ahead of the other.
    processes = run(LOOP.format(seed=seed, told=told, told_at=130, name=name))
    assert ends(processes) == [0, 0], processes[0].err + processes[1].err
    lines = [process.out.splitlines()[-1] for process in processes]
    assert lines[0] == lines[1]
    assert lines[0].startswith("stopped after ")
    assert lines[0].endswith(f" {name}")
    assert 130 < int(lines[0].split()[2]) < 400


def test_lone_process_stops_at_once():
    wishes = iter([None, "SIGTERM"])
    with AgreedStop(lambda: next(wishes)) as stop:
        assert not stop.asked()
        assert stop.asked()
        assert stop.reason == "SIGTERM"
