"""Tensor operators: tensors in, tensors out, for any rank."""
