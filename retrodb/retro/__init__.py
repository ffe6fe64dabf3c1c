"""The thin RETRO model that tells whether a database helps; every module is imported by its own name, torch only there."""
