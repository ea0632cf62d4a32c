"""The stages that change parameters: supervised fine-tuning, and REINFORCE on the scores of any scorer."""
