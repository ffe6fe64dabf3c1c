"""The methods of `Database`, sorted as the command line sorts its commands."""
