"""The cost of a backtest over stored requests."""
