import pytest

from tfds_builder.classes import classes_of
from tfds_builder.commandline.errors import UserError
from tfds_builder.shards.plan import Options
from tfds_builder.shards.shard import ShardTask
from tfds_builder.workers import Lost


def test_a_row_is_refused_at_the_second_loss_only():
    task = ShardTask((), "path", Options(), classes_of(["normal"]))
    first = task.after(Lost(7, "the decoder crashed"))
    assert first.refused == ()
    other = first.after(Lost(9, "took longer than 30 s"))
    assert other.refused == ()
    second = other.after(Lost(7, "took longer than 30 s"))
    assert second.refused == ((7, "took longer than 30 s"),)


def test_a_file_that_cannot_even_be_read_ends_the_build_by_its_row():
    task = ShardTask(
        (), "path", Options(), classes_of(["normal"]), refused=((7, "the decoder crashed"),)
    )
    with pytest.raises(UserError, match="manifest row 7"):
        task.after(Lost(7, "took longer than 30 s"))


def test_a_worker_lost_before_any_row_is_replaced_once():
    task = ShardTask((), "path", Options(), classes_of(["normal"]))
    again = task.after(Lost(None, "the decoder crashed"))
    assert again.refused == ()
    assert again.after(Lost(7, "the decoder crashed")).refused == ()
    assert again.after(Lost(None, "the decoder crashed")) is None
