"""Each invariant of the engine by a test that a violation fails."""
