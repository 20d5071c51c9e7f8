"""What is optimised: pure functions of tensors, which import nothing else of drbode."""
