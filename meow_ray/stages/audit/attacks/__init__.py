"""The attacks of the stage `audit`, one module for each kind."""
