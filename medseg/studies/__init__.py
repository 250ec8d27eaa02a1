"""What turns one case into many: isolation, outcomes, exit codes."""
