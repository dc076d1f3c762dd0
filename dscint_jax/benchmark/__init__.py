"""The comparison of networks: a plan, its cells, their results, and the proof of them."""
