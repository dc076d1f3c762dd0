"""Writes docs/reference/configuration.md from the fields of `dscint_jax.config.Config`.

python docs/make_configuration.py
"""

from pathlib import Path

from dscint_jax.config import Config, fields_of
from dscint_jax.config_fields import meaning_of

FILE = Path(__file__).parent / "reference" / "configuration.md"

HEAD = """# Configuration

Every field of a config, as `--config.FIELD=VALUE` sets it, with the values of `configs/dscint.py`.
A config file of your own is a copy of that one: it states what differs. A length of training may be
a number of steps or a text such as `30 epochs`, `50_000 examples` or `5 %`. Written from
`dscint_jax/config.py` by `python docs/make_configuration.py`.

| field | value | meaning |
|---|---|---|
"""


def text() -> str:
    """The document."""
    rows = [
        f"| `{name}` | `{value}` | {meaning_of(field)} |"
        for name, field, value in fields_of(Config())
    ]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
