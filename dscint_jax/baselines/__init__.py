"""How far one gets without a network, and by what has nothing to do with disease."""
