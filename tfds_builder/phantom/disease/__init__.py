"""Lesions, and what is mistaken for them."""
