"""Who picks up whom: rides, trips, the batched assignment and the store behind them."""
