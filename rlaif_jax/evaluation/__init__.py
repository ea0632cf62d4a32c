"""How good is it: agreement with people, policy against policy, harmlessness, and the intervals round all of these."""
