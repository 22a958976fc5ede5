"""The stage `ingest`: reads and checks the user's facts."""
