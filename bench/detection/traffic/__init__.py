"""What the parts of the detection bench are measured on: simulated, resampled and recorded routing."""
