"""The parts of the proxy study: texts, tasks, models, who is trained on what, and what is made of it."""
