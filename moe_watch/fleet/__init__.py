"""The replicas of one model, compared with each other."""
