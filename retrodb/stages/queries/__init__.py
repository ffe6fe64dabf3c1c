"""Stage queries: training sets whose chunks want neighbours."""
