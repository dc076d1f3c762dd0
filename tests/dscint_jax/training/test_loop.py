import types

import pytest

from dscint_jax.cluster import Cluster
from dscint_jax.training.loop import Loop
from dscint_jax.training.stopping import Interruption


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("reason", "status"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_ctrl_c_is_told_apart_from_the_status_of_other_stops(reason, status):
    loop = types.SimpleNamespace(
        ending=types.SimpleNamespace(why=""),
        stop=types.SimpleNamespace(reason=reason),
        checkpointer=types.SimpleNamespace(last_step=lambda: 3, close=lambda: None),
        interruption=Interruption(75),
        cluster=Cluster(1, 2, "flags"),
    )
    with pytest.raises(SystemExit) as stopped:
        Loop._save_and_stop(loop, 3, None)
    assert stopped.value.code == status
    assert loop.ending.why == reason
