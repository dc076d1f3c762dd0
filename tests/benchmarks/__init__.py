"""Measurements that no test waits for."""
