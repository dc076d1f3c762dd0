"""How fast a network trains and predicts here, beside the same network in PyTorch."""
