"""Runs tasks: what a task is, what is kept of a finished one, and the engines that run them."""
