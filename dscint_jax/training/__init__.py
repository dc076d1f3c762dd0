"""How a run is trained: its loop, and what the loop asks for."""
