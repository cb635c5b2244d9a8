"""What a step of training asks of the model: noise levels, what is shown, losses."""
