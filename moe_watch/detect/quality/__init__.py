"""The quality and speed of the MoE against the dense model."""
