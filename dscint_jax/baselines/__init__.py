"""How far one gets without a network, and by what has nothing to do with disease."""

NECK_STEPS = 800
"""Steps of the network that sees necks: some 15 epochs of 3300 images."""
