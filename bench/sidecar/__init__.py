"""Load, faults, memory and accuracy of the sidecar."""
