"""The laws of scale, on small databases that grow eightfold."""
