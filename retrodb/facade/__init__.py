"""The methods of `Database`, in the sections of the command line."""
