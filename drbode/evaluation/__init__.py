"""What a policy can do, with intervals."""
