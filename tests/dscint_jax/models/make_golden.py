"""Makes golden/NAME.npz with the reference implementations; needs torch, torchvision and timm.

    python tests/dscint_jax/models/make_golden.py vgg19 vgg19_bn resnet101 densenet201

Files that are there already are made anew and compared instead of being replaced.
"""

import sys
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).parent))
import reference

SIDES = {"inception_v4": 299}


def main(names: list[str]) -> None:
    for name in names:
        made = make(name)
        path = reference.GOLDEN / f"{name}.npz"
        if path.exists():
            with np.load(path) as old:
                difference = np.linalg.norm(made["logits"] - old["logits"])
                print(f"{name}: differs by {difference / np.linalg.norm(old['logits']):.1e}")
        else:
            np.savez_compressed(path, **made)
            print(f"{name}: made")


def make(name: str) -> dict[str, np.ndarray]:
    create = timm.create_model if name == "inception_v4" else torchvision.models.get_model
    network = create(name).eval()
    state = {n: t for n, t in network.state_dict().items() if t.is_floating_point()}
    shapes = {n: tuple(t.shape) for n, t in state.items()}
    values = {n: torch.from_numpy(reference.values(n, s)) for n, s in shapes.items()}
    network.load_state_dict(values, strict=False)
    side = SIDES.get(name, 224)
    with torch.no_grad():
        logits = network(torch.from_numpy(reference.images(side)))
    return {
        "logits": logits.numpy(),
        "parameters": np.int64(sum(p.numel() for p in network.parameters())),
        "side": np.int64(side),
        "names": np.array(list(shapes)),
        "shapes": np.array([str(s) for s in shapes.values()]),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
