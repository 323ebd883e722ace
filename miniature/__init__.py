"""Small worlds with a known truth, to see the method work and to test its claims."""
