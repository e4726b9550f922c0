"""The offline learning: agent, policy and dream cycle."""
