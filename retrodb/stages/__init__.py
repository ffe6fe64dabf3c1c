"""The stages of a build: each plans on a snapshot, runs tasks, and ends in one commit."""
