"""Update and build: every stage over what is new, as the recipe says."""
