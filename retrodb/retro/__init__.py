"""The thin RETRO model that measures whether a database helps a language model.

Import the modules by name: only they import torch.
"""
