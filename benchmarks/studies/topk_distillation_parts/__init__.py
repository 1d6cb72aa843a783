"""The parts of the distillation study: texts, stories, training, measuring, numbers, page, pictures."""
