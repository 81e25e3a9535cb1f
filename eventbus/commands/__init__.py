"""What users send to agents: commands, questions and their answers."""
