"""What tests need, ours and our users': a fake engine and the conformance suite."""
