"""Whether phantoms are like clinical scans, and how well one could tell their classes."""
