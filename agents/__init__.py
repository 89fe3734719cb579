"""Value-based agents as pure functions over an agent state: act, observe, learn."""
