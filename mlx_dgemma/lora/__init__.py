"""Fine-tuning with the objective that the model was made with."""
